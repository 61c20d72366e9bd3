"""The dominant eigenvectors of a large symmetric operator by subspace iteration with a Chebyshev filter.

A block of vectors is refined by Rayleigh–Ritz; between two of these, a polynomial in the operator damps what lies below the block's
lowest Ritz value and lifts the rest (Zhou, Saad, Tiago & Chelikowsky, J. Comput. Phys. 219 (2006) 172, algorithm 4.1). A flat spectrum
takes some twenty applications, a decaying one two or three. Three blocks are all that is held.

The operator may be given on coefficients: W = L·R acts on vectors Rᵀz as z ↦ (LᵀL)(R·Rᵀ)z, where inner products are zᵀ(R·Rᵀ)w. Then
nothing of size d is touched.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation.stack import Real
from fedpipe_operator.aggregation.values import Float64

TYPICAL_STEPS: Final = 24
"""Applications that a flat spectrum takes (independent random factors, the slowest case met); decaying ones take fewer."""
_MOST_STEPS: Final = 60
_HIGHEST_DEGREE: Final = 8
_SETTLED: Final = 0.01
_FAR: Final = 10
_PROGRESS: Final = 0.8
"""What is missed after a step as a share of what was before: above it, rounding is met."""
_MOST_GROWTH: Final = {"float32": 1e5, "float64": 1e12}
"""How much the filter may lift the first vector above the last: more would drown the last in the first one's rounding errors."""
_TOLERANCE: Final = 1e-7
"""How much larger than the best one the cut's error ‖W − BA‖ may be, as a share of ‖W‖."""
_DEPENDENT: Final = {"float32": 1e-6, "float64": 1e-12}
"""Squared length of a unit combination of coefficients below which its direction is rounding error."""


class Operator(NamedTuple):
    """z ↦ outer(inner(z)), symmetric in the inner product zᵀ·inner(w). Arrays are size × columns, of this dtype."""

    size: int
    dtype: np.dtype[Any]
    inner: Callable[[Real], Real]
    outer: Callable[[Real], Real]


class Found(NamedTuple):
    """The best of the block."""

    vectors: Float64
    """size × rank, orthonormal in the operator's inner product, largest eigenvalue first."""
    values: Float64
    """Their Ritz values."""
    floor: float
    """The lowest Ritz value of the block: about the largest eigenvalue outside it."""
    missed: float
    """Bound on the sum of eigenvalues that better vectors would have caught beside these."""


class _Block(NamedTuple):
    """Ritz vectors, largest value first, and what the operator makes of them."""

    vectors: Float64
    images: Float64
    values: Float64
    residuals: Float64
    """Lengths of images − values · vectors."""


