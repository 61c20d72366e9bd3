"""The dominant eigenvectors of a large symmetric operator by subspace iteration with a Chebyshev filter.

A block of vectors is refined by Rayleigh–Ritz; between two such steps, a polynomial in the operator damps the components below the block's
lowest Ritz value and amplifies the others (Zhou, Saad, Tiago & Chelikowsky, J. Comput. Phys. 219 (2006) 172, algorithm 4.1). A flat
spectrum takes about twenty applications of the operator, a decaying one two or three. Only three blocks are held in memory.

The operator may be given on coefficients: W = L·R acts on vectors Rᵀz as z ↦ (LᵀL)(R·Rᵀ)z, where inner products are zᵀ(R·Rᵀ)w. Then
no array of size d is used.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation.factors import Float64
from fedpipe_operator.aggregation.stacked_factors import Real

_MAX_STEPS: Final = 60
"""Applications of the operator. A flat spectrum (independent random factors, the slowest case met) takes 24; decaying ones take fewer."""
_MAX_DEGREE: Final = 8
_CONVERGED_RESIDUAL: Final = 0.01
"""Residual of a converged vector, relative to the block's lowest Ritz value."""
_SEPARATION: Final = 10
"""Smallest Ritz value of a vector that may be deflated, relative to the block's lowest."""
_STALL_RATIO: Final = 0.8
"""Error bound after a step relative to the one before: above it, rounding errors prevent further progress."""
_MAX_AMPLIFICATION: Final = {"float32": 1e5, "float64": 1e12}
"""How much the filter may amplify the first vector relative to the last: more would bury the last in the first one's rounding errors."""
_TOLERANCE: Final = 1e-7
"""By how much the truncation error ‖W − BA‖ may exceed that of the best approximation, relative to ‖W‖."""
_RANK_TOLERANCE: Final = {"float32": 1e-6, "float64": 1e-12}
"""Squared length of a unit combination of coefficients below which its direction is rounding error."""


class Operator(NamedTuple):
    """z ↦ outer(inner(z)), symmetric in the inner product zᵀ·inner(w). Arrays are size × columns, of this dtype."""

    size: int
    dtype: np.dtype[Any]
    inner: Callable[[Real], Real]
    outer: Callable[[Real], Real]


class Eigenpairs(NamedTuple):
    """The dominant approximate eigenvectors and eigenvalues."""

    vectors: Float64
    """size × rank, orthonormal in the operator's inner product, largest eigenvalue first."""
    values: Float64
    """Their Ritz values."""
    lowest_ritz_value: float
    """The lowest Ritz value of the block: an estimate of the largest eigenvalue outside it."""
    error_bound: float
    """Bound on the sum of the eigenvalues minus the sum of their Ritz values."""


class _Block(NamedTuple):
    """Ritz vectors, largest value first, and their images under the operator."""

    vectors: Float64
    images: Float64
    values: Float64
    residuals: Float64
    """Norms of images − values · vectors."""


