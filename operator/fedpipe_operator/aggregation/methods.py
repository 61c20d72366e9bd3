"""The aggregation methods by the name that `spec.aggregation.method` gives them. A new method is a module beside `exact` and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.aggregation import exact, fedit, zeropad
from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, SiteFactorReaders, WeightUpdates


@dataclass(frozen=True)
class Method:
    """An aggregation method for LoRA factors."""

    rank: Callable[[WeightUpdates, int], int]
    """The rank of the result, from the updates and the largest rank allowed; raises `CannotAggregateError`."""
    aggregate: Callable[[WeightUpdates, SiteFactorReaders, Factors | None, int], AggregatedFactors]
    """The result of that rank, from the updates, their readers (in the same order) and the previous global factors, if any."""


METHODS: Final[dict[str, Method]] = {
    "Exact": Method(exact.rank, exact.aggregate),
    "FedIT": Method(fedit.rank, fedit.aggregate),
    "ZeroPad": Method(zeropad.rank, zeropad.aggregate),
}
