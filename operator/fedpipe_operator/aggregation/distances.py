"""The squared distances between the sites' increments of one weight in the space of the products, whatever their ranks.

With the components C_j of all sites and of the global factors stacked, D_k = Σ_j m_kj C_j, and ‖D_i − D_j‖² follows from the Gram matrix
of the components: no d_out × d_in matrix is formed, and two batches of components are in memory at a time. As in `lengths`, a bound on
the rounding error is added, so that no site can seem closer to another than it is.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from fedpipe_operator.aggregation import lengths
from fedpipe_operator.aggregation.factors import Factors, Float64, SiteFactorReaders, WeightUpdates
from fedpipe_operator.aggregation.gram_matrices import component_products
from fedpipe_operator.aggregation.stacked_factors import MEMORY_BUDGET, FactorBatches, LazyFactors, StackShape, WeightedFactors
from fedpipe_operator.aggregation.tensors import Float32

_GLOBAL: Final = -1
"""The owner of a global component."""


def of_products(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None) -> Float64:
    """(n + 1) × (n + 1): ‖pace_i D_i − pace_j D_j‖² for the n sites in order, and last for D = 0: a site that does not train the weight."""
    batches = FactorBatches(_summands(updates, readers, previous), _shape(updates), MEMORY_BUDGET)
    owners = np.repeat([_GLOBAL, *range(len(updates.sites))], [updates.global_rank, *(site.rank for site in updates.sites)])
    size = len(updates.sites) + 1
    gram, sizes = np.zeros((size, size)), np.zeros(size)
    for rows, columns, block in component_products(batches):
        left, right = _coefficients(updates, owners, rows), _coefficients(updates, owners, columns)
        part = left @ block @ right.T
        gram[:-1, :-1] += part if rows == columns else part + part.T
        if rows == columns:
            sizes[:-1] += np.abs(left) @ np.sqrt(np.maximum(0.0, np.diag(block)))
    squares = np.diag(gram)
    error = lengths.rounding(updates.d_out, updates.d_in, len(owners)) * (sizes[:, None] + sizes) ** 2
    found: Float64 = np.maximum(0.0, squares[:, None] + squares - 2 * gram) + error
    np.fill_diagonal(found, 0.0)
    return found


def of_tensors(tensors: Sequence[Float32], paces: Sequence[float], start: Float32 | None) -> Float64:
    """The same for a tensor that is trained as a whole; without `start`, of the tensors themselves: what they have in common cancels."""
    increments = [tensor.astype(np.float64) for tensor in tensors]
    if start is not None:
        increments = [pace * (one - start) for pace, one in zip(paces, increments, strict=True)]
    found = np.zeros((len(increments),) * 2)
    for i, one in enumerate(increments):
        for j in range(i):
            difference = one - increments[j]
            found[i, j] = found[j, i] = float(np.vdot(difference, difference))
    return found


def _summands(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None) -> list[LazyFactors]:
    """The components as they are; a site's scale and pace are in its coefficients."""

    def of_site(index: int) -> WeightedFactors:
        site = readers[index]()
        return WeightedFactors(np.full(len(site.factors.a), site.scale), site.factors)

    own = [LazyFactors(site.rank, partial(of_site, index)) for index, site in enumerate(updates.sites)]
    if previous is None:
        return own
    kept = WeightedFactors(np.ones(len(previous.a)), previous)
    return [LazyFactors(len(previous.a), lambda: kept), *own]


def _shape(updates: WeightUpdates) -> StackShape:
    components = updates.global_rank + sum(site.rank for site in updates.sites)
    return StackShape(d_out=updates.d_out, d_in=updates.d_in, components=components, rank=0)


def _coefficients(updates: WeightUpdates, owners: np.ndarray, part: slice) -> Float64:
    """m_kj pace_k for these components: 1 for the site's own, −1 for the global ones that it started from."""
    owner, position = owners[part], np.arange(len(owners))[part]
    ranks = np.array([site.rank for site in updates.sites])[:, None]
    own = (owner == np.arange(len(updates.sites))[:, None]).astype(np.float64)
    started = (owner == _GLOBAL) & (position < ranks)
    paces: Float64 = np.array([site.pace for site in updates.sites])[:, None]
    signed: Float64 = (own - started) * paces
    return signed
