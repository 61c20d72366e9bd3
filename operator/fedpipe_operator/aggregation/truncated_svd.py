"""Truncated singular value decomposition of a sum of factor pairs; the dense matrix is not formed where factors are cheaper.

With W = L·R (the weights of the average inside R), each algorithm finds an orthonormal basis V (rank × d_in) of the dominant right
singular subspace; B = W·Vᵀ is the projection onto it, and one small rotation puts the components in singular-value order. The algorithms:

* `Direct`: R = C·Q by Cholesky of R·Rᵀ, then the eigenvectors of Cᵀ(LᵀL)C: one eigenproblem of size n, all in float64. The rows of R are
  scaled to norm 1 first; if they are too close to linear dependence for Cholesky, Householder QR is used. For few components or high
  ranks.
* `Iterative` (`iterative_svd`): subspace iteration on the two Gram matrices or, for very many components, on W itself, with memory that
  does not grow with the number of sites. In float32 first; the result is used only if a residual in float64 shows that it is as good,
  else the iteration is repeated in float64.
* `Dense`: W itself, the sum of one factor pair after the other, and the dominant eigenvectors of the smaller of WᵀW and W·Wᵀ. For weights
  that are smaller than their stacked factors, and where the iteration does not converge.

B is always computed in float64. Because the basis is orthonormal to rounding, the projection is exact on the span of the basis, so the
squared condition number of a Gram matrix affects only how much energy the basis captures, never the accuracy of the product itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation import eigensolver, iterative_svd
from fedpipe_operator.aggregation.factors import Float64
from fedpipe_operator.aggregation.gram_matrices import gram_matrices
from fedpipe_operator.aggregation.iterative_svd import SingularSubspace
from fedpipe_operator.aggregation.stacked_factors import MEMORY_BUDGET, FactorBatches, LazyFactors, StackedFactors, StackShape
from fedpipe_operator.aggregation.tensors import Float32

ROW_NORM: Final = 1 / math.sqrt(3)
"""Norm of a row of the global A: that of a freshly initialised one (entries uniform in ±1/√d_in), so that both learn at the same rate."""
_MIN_DISTANCE: Final = 1e-4
"""Distance of a unit row of R from the span of the rows before it, below which the Cholesky factor is too inaccurate to use."""
_MIN_BLOCKS: Final = 12
"""Size of a matrix, in iteration blocks, from which on iteration finds its dominant eigenvectors faster than `eigh` finds all."""
_DENSE_BUDGET: Final = 2 * MEMORY_BUDGET
"""Bytes of float64 matrices of one weight that may be held to save time: W and the smaller of its Gram matrices."""


class TruncatedSVD(NamedTuple):
    """B = UΣ/c (d_out × rank), A = c·Vᵀ (rank × d_in) with c = `ROW_NORM`, and the fraction of the energy Σσ² that they lack."""

    b: Float32
    a: Float32
    truncated_energy: float


def truncated_svd(summands: Sequence[LazyFactors], shape: StackShape) -> TruncatedSVD:
    """The best approximation of the sum of the summands by one of rank ≤ min(components, d_out, d_in).

    Each summand is read when it is needed: once where all fit `MEMORY_BUDGET`, else as often as the algorithm needs it.
    """
    subspace = ALGORITHMS[fastest_algorithm(shape)](summands, shape)
    return in_scaled_order(subspace, is_complete=shape.rank == shape.components or subspace.energy == 0)


def in_scaled_order(subspace: SingularSubspace, *, is_complete: bool) -> TruncatedSVD:
    """The factors of a subspace; `is_complete` says that nothing can lie outside of it."""
    b, a = _in_singular_value_order(subspace.image, subspace.basis)
    truncated_energy = 0.0 if is_complete else max(0.0, 1.0 - float(np.vdot(b, b)) / subspace.energy)
    return TruncatedSVD((b / ROW_NORM).astype(np.float32), (a * ROW_NORM).astype(np.float32), truncated_energy)


def fastest_algorithm(shape: StackShape) -> str:
    """The name of the fastest algorithm within the memory budgets."""
    small, large = sorted((shape.d_out, shape.d_in))
    can_iterate = 3 * eigensolver.block_size(shape.rank) <= min(shape.components, small)
    if shape.components > small and (8 * small * (small + large) <= _DENSE_BUDGET or not can_iterate):
        return "Dense"
    return "Iterative" if can_iterate and shape.components >= iterative_svd.MIN_COMPONENTS else "Direct"


def _iterative_subspace(summands: Sequence[LazyFactors], shape: StackShape) -> SingularSubspace:
    subspace = iterative_svd.dominant_subspace(summands, shape)
    if subspace is not None:
        return subspace
    return (_direct_subspace if shape.components <= min(shape.d_out, shape.d_in) else _dense_subspace)(summands, shape)


def _direct_subspace(summands: Sequence[LazyFactors], shape: StackShape) -> SingularSubspace:
    batches = FactorBatches(summands, shape, math.inf)
    (stacked,), grams = batches, gram_matrices(batches, np.dtype(np.float64))
    left_gram, right_gram = (np.asarray(gram, np.float64) for gram in (grams.rows[0].left, grams.rows[0].right))
    norms = np.sqrt(np.diag(right_gram))
    lower = _cholesky(right_gram, norms)
    if lower is None:
        return _qr_subspace(stacked, shape.rank)
    core = lower.T @ (left_gram * norms * norms[:, None]) @ lower
    vectors, energy = dominant_eigenvectors(core, shape.rank)
    basis = np.linalg.qr(stacked.combine_rows(np.linalg.solve(lower.T, vectors) / norms[:, None])).Q
    return SingularSubspace(basis.T, np.asarray(stacked.times(basis), np.float64), energy)


def _cholesky(gram: Float64, norms: Float64) -> Float64 | None:
    """The lower Cholesky factor of the Gram matrix of unit rows; None if they are too close to linear dependence."""
    if not norms.all():
        return None
    try:
        lower = np.asarray(np.linalg.cholesky(gram / norms / norms[:, None]), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    return lower if np.diag(lower).min() > _MIN_DISTANCE else None


def _qr_subspace(stacked: StackedFactors, rank: int) -> SingularSubspace:
    left = stacked.left.astype(np.float64)
    basis, triangle = np.linalg.qr(stacked.right.T * stacked.weights)
    core = left @ triangle.T
    vectors, energy = dominant_eigenvectors(core.T @ core, rank)
    return SingularSubspace((basis @ vectors).T, core @ vectors, energy)


def _dense_subspace(summands: Sequence[LazyFactors], shape: StackShape) -> SingularSubspace:
    dense = np.zeros((shape.d_out, shape.d_in))
    for summand in summands:
        weights, factors = summand.read()
        dense += (factors.b * weights) @ factors.a.astype(np.float64)
    is_wide = shape.d_out < shape.d_in
    gram = dense @ dense.T if is_wide else dense.T @ dense
    vectors, energy = dominant_eigenvectors(gram, shape.rank)
    basis = np.linalg.qr(dense.T @ vectors if is_wide else vectors).Q
    return SingularSubspace(basis.T, dense @ basis, energy)


def dominant_eigenvectors(gram: Float64, rank: int) -> tuple[Float64, float]:
    """The eigenvectors of the `rank` largest eigenvalues as columns, and the trace."""
    trace = float(np.trace(gram))
    if len(gram) >= _MIN_BLOCKS * eigensolver.block_size(rank):
        operator = eigensolver.Operator(len(gram), np.dtype(np.float64), lambda vectors: vectors, lambda vectors: gram @ vectors)
        pairs = eigensolver.dominant_eigenpairs(operator, rank, trace)
        if pairs is not None and pairs.error_bound <= eigensolver.tolerated_error(trace - float(pairs.values.sum()), trace):
            return pairs.vectors, trace
    return np.linalg.eigh(gram).eigenvectors[:, -rank:], trace


def _in_singular_value_order(b: Float64, basis: Float64) -> tuple[Float64, Float64]:
    """Rotate to singular-value order, largest first; the entry of largest magnitude in each row of the basis becomes positive."""
    rotation = np.linalg.eigh(b.T @ b).eigenvectors[:, ::-1]
    basis = rotation.T @ basis
    peaks = basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)]
    signs = np.where(peaks < 0, -1.0, 1.0)
    return b @ (rotation * signs), basis * signs[:, None]


ALGORITHMS: Final[dict[str, Callable[[Sequence[LazyFactors], StackShape], SingularSubspace]]] = {
    "Direct": _direct_subspace,
    "Iterative": _iterative_subspace,
    "Dense": _dense_subspace,
}
