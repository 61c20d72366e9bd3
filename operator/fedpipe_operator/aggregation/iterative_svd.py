"""The dominant right singular subspace of W = L·R by subspace iteration, in bounded memory and mostly in float32.

The energy ‖W‖² needs both Gram matrices in any case. If they fit `_GRAM_BUDGET`, they are stored and the iteration runs on coefficients,
in products of size n; for more components they are only summed up, and the iteration runs on W itself and reads each site's factors
twice a step.

Float32 halves the time, but its rounding errors would be visible where the spectrum decays. Its result is therefore verified: in float64,
the basis is orthonormalised, W·V computed, and the residual WᵀW·V − V·Θ measured. If the residual does not bound the lost energy tightly
enough, power iterations in float64 improve the subspace; if it is far too large for that, everything is repeated in float64.
"""

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple, Protocol

import numpy as np

from fedpipe_operator.aggregation import eigensolver
from fedpipe_operator.aggregation.factors import Float64
from fedpipe_operator.aggregation.gram_matrices import Energy, energy, gram_matrices
from fedpipe_operator.aggregation.stacked_factors import MEMORY_BUDGET, FactorBatches, LazyFactors, Real, StackShape

MIN_COMPONENTS: Final = 96
"""Number of components from which on this is faster than the direct algorithm (rank 16, d = 4096)."""
_GRAM_BUDGET: Final = MEMORY_BUDGET // 2
"""Bytes of float32 Gram matrices that are stored, out of `MEMORY_BUDGET`: those of 1144 components."""
_SMALL_BATCH: Final = MEMORY_BUDGET // 4
"""Bytes of a batch where a larger one saves no reading, so that the iteration's own blocks fit beside it."""
_MAX_ENERGY_ERROR: Final = 1e-6
"""Relative error of the energy above which float64 is needed."""
_MAX_CHECKS: Final = 3
"""Number of residuals that are measured in float64, with one power iteration between two of them."""
_MAX_EXCESS: Final = 100
"""Ratio of the error bound to the tolerated error above which power iterations do not help: a better approximation is needed."""

_LEAST_SHARE: Final = 0.5
"""Of the mean eigenvalue outside of the subspace: a flat spectrum has equal ones inside and outside, up to rounding."""


class LinearMap(Protocol):
    """W (d_out × d_in): stacked factors, or a dense matrix."""

    @property
    def shape(self) -> StackShape:
        """Of W."""

    def times(self, vectors: Real) -> Real:
        """W·v for vectors v (d_in × r): d_out × r."""

    def transposed_times(self, vectors: Real) -> Real:
        """Wᵀ·u for vectors u (d_out × r): d_in × r."""


class SingularSubspace(NamedTuple):
    """The dominant right singular subspace of W."""

    basis: Float64
    """V, rank × d_in, orthonormal."""
    image: Float64
    """W·Vᵀ, d_out × rank."""
    energy: float
    """‖W‖²_F."""


class _Approximation(NamedTuple):
    """Vectors that approximately span the subspace, and the energy of W."""

    vectors: Real
    """d_in × rank."""
    energy: Energy
    next_eigenvalue: float
    """An estimate of the largest eigenvalue of WᵀW outside the subspace."""


def dominant_subspace(summands: Sequence[LazyFactors], shape: StackShape) -> SingularSubspace | None:
    """The subspace, or None if W has too few independent components or the residual check fails in float64, too."""
    gram_bytes = 4 * shape.components**2
    grams_fit = gram_bytes <= _GRAM_BUDGET
    batches = FactorBatches(summands, shape, MEMORY_BUDGET - gram_bytes if grams_fit else _SMALL_BATCH)
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        approximation = (_iterate_on_grams if grams_fit else _iterate_on_products)(batches, dtype)
        subspace = _verify(batches, approximation) if approximation else None
        if subspace is not None:
            return subspace
    return None


def dominant_subspace_of(matrix: LinearMap, total: float) -> SingularSubspace | None:
    """The same of a matrix that is given as a linear map, with ‖W‖²_F."""
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        approximation = _iterate(matrix, Energy(total, 0.0), dtype)
        subspace = _verify(matrix, approximation) if approximation else None
        if subspace is not None:
            return subspace
    return None


