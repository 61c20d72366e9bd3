"""Which increments are longer than a multiple of what is usual in the round, and by what factor they are shortened.

Sites honestly take very different numbers of steps, and the normalization divides each increment by its site's effective steps: so lengths
are compared per step, as they count. Usual is the median over the sites that moved a weight; it holds while more than half of them are
honest. A weight that fewer than three sites moved has no such median: there, the longest that is usual in any weight which three or more
sites moved is the measure, if there is one.

Norm clipping as a defence: Sun et al., arXiv 1911.07963, with a fixed bound; a bound made of the round itself: Allouah et al., arXiv
2405.14432.
"""

from collections.abc import Mapping
from statistics import median
from typing import Final

MULTIPLE: Final = 3.0
"""Default. An increment under Adam grows between √τ and τ, so that those of slow sites are longer per step: up to 1.8 times the median
with steps from 40 to 5 and 2.4 times with steps from 70 to 5, in the first three rounds of `benchmarks/robustness`."""
ENOUGH_SITES: Final = 3
"""Of two sites, no median says which one is the outlier."""

Lengths = Mapping[str, float]
"""By site: the length of its increment of one weight, per effective step."""


def clip_factors(lengths: Mapping[str, Lengths], multiple: float) -> dict[str, dict[str, float]]:
    """By weight and site, of those that are clipped only: the factor below 1 of the increment.

    Args:
        lengths: by weight.
        multiple: of the usual length.
    """
    usual = {weight: _usual(of_sites) for weight, of_sites in lengths.items()}
    longest = max((one for one in usual.values() if one is not None), default=None)
    found = {}
    for weight, of_sites in lengths.items():
        measure = usual[weight] or longest
        if measure is not None and (factors := _factors(of_sites, multiple * measure)):
            found[weight] = factors
    return found


def _usual(lengths: Lengths) -> float | None:
    """The median; None if too few sites moved the weight."""
    moved = [length for length in lengths.values() if length > 0]
    return median(moved) if len(moved) >= ENOUGH_SITES else None


def _factors(lengths: Lengths, longest: float) -> dict[str, float]:
    return {site: longest / length for site, length in lengths.items() if length > longest}
