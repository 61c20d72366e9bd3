"""Splits rows among sites unevenly: for each class, the shares of the sites are drawn from a Dirichlet distribution.

The usual way to simulate heterogeneous (non-IID) sites with one data set (Hsu et al., arXiv 1909.06335): the smaller alpha,
the fewer sites have rows of the same class. Pure: the random numbers come from the seed.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Shares = dict[str, npt.NDArray[np.float64]]
"""By class: the share of each site; the sum is 1."""


def dirichlet_shares(classes: Sequence[str], sizes: Sequence[float], *, alpha: float, seed: int) -> Shares:
    """The shares of the sites for each class; the mean over all classes is proportional to `sizes`.

    Args:
        classes: the class of each row, for example its label.
        sizes: the relative size of each site, in any unit.
        alpha: mean concentration; 0.5 is quite uneven, 100 almost even.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    concentration = alpha * len(sizes) * np.asarray(sizes) / sum(sizes)
    return {class_: random.dirichlet(concentration) for class_ in sorted(set(classes))}


def split_rows(classes: Sequence[str], shares: Shares, *, seed: int) -> list[list[int]]:
    """The rows of each site, as positions in `classes`, in random order. Every row goes to exactly one site."""
    random = np.random.default_rng(seed)
    sites: list[list[int]] = [[] for _ in next(iter(shares.values()))]
    for class_, rows in sorted(_by_class(classes).items()):
        cuts = np.round(np.cumsum(shares[class_])[:-1] * len(rows)).astype(int)
        for site, site_rows in zip(sites, np.split(random.permutation(rows), cuts), strict=True):
            site.extend(int(row) for row in site_rows)
    return [[site[position] for position in random.permutation(len(site))] for site in sites]


def balanced_sample(classes: Sequence[str], per_class: int, *, seed: int) -> list[int]:
    """Sorted positions of `per_class` random rows of each class (all rows of a class that has fewer)."""
    random = np.random.default_rng(seed)
    return sorted(int(row) for _, rows in sorted(_by_class(classes).items()) for row in random.permutation(rows)[:per_class])


def _by_class(classes: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for position, class_ in enumerate(classes):
        rows[class_].append(position)
    return rows