def _iterate_on_grams(batches: FactorBatches, dtype: np.dtype[np.floating]) -> _Approximation | None:
    grams = gram_matrices(batches, dtype)
    operator = eigensolver.Operator(batches.shape.components, dtype, grams.right_times, grams.left_times)
    pairs = _dominant_eigenpairs(operator, batches.shape.rank, grams.energy)
    if pairs is None:
        return None
    vectors = batches.combine_rows(pairs.vectors.astype(dtype))
    return _Approximation(vectors, grams.energy, pairs.lowest_ritz_value + grams.energy.error)


def _iterate_on_products(batches: FactorBatches, dtype: np.dtype[np.floating]) -> _Approximation | None:
    return _iterate(batches, energy(batches.with_budget(MEMORY_BUDGET), dtype), dtype)


def _iterate(matrix: LinearMap, total: Energy, dtype: np.dtype[np.floating]) -> _Approximation | None:
    operator = eigensolver.Operator(matrix.shape.d_in, dtype, lambda v: v, lambda v: matrix.transposed_times(matrix.times(v)))
    pairs = _dominant_eigenpairs(operator, matrix.shape.rank, total)
    return pairs and _Approximation(pairs.vectors, total, pairs.lowest_ritz_value + total.error)


def _dominant_eigenpairs(operator: eigensolver.Operator, rank: int, total: Energy) -> eigensolver.Eigenpairs | None:
    if not total.error <= _MAX_ENERGY_ERROR * total.value:  # also if either is NaN
        return None
    return eigensolver.dominant_eigenpairs(operator, rank, total.value)


def _verify(batches: LinearMap, approximation: _Approximation) -> SingularSubspace | None:
    """The approximation, improved by power iterations if necessary, as soon as its residual is small enough; None if it never is."""
    vectors = approximation.vectors.astype(np.float64)
    first_precision = approximation.vectors.dtype
    for _ in range(_MAX_CHECKS):
        basis = np.linalg.qr(vectors).Q
        image = _float64(batches.times(basis))
        # Rounding in float32 only makes a residual larger: if it is small enough, the product in float64 is not needed.
        for precision in dict.fromkeys((first_precision, np.dtype(np.float64))):
            vectors = _float64(batches.transposed_times(image.astype(precision)))
            excess = _excess(approximation, basis, image, vectors, outside=_directions(batches.shape) - basis.shape[1])
            if excess <= 1:
                return SingularSubspace(basis.T, image, approximation.energy.value)
            if excess > _MAX_EXCESS:
                return None
        first_precision = np.dtype(np.float64)
    return None


def _directions(shape: StackShape) -> int:
    """The most directions in which W may have energy."""
    return min(shape.components, shape.d_out, shape.d_in)


def _excess(approximation: _Approximation, basis: Float64, image: Float64, back: Float64, *, outside: int) -> float:
    """How much more energy another subspace of this rank might capture, as a multiple of the tolerated error.

    Args:
        approximation: what `basis` was made from.
        basis: V, d_in × rank.
        image: W·V.
        back: Wᵀ·image.
        outside: the number of directions outside of the subspace in which W may have energy.
    """
    core = image.T @ image
    values, rotation = np.linalg.eigh(core)
    residuals = np.linalg.norm((back - basis @ core) @ rotation, axis=0)
    total, error = approximation.energy
    lost = total - error - float(values.sum())
    # Residuals show that the Ritz values are eigenvalues, not that none is missing. One of those outside is at least their mean: if that
    # is clearly above the least one inside, the subspace is not the dominant one.
    if lost > 0 and float(values[0]) < _LEAST_SHARE * lost / max(1, outside):
        return inf
    bound = eigensolver.error_bound(values, residuals, approximation.next_eigenvalue)
    return bound / eigensolver.tolerated_error(lost, total) if bound else 0.0


def _float64(array: Real) -> Float64:
    return array.astype(np.float64, copy=False)