def block_size(rank: int) -> int:
    """Columns of a block: guard vectors beside the wanted ones create the spectral gap that the filter needs."""
    return rank + max(8, rank // 2)


def dominant_eigenpairs(operator: Operator, rank: int, trace: float) -> Eigenpairs | None:
    """The pairs of the `rank` largest eigenvalues of a positive semidefinite operator, iterated until the error is tolerated or stalls.

    None if there are no more than `rank` independent directions: use a direct method then.
    """
    block = _rayleigh_ritz(operator, np.random.default_rng(0).standard_normal((operator.size, block_size(rank))))
    steps, previous_bound = 1, math.inf
    while len(block.values) > rank:
        pairs, converged = _leading_pairs(block, rank), _converged_count(block)
        degree = _filter_degree(block, converged, _MAX_AMPLIFICATION[operator.dtype.name])
        stalls = pairs.error_bound > _STALL_RATIO * previous_bound and (degree == 1 or steps > _MAX_STEPS // 2)
        if stalls or steps >= _MAX_STEPS or pairs.error_bound <= tolerated_error(trace - float(pairs.values.sum()), trace):
            return pairs
        block = _rayleigh_ritz(operator, _chebyshev_filter(operator, block, converged, degree))
        steps, previous_bound = steps + degree, pairs.error_bound
    return None


def tolerated_error(truncated: float, total: float) -> float:
    """The energy δ that may be lost beyond the truncated energy: √(truncated + δ) = √truncated + tolerance · √total."""
    return total * (_TOLERANCE**2 + 2 * _TOLERANCE * math.sqrt(max(0.0, truncated) / total)) if total > 0 else 0.0


def error_bound(values: Float64, residuals: Float64, next_eigenvalue: float) -> float:
    """Σ over Ritz values θ with residual r of the distance to their eigenvalues: at most r, and r² / (θ − next) (Parlett, §11.7).

    The next eigenvalue is only estimated (from the block), so that half of the distance to it is used.
    """
    gaps = np.maximum((values - next_eigenvalue) / 2, np.finfo(float).tiny)
    return float(np.minimum(residuals, residuals**2 / gaps).sum())


def _leading_pairs(block: _Block, rank: int) -> Eigenpairs:
    lowest = float(block.values[-1])
    values = block.values[:rank]
    return Eigenpairs(block.vectors[:, :rank], values, lowest, error_bound(values, block.residuals[:rank], lowest))


def _rayleigh_ritz(operator: Operator, vectors: Real) -> _Block:
    basis = np.linalg.qr(vectors.astype(np.float64)).Q
    inner = _float64(operator.inner(basis.astype(operator.dtype)))
    images = _float64(operator.outer(inner.astype(operator.dtype)))
    whitening = _whitening(basis.T @ inner, _RANK_TOLERANCE[operator.dtype.name])
    core = whitening.T @ (inner.T @ images) @ whitening
    values, rotation = np.linalg.eigh((core + core.T) / 2)
    rotation = whitening @ rotation[:, ::-1]
    values = values[::-1]
    ritz, images = basis @ rotation, images @ rotation
    residuals = images - ritz * values
    squared_norms = np.einsum("ij,ij->j", residuals, operator.inner(residuals.astype(operator.dtype)))
    return _Block(ritz, images, values, np.sqrt(np.maximum(0.0, _float64(squared_norms))))


def _whitening(metric: Float64, rank_tolerance: float) -> Float64:
    """T with Tᵀ·metric·T = 1; directions of (numerically) zero length are left out."""
    lengths, directions = np.linalg.eigh((metric + metric.T) / 2)
    independent = lengths > rank_tolerance * lengths[-1]
    return _float64(directions[:, independent] / np.sqrt(lengths[independent]))


def _converged_count(block: _Block) -> int:
    """Number of leading vectors whose Ritz value is far above the block's lowest and whose residual is small: they may be deflated."""
    lowest = block.values[-1]
    converged = (block.residuals <= _CONVERGED_RESIDUAL * lowest) & (block.values >= _SEPARATION * lowest)
    return int(np.argmin(converged))


def _filter_degree(block: _Block, converged: int, max_amplification: float) -> int:
    """The highest degree within the amplification; at x, in units in which the damped interval is [−1, 1], that is cosh(m · acosh x)."""
    highest, lowest = float(block.values[converged]), float(block.values[-1])
    if lowest * max_amplification <= highest:
        return 1
    top = max(2 * highest / lowest - 1, 1 + 1e-9)
    return max(1, min(_MAX_DEGREE, int(math.acosh(max_amplification) / math.acosh(top))))


def _chebyshev_filter(operator: Operator, block: _Block, converged: int, degree: int) -> Real:
    """The Chebyshev polynomial of this degree on [0, lowest Ritz value] of the operator, deflated by its converged vectors, on the block.

    Converged vectors stay unchanged: if they were amplified with the others, their rounding errors would exceed these.
    """
    half = float(block.values[-1]) / 2
    deflated, active = block.vectors[:, :converged].astype(operator.dtype), block.vectors[:, converged:]
    eigenvalues = block.values[:converged, None].astype(operator.dtype)

    def apply(vectors: Real) -> Real:
        inner = operator.inner(vectors)
        return operator.outer(inner) - deflated @ (eigenvalues * (deflated.T @ inner))

    images = block.images[:, converged:]
    if degree > 1:
        previous, images = active.astype(operator.dtype), ((images - half * active) / half).astype(operator.dtype)
        for _ in range(degree - 1):
            previous, images = images, apply(images) * (2 / half) - 2 * images - previous
    return np.hstack([block.vectors[:, :converged], images])


def _float64(array: Real) -> Float64:
    return array.astype(np.float64, copy=False)
