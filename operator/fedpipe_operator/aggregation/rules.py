"""The aggregation rules by the name that `spec.aggregation.rule` gives them: what is made of the increments of all sites.

`Mean` is the weighted mean of `methods`. The rules beside it are for sites that may send anything: they need the increments themselves,
so they combine with the method `Exact` only. Krum and MultiKrum select sites by the distances between their whole updates, and the
selected are averaged as by `Mean`; Median and TrimmedMean look at every coordinate of every weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fedpipe_operator.aggregation.coordinates import Reduce, median, trimmed_mean
from fedpipe_operator.aggregation.factors import CannotAggregateError
from fedpipe_operator.api.aggregation import AggregationRule, least_updates, mixed_updates


@dataclass(frozen=True)
class Rule:
    """At most one of the two is given; for the mean, none."""

    reduce: Callable[[int], Reduce] | None = None
    """From f, the number of malicious sites that the rule is to withstand: how the values of a coordinate are combined."""
    keep: Callable[[int, int], int] | None = None
    """From the number of updates and f: how many of them are selected."""


RULES: Final[dict[str, Rule]] = {
    "Mean": Rule(),
    "Median": Rule(reduce=lambda _: median),
    "TrimmedMean": Rule(reduce=lambda malicious: partial(trimmed_mean, malicious=malicious)),
    "Krum": Rule(keep=partial(mixed_updates, AggregationRule.KRUM)),
    "MultiKrum": Rule(keep=partial(mixed_updates, AggregationRule.MULTI_KRUM)),
}


def require_enough_updates(name: str, updates: int, malicious: int) -> None:
    """That the rule can withstand this many malicious sites among these updates.

    Raises:
        CannotAggregateError: it cannot.
    """
    needed = least_updates(AggregationRule(name), malicious)
    if updates < needed:
        raise CannotAggregateError(
            f"aggregation.rule {name} with maliciousSites {malicious} needs {needed} updates, and {updates} were accepted: "
            "select more sites, raise sites.quorum, lower aggregation.maliciousSites, or set aggregation.rule to Median or Mean"
        )
