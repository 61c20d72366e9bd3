"""The truncated singular value decomposition of one dense matrix in float32: what a rule needs that works coordinate by coordinate.

The only matrices of the weight's size are the one that is given and, where iteration does not pay or does not converge, the smaller Gram
matrix in float64 (128 MB at 4096 × 4096).
"""

from functools import partial

import numpy as np

from fedpipe_operator.aggregation import eigensolver, iterative_svd
from fedpipe_operator.aggregation.factors import Float64
from fedpipe_operator.aggregation.iterative_svd import SingularSubspace
from fedpipe_operator.aggregation.stacked_factors import Real, StackShape, inner_products, multiply, multiply_transposed
from fedpipe_operator.aggregation.tensors import Float32
from fedpipe_operator.aggregation.truncated_svd import TruncatedSVD, dominant_eigenvectors, in_scaled_order


class DenseMatrix:
    """W (d_out × d_in) as the operator that `iterative_svd` works on."""

    def __init__(self, dense: Float32, rank: int) -> None:
        d_out, d_in = dense.shape
        self.dense, self.shape = dense, StackShape(d_out=d_out, d_in=d_in, components=min(d_out, d_in), rank=rank)

    def times(self, vectors: Real) -> Real:
        """W·v: d_out × r."""
        return multiply(self.dense, vectors)

    def transposed_times(self, vectors: Real) -> Real:
        """Wᵀ·u: d_in × r."""
        return multiply_transposed(self.dense, vectors)

    def energy(self) -> float:
        """‖W‖²_F, summed in float64."""
        return float(sum(np.vdot(row, row) for row in map(partial(np.asarray, dtype=np.float64), self.dense)))


def truncated_svd_of(dense: Float32, rank: int) -> TruncatedSVD:
    """The best approximation of rank ≤ min(d_out, d_in), in the form of `truncated_svd`."""
    matrix = DenseMatrix(dense, rank)
    energy = matrix.energy()
    can_iterate = energy > 0 and 3 * eigensolver.block_size(rank) <= min(dense.shape)
    subspace = iterative_svd.dominant_subspace_of(matrix, energy) if can_iterate else None
    return in_scaled_order(subspace or _by_gram_matrix(dense, rank, energy), is_complete=rank == min(dense.shape) or energy == 0)


def _by_gram_matrix(dense: Float32, rank: int, energy: float) -> SingularSubspace:
    is_wide = dense.shape[0] < dense.shape[1]
    gram: Float64 = np.asarray(inner_products(dense.T, dense.T, np.float64) if is_wide else inner_products(dense, dense, np.float64))
    vectors, _ = dominant_eigenvectors(gram, rank)
    basis = np.linalg.qr(multiply_transposed(dense, vectors) if is_wide else vectors).Q
    return SingularSubspace(basis.T, np.asarray(multiply(dense, basis), np.float64), energy)
