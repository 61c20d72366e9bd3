"""A stack of components as one factor pair of a given rank, without the dense matrix where factors are cheaper.

With W = L·R (the weights of the average inside R), each way finds an orthonormal basis V (rank × d_in) of the dominant right singular
space; B = W·Vᵀ then holds what the space carries, and one small rotation puts the components in singular-value order. The way is chosen
by counted flops:

* `Gram`: R = C·Q by Cholesky of R·Rᵀ, then the eigenvectors of Cᵀ(LᵀL)C. Two symmetric products and one eigenproblem of size n.
  Rows of R are scaled to norm 1 first; if they are too dependent for a Cholesky in float64, Householder QR takes its place.
* `Krylov`: the same two products, then block Lanczos instead of the eigenproblem; for many components and a low rank.
* `Dense`: W itself, one site added after the other, and the dominant eigenvectors of the smaller of WᵀW and W·Wᵀ. Taken whenever the
  stack would be wider than the weight, so that memory has a bound that no number of sites exceeds.

All in float64. Projecting with a basis that is orthonormal to rounding makes the result exact for what the basis spans, so the
squared condition of a Gram matrix costs accuracy only in how well the energy is caught, never in the product itself.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation import krylov
from fedpipe_operator.aggregation.stack import Piece, Size, Stack, stack
from fedpipe_operator.aggregation.tensors import Float32
from fedpipe_operator.aggregation.values import ROW_NORM, Float64

_EIGH: Final = 25
"""An eigendecomposition of size n takes the time of about this many n³ flops of matrix product (numpy, 2 cores, n = 256 to 1024)."""
_THIN: Final = 3
"""A product with a thin block takes the time of this many times its flops: it waits for memory."""
_DEPENDENT: Final = 1e-4
"""Distance of a unit row of R from the span of those before it, below which the Cholesky factor is too inaccurate to use."""


class Factorised(NamedTuple):
    """B = UΣ/c (d_out × rank), A = c·Vᵀ (rank × d_in), and 1 − the share of the energy Σσ² that they hold."""

    b: Float32
    a: Float32
    truncated_energy: float


class Space(NamedTuple):
    """The dominant right singular space of W."""

    basis: Float64
    """V, rank × d_in, orthonormal."""
    image: Float64
    """W·Vᵀ, d_out × rank."""
    energy: float
    """‖W‖²_F."""


class Way(NamedTuple):
    """A way to the space, and the flops that it takes."""

    space: Callable[[Iterable[Piece], Size], Space]
    flops: Callable[[Size], float]


def factorise(pieces: Iterable[Piece], size: Size) -> Factorised:
    """The best approximation of the sum of the pieces of this rank ≤ min(components, d_out, d_in). Pieces are taken one at a time."""
    space = WAYS[cheapest(size)].space(pieces, size)
    b, a = _ordered(space.image, space.basis)
    whole = size.rank == size.components or space.energy == 0
    truncated = 0.0 if whole else max(0.0, 1.0 - float(np.vdot(b, b)) / space.energy)
    return Factorised((b / ROW_NORM).astype(np.float32), (a * ROW_NORM).astype(np.float32), truncated)


def cheapest(size: Size) -> str:
    """The name of the way that takes the fewest flops; of equals, the first."""
    if size.components > min(size.d_out, size.d_in):
        return "Dense"
    return min(WAYS, key=lambda name: WAYS[name].flops(size))


def _gram_flops(size: Size) -> float:
    return (size.d_out + size.d_in) * size.components**2 + (4 + _EIGH) * size.components**3


def _krylov_flops(size: Size) -> float:
    return (size.d_out + size.d_in) * size.components**2 + _lanczos_flops(size.components, size.rank)


def _dense_flops(size: Size) -> float:
    small, large = sorted((size.d_out, size.d_in))
    eigenvectors = min(_EIGH * small**3, _lanczos_flops(small, size.rank))
    return 2 * small * large * size.components + small * small * large + eigenvectors


def _lanczos_flops(count: int, rank: int) -> float:
    columns = krylov.TYPICAL_STEPS * krylov.block_size(rank)
    return _THIN * 4 * count**2 * columns + 4 * count * columns**2 + 2 * _EIGH * columns**3


def _krylov_space(pieces: Iterable[Piece], size: Size) -> Space:
    stacked = stack(pieces, size)
    left_gram, right_gram = stacked.left_gram(), stacked.right_gram()
    found = krylov.dominant_coefficients(left_gram, right_gram, size.rank)
    if found is None:
        return _direct_space(stacked, left_gram, right_gram, size.rank)
    return _spanned(stacked, found, float(np.vdot(left_gram, right_gram)))


def _gram_space(pieces: Iterable[Piece], size: Size) -> Space:
    stacked = stack(pieces, size)
    return _direct_space(stacked, stacked.left_gram(), stacked.right_gram(), size.rank)


def _direct_space(stacked: Stack, left_gram: Float64, right_gram: Float64, rank: int) -> Space:
    norms = np.sqrt(np.diag(right_gram))
    lower = _cholesky(right_gram, norms)
    if lower is None:
        return _qr_space(stacked, rank)
    core = lower.T @ (left_gram * norms * norms[:, None]) @ lower
    vectors, energy = _dominant(core, rank)
    return _spanned(stacked, np.linalg.solve(lower.T, vectors) / norms[:, None], energy)


def _spanned(stacked: Stack, coefficients: Float64, energy: float) -> Space:
    """The space that R'ᵀ·coefficients span."""
    vectors = np.linalg.qr(stacked.row_combinations(coefficients)).Q
    return Space(vectors.T, stacked.times(vectors), energy)


