"""Which increments are longer than a multiple of what is usual in the round, and by what factor they are shortened.

Usual is the median over the sites that moved a weight. Sites honestly take very different numbers of steps τ, and an increment grows with
them, under Adam between √τ and τ. So an increment of length L is too long only if it is so in both views: beside the median length, and
per effective step beside the median length per step, as the normalization counts steps:

    longest allowed of site k  =  multiple · max( median L, τ_k · median(L/τ) ).

Medians hold while more than half of the sites are honest; with three sites, one. A weight that fewer than three sites moved has no such
median: there, the longest that is usual in any weight which three or more sites moved is the measure, if there is one.

Norm clipping as a defence: Sun et al., arXiv 1911.07963, with a fixed bound; a bound made of the round itself: Allouah et al., arXiv
2405.14432.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Final, NamedTuple

MULTIPLE: Final = 3.0
"""Default. Honest increments of the same weight stay below 2.5 of the allowed unit's `benchmarks/robustness` and the fleet's splits."""
ENOUGH_SITES: Final = 3
"""Of two sites, no median says which one is the outlier."""

Lengths = Mapping[str, float]
"""By site: the length of its increment of one weight."""


class Usual(NamedTuple):
    """Of the increments of one weight: the median length, and the median length per effective step."""

    length: float
    per_step: float

    def longest(self, steps: float, multiple: float) -> float:
        """The longest increment allowed to a site of this many effective steps."""
        return multiple * max(self.length, steps * self.per_step)


def clip_factors(lengths: Mapping[str, Lengths], steps: Lengths, multiple: float) -> dict[str, dict[str, float]]:
    """By weight and site, of those that are clipped only: the factor below 1 of the increment.

    Args:
        lengths: by weight.
        steps: effective steps by site.
        multiple: of the usual length.
    """
    usual = {weight: _usual(of_sites, steps) for weight, of_sites in lengths.items()}
    longest = _longest(one for one in usual.values() if one is not None)
    found = {}
    for weight, of_sites in lengths.items():
        measure = usual[weight] or longest
        if measure is not None and (factors := _factors(of_sites, steps, measure, multiple)):
            found[weight] = factors
    return found


def _usual(lengths: Lengths, steps: Lengths) -> Usual | None:
    """None if too few sites moved the weight."""
    moved = {site: length for site, length in lengths.items() if length > 0}
    if len(moved) < ENOUGH_SITES:
        return None
    return Usual(median(moved.values()), median(length / steps[site] for site, length in moved.items()))


def _longest(usual: Iterable[Usual]) -> Usual | None:
    columns = list(zip(*usual, strict=True))
    return Usual(*map(max, columns)) if columns else None


def _factors(lengths: Lengths, steps: Lengths, usual: Usual, multiple: float) -> dict[str, float]:
    longest = {site: usual.longest(steps[site], multiple) for site in lengths}
    return {site: longest[site] / length for site, length in lengths.items() if length > longest[site]}
