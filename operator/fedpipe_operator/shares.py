"""The bound on a site's share of a round, and of what is measured of it, so that no site decides it alone, whatever it says of its data.

What exceeds the bound goes to the other sites in proportion to their shares, again and again until none exceeds it (water-filling). The
order of the shares stays, and every site below the bound has at least what it had. The same in each weight: over the sites that trained it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

DEFAULT_MAX_SHARE: Final = 0.5
"""Where three or more sites contribute: none outvotes all the others."""
_ENOUGH_SITES: Final = 3


def max_share(contributors: int, spec: float | None) -> float:
    """`spec`; without it 1/2 for three contributors or more, and no bound for one or two, which would only make two of them equal."""
    if spec is not None:
        return spec
    return DEFAULT_MAX_SHARE if contributors >= _ENOUGH_SITES else 1.0


def bounded_shares(weights: Sequence[float], spec: float | None) -> tuple[float, ...]:
    """Each contributor's share by these weights, whose sum is above 0; none is above `max_share`, as far as that can be kept (`capped`)."""
    total = sum(weights)
    return capped([weight / total for weight in weights], max_share(len(weights), spec))


def counted_samples(samples: Mapping[str, int]) -> dict[str, int]:
    """The samples of each site as they count where sites are weighed: of three or more, none has more than all the others together.

    A site's profile says how many it has. What is planned for all of them does not follow from the word of one.
    """
    total = sum(samples.values())
    return {name: min(count, total - count) if len(samples) >= _ENOUGH_SITES else count for name, count in samples.items()}


def capped(shares: Sequence[float], most: float) -> tuple[float, ...]:
    """Shares that add up to 1, none above `most`, made of `shares`, which add up to 1.

    Unchanged where none exceeds it; equal where it cannot be kept (`most` times their number is below 1).
    """
    before = np.array(shares, dtype=np.float64)
    if not (before > most).any():
        return tuple(shares)
    if most * len(before) <= 1:
        return (1 / len(before),) * len(before)
    after, full = before, np.zeros(len(before), dtype=bool)
    while (after > most).any():
        full |= after > most
        rest, left = before[~full], 1 - most * np.count_nonzero(full)
        weights = rest if rest.sum() > 0 else np.ones(len(rest))
        after = np.full(len(before), most)
        after[~full] = left * (weights / weights.sum())
    return tuple(after.tolist())