def _cholesky(gram: Float64, norms: Float64) -> Float64 | None:
    """The lower Cholesky factor of the Gram matrix of unit rows; None if they are too dependent."""
    if not norms.all():
        return None
    try:
        lower = np.asarray(np.linalg.cholesky(gram / norms / norms[:, None]), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    return lower if np.diag(lower).min() > _DEPENDENT else None


def _qr_space(stacked: Stack, rank: int) -> Space:
    left = stacked.left.astype(np.float64)
    basis, triangle = np.linalg.qr(stacked.right.T * stacked.weights)
    core = left @ triangle.T
    vectors, energy = _dominant(core.T @ core, rank)
    return Space((basis @ vectors).T, core @ vectors, energy)


def _dense_space(pieces: Iterable[Piece], size: Size) -> Space:
    dense = np.zeros((size.d_out, size.d_in))
    for weights, factors in pieces:
        dense += (factors.b * weights) @ factors.a.astype(np.float64)
    wide = size.d_out < size.d_in
    gram = dense @ dense.T if wide else dense.T @ dense
    vectors, energy = _dominant(gram, size.rank)
    basis = np.linalg.qr(dense.T @ vectors if wide else vectors).Q
    return Space(basis.T, dense @ basis, energy)


def _dominant(gram: Float64, rank: int) -> tuple[Float64, float]:
    """The eigenvectors of the `rank` largest eigenvalues as columns, and the trace."""
    found = None
    if _lanczos_flops(len(gram), rank) < _EIGH * len(gram) ** 3:
        found = krylov.dominant_coefficients(gram, None, rank)
    if found is None:
        found = np.linalg.eigh(gram).eigenvectors[:, -rank:]
    return found, float(np.trace(gram))


def _ordered(b: Float64, basis: Float64) -> tuple[Float64, Float64]:
    """Rotate to singular-value order, largest first; the entry of largest magnitude in each row of the basis is positive."""
    rotation = np.linalg.eigh(b.T @ b).eigenvectors[:, ::-1]
    basis = rotation.T @ basis
    peaks = basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)]
    signs = np.where(peaks < 0, -1.0, 1.0)
    return b @ (rotation * signs), basis * signs[:, None]


WAYS: Final[dict[str, Way]] = {
    "Gram": Way(_gram_space, _gram_flops),
    "Krylov": Way(_krylov_space, _krylov_flops),
    "Dense": Way(_dense_space, _dense_flops),
}
