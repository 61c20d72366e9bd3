"""L·R as a factor pair of a given rank, without the dense matrix where factors are cheaper.

Each way finds an orthonormal basis V (rank × d_in) of the dominant right singular space; B = L·(R·Vᵀ) then holds what the space
carries, and one small rotation puts the components in singular-value order. The way is chosen by counted flops:

* `Gram`: R = C·Q by Cholesky of R·Rᵀ, then the eigenvectors of Cᵀ(LᵀL)C. Two symmetric products and one eigenproblem of size n.
  Rows of R are scaled to norm 1 first; if they are too dependent for a Cholesky in float64, Householder QR takes its place.
* `Krylov`: the same two products, then block Lanczos instead of the eigenproblem; for many components and a low rank.
* `Dense`: W = L·R and the eigenvectors of the smaller of WᵀW and W·Wᵀ; for stacks wider than the weight.

All in float64. Projecting with a basis that is orthonormal to rounding makes the result exact for what the basis spans, so the
squared condition of a Gram matrix costs accuracy only in how well the energy is caught, never in the product itself.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation import krylov
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


class _Space(NamedTuple):
    """An orthonormal basis (rank × d_in) of the dominant right singular space, and the whole energy ‖L·R‖²_F."""

    basis: Float64
    energy: float


class Size(NamedTuple):
    """What the cost of a way depends on: L is d_out × components, R is components × d_in."""

    d_out: int
    d_in: int
    components: int
    rank: int


class Way(NamedTuple):
    """A way to the basis, and the flops that it takes."""

    space: Callable[[Float64, Float64, int], _Space]
    flops: Callable[[Size], float]


def factorise(left: Float64, right: Float64, rank: int) -> Factorised:
    """The best approximation of left @ right (d_out × n, n × d_in) of this rank ≤ min(n, d_out, d_in)."""
    count, d_in = right.shape
    space = WAYS[cheapest(Size(len(left), d_in, count, rank))].space(left, right, rank)
    b, a = _ordered(left @ (right @ space.basis.T), space.basis)
    whole = rank == count or space.energy == 0
    truncated = 0.0 if whole else max(0.0, 1.0 - float(np.vdot(b, b)) / space.energy)
    return Factorised((b / ROW_NORM).astype(np.float32), (a * ROW_NORM).astype(np.float32), truncated)


def cheapest(size: Size) -> str:
    """The name of the way that takes the fewest flops; of equals, the first."""
    return min(WAYS, key=lambda name: WAYS[name].flops(size))


def _gram_flops(size: Size) -> float:
    return (size.d_out + size.d_in) * size.components**2 + (4 + _EIGH) * size.components**3


def _krylov_flops(size: Size) -> float:
    columns = krylov.TYPICAL_STEPS * krylov.block_size(size.rank)
    lanczos = _THIN * 4 * size.components**2 * columns + 4 * size.components * columns**2 + 2 * _EIGH * columns**3
    return (size.d_out + size.d_in) * size.components**2 + lanczos


def _dense_flops(size: Size) -> float:
    small, large = sorted((size.d_out, size.d_in))
    return 2 * small * large * size.components + small * small * large + _EIGH * small**3


def _krylov_space(left: Float64, right: Float64, rank: int) -> _Space:
    left_gram, right_gram = left.T @ left, right @ right.T
    found = krylov.dominant_coefficients(left_gram, right_gram, rank)
    if found is None:
        return _gram_space(left, right, rank)
    return _Space(np.linalg.qr(right.T @ found).Q.T, float(np.vdot(left_gram, right_gram)))


def _gram_space(left: Float64, right: Float64, rank: int) -> _Space:
    gram = right @ right.T
    norms = np.sqrt(np.diag(gram))
    lower = _cholesky(gram, norms)
    if lower is None:
        return _qr_space(left, right, rank)
    core = lower.T @ ((left.T @ left) * norms * norms[:, None]) @ lower
    vectors, energy = _dominant(core, rank)
    rows = np.linalg.solve(lower.T, vectors) / norms[:, None]
    return _Space(np.linalg.qr(right.T @ rows).Q.T, energy)


def _cholesky(gram: Float64, norms: Float64) -> Float64 | None:
    """The lower Cholesky factor of the Gram matrix of unit rows; None if they are too dependent."""
    if not norms.all():
        return None
    try:
        lower = np.asarray(np.linalg.cholesky(gram / norms / norms[:, None]), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    return lower if np.diag(lower).min() > _DEPENDENT else None


def _qr_space(left: Float64, right: Float64, rank: int) -> _Space:
    basis, triangle = np.linalg.qr(right.T)
    core = left @ triangle.T
    vectors, energy = _dominant(core.T @ core, rank)
    return _Space((basis @ vectors).T, energy)


def _dense_space(left: Float64, right: Float64, rank: int) -> _Space:
    dense = left @ right
    if len(dense) < dense.shape[1]:
        vectors, energy = _dominant(dense @ dense.T, rank)
        return _Space(np.linalg.qr(dense.T @ vectors).Q.T, energy)
    vectors, energy = _dominant(dense.T @ dense, rank)
    return _Space(vectors.T, energy)


def _dominant(gram: Float64, rank: int) -> tuple[Float64, float]:
    """The eigenvectors of the `rank` largest eigenvalues as columns, and the trace."""
    return np.linalg.eigh(gram).eigenvectors[:, -rank:], float(np.trace(gram))


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
