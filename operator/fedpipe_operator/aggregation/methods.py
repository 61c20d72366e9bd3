"""The aggregation methods by the name that `spec.aggregation.method` gives them. A new method is a module beside `exact` and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.aggregation import exact, fedit, lengths, zeropad
from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, SiteFactorReaders, WeightUpdates
from fedpipe_operator.aggregation.lengths import SquaredLengths


@dataclass(frozen=True)
class Method:
    """An aggregation method for LoRA factors."""

    rank: Callable[[WeightUpdates, int], int]
    """The rank of the result, from the updates and the largest rank allowed; raises `CannotAggregateError`."""
    aggregate: Callable[[WeightUpdates, SiteFactorReaders, Factors | None, int], AggregatedFactors]
    """The result of that rank, from the updates, their readers (in the same order) and the previous global factors, if any."""
    squared_lengths: SquaredLengths
    """The squared lengths of what it averages of a site."""


METHODS: Final[dict[str, Method]] = {
    "Exact": Method(exact.rank, exact.aggregate, lengths.of_product),
    "FedIT": Method(fedit.rank, fedit.aggregate, lengths.of_factors),
    "ZeroPad": Method(zeropad.rank, zeropad.aggregate, lengths.of_factors),
}
