"""Deals rows among sites unevenly: each kind of row in shares of its own, drawn from a Dirichlet distribution.

The usual way to make data of one place look like data of several (Hsu et al., arXiv 1909.06335): the smaller alpha, the
fewer sites have rows of the same kind. Pure: chance comes from the seed.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Shares = dict[str, npt.NDArray[np.float64]]
"""By kind of row: each site's share, adding up to 1."""


def uneven_shares(kinds: Sequence[str], sizes: Sequence[float], *, alpha: float, seed: int) -> Shares:
    """Shares of the sites for each kind that occurs; on average over kinds, a site gets its part of `sizes`.

    Args:
        kinds: the kind of each row (its label, say).
        sizes: how much of everything each site should have, in any unit.
        alpha: mean concentration; 0.5 is quite uneven, 100 almost even.
        seed: of the draw.
    """
    chance = np.random.default_rng(seed)
    concentration = alpha * len(sizes) * np.asarray(sizes) / sum(sizes)
    return {kind: chance.dirichlet(concentration) for kind in sorted(set(kinds))}


def dealt(kinds: Sequence[str], shares: Shares, *, seed: int) -> list[list[int]]:
    """The rows of each site, as positions in `kinds`, in an order by chance. Every row goes to exactly one site."""
    chance = np.random.default_rng(seed)
    sites: list[list[int]] = [[] for _ in next(iter(shares.values()))]
    for kind, rows in sorted(_by_kind(kinds).items()):
        cuts = np.round(np.cumsum(shares[kind])[:-1] * len(rows)).astype(int)
        for site, part in zip(sites, np.split(chance.permutation(rows), cuts), strict=True):
            site.extend(int(row) for row in part)
    return [[site[position] for position in chance.permutation(len(site))] for site in sites]


def even_sample(kinds: Sequence[str], per_kind: int, *, seed: int) -> list[int]:
    """Positions of `per_kind` rows of each kind (all where there are fewer), drawn by chance, in their order."""
    chance = np.random.default_rng(seed)
    return sorted(int(row) for _, rows in sorted(_by_kind(kinds).items()) for row in chance.permutation(rows)[:per_kind])


def _by_kind(kinds: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for position, kind in enumerate(kinds):
        rows[kind].append(position)
    return rows