def block_size(rank: int) -> int:
    """Columns of a block: guards beside the wanted vectors make the filter's gap."""
    return rank + max(8, rank // 2)


def dominant(operator: Operator, rank: int, whole: float) -> Found | None:
    """The vectors of the `rank` largest eigenvalues of an operator ≥ 0 with the trace `whole`, until `missed` is bearable or stalls.

    None if there are no more independent directions than `rank`: use a direct way then.
    """
    block = _ritz(operator, np.random.default_rng(0).standard_normal((operator.size, block_size(rank))))
    steps, before = 1, math.inf
    while len(block.values) > rank:
        found, settled = _best(block, rank), _settled(block)
        degree = _degree(block, settled, _MOST_GROWTH[operator.dtype.name])
        stalls = found.missed > _PROGRESS * before and (degree == 1 or steps > _MOST_STEPS // 2)
        if stalls or steps >= _MOST_STEPS or found.missed <= bearable(whole - float(found.values.sum()), whole):
            return found
        block = _ritz(operator, _filtered(operator, block, settled, degree))
        steps, before = steps + degree, found.missed
    return None


def bearable(lost: float, whole: float) -> float:
    """The energy δ that may be missed: √(lost + δ) = √lost + tolerance · √whole."""
    return whole * (_TOLERANCE**2 + 2 * _TOLERANCE * math.sqrt(max(0.0, lost) / whole)) if whole > 0 else 0.0


def missed(values: Float64, residuals: Float64, floor: float) -> float:
    """Σ over Ritz values θ of how much larger their eigenvalues are: at most r, and r² / (θ − what is outside) (Parlett, §11.7).

    What is outside is known from the block only, so that half the distance to its lowest value is taken.
    """
    gaps = np.maximum((values - floor) / 2, np.finfo(float).tiny)
    return float(np.minimum(residuals, residuals**2 / gaps).sum())


def _best(block: _Block, rank: int) -> Found:
    floor = float(block.values[-1])
    values = block.values[:rank]
    return Found(block.vectors[:, :rank], values, floor, missed(values, block.residuals[:rank], floor))


def _ritz(operator: Operator, vectors: Real) -> _Block:
    basis = np.linalg.qr(vectors.astype(np.float64)).Q
    inner = _float64(operator.inner(basis.astype(operator.dtype)))
    images = _float64(operator.outer(inner.astype(operator.dtype)))
    whitening = _whitening(basis.T @ inner, _DEPENDENT[operator.dtype.name])
    core = whitening.T @ (inner.T @ images) @ whitening
    values, rotation = np.linalg.eigh((core + core.T) / 2)
    rotation = whitening @ rotation[:, ::-1]
    values = values[::-1]
    ritz, images = basis @ rotation, images @ rotation
    residue = images - ritz * values
    lengths = np.einsum("ij,ij->j", residue, operator.inner(residue.astype(operator.dtype)))
    return _Block(ritz, images, values, np.sqrt(np.maximum(0.0, _float64(lengths))))


def _whitening(metric: Float64, dependent: float) -> Float64:
    """T with Tᵀ·metric·T = 1; directions of no length are left out."""
    lengths, directions = np.linalg.eigh((metric + metric.T) / 2)
    kept = lengths > dependent * lengths[-1]
    return _float64(directions[:, kept] / np.sqrt(lengths[kept]))


def _settled(block: _Block) -> int:
    """Leading vectors, far above the block's lowest value, whose residual is small against it: the filter may take them out."""
    lowest = block.values[-1]
    settled = (block.residuals <= _SETTLED * lowest) & (block.values >= _FAR * lowest)
    return int(np.argmin(settled))


def _degree(block: _Block, settled: int, most_growth: float) -> int:
    """As high as the growth allows: cosh(m · acosh x) is the filter's at x, in units in which the damped part is [−1, 1]."""
    highest, lowest = float(block.values[settled]), float(block.values[-1])
    if lowest * most_growth <= highest:
        return 1
    top = max(2 * highest / lowest - 1, 1 + 1e-9)
    return max(1, min(_HIGHEST_DEGREE, int(math.acosh(most_growth) / math.acosh(top))))


def _filtered(operator: Operator, block: _Block, settled: int, degree: int) -> Real:
    """The Chebyshev polynomial of this degree on [0, the lowest Ritz value] of the operator without its settled part, times the block.

    Settled vectors stay as they are: were they lifted with the others, these would drown in their rounding errors.
    """
    half = float(block.values[-1]) / 2
    known, loose = block.vectors[:, :settled].astype(operator.dtype), block.vectors[:, settled:]
    shares = block.values[:settled, None].astype(operator.dtype)

    def deflated(vectors: Real) -> Real:
        inner = operator.inner(vectors)
        return operator.outer(inner) - known @ (shares * (known.T @ inner))

    images = block.images[:, settled:]
    if degree > 1:
        before, images = loose.astype(operator.dtype), ((images - half * loose) / half).astype(operator.dtype)
        for _ in range(degree - 1):
            before, images = images, deflated(images) * (2 / half) - 2 * images - before
    return np.hstack([block.vectors[:, :settled], images])


def _float64(array: Real) -> Float64:
    return array.astype(np.float64, copy=False)
