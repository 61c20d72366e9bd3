"""A stack of components as one factor pair of a given rank, without the dense matrix where factors are cheaper.

With W = L·R (the weights of the average inside R), each way finds an orthonormal basis V (rank × d_in) of the dominant right singular
space; B = W·Vᵀ then holds what the space carries, and one small rotation puts the components in singular-value order. The ways:

* `Direct`: R = C·Q by Cholesky of R·Rᵀ, then the eigenvectors of Cᵀ(LᵀL)C: one eigenproblem of size n, all in float64. Rows of R are
  scaled to norm 1 first; if they are too dependent for a Cholesky, Householder QR takes its place. For few components or a high rank.
* `Iterated` (`iterated`): subspace iteration on the two Gram matrices or, for very many components, on W itself, with memory that no
  number of sites grows. In float32 first; taken only if a residual in float64 shows that it is as good, else once more in float64.
* `Dense`: W itself, one piece added after the other, and the dominant eigenvectors of the smaller of WᵀW and W·Wᵀ. For weights that are
  smaller than their stack, and where iteration does not converge.

B is always computed in float64. Projecting with a basis that is orthonormal to rounding makes the result exact for what the basis
spans, so the squared condition of a Gram matrix costs accuracy only in how well the energy is caught, never in the product itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation import iterated, subspace
from fedpipe_operator.aggregation.grams import grams
from fedpipe_operator.aggregation.iterated import Space
from fedpipe_operator.aggregation.stack import HELD_BYTES, Groups, Lazy, Size, Stack
from fedpipe_operator.aggregation.tensors import Float32
from fedpipe_operator.aggregation.values import ROW_NORM, Float64

_DEPENDENT: Final = 1e-4
"""Distance of a unit row of R from the span of those before it, below which the Cholesky factor is too inaccurate to use."""
_LARGE: Final = 12
"""Blocks in the size of a matrix from which on iteration finds its dominant eigenvectors sooner than `eigh` finds all."""
_DENSE_BYTES: Final = 2 * HELD_BYTES
"""Float64 matrices of one weight that may be held to save time: W and the smaller of its Gram matrices."""


class Factorised(NamedTuple):
    """B = UΣ/c (d_out × rank), A = c·Vᵀ (rank × d_in), and 1 − the share of the energy Σσ² that they hold."""

    b: Float32
    a: Float32
    truncated_energy: float


def factorise(pieces: Sequence[Lazy], size: Size) -> Factorised:
    """The best approximation of the sum of the pieces of this rank ≤ min(components, d_out, d_in).

    Each piece is read when it is needed: once where all fit `HELD_BYTES`, else as often as the way takes.
    """
    space = WAYS[cheapest(size)](pieces, size)
    b, a = _ordered(space.image, space.basis)
    whole = size.rank == size.components or space.energy == 0
    truncated = 0.0 if whole else max(0.0, 1.0 - float(np.vdot(b, b)) / space.energy)
    return Factorised((b / ROW_NORM).astype(np.float32), (a * ROW_NORM).astype(np.float32), truncated)


def cheapest(size: Size) -> str:
    """The name of the way that takes the least time within the bounds of memory."""
    small, large = sorted((size.d_out, size.d_in))
    iterates = 3 * subspace.block_size(size.rank) <= min(size.components, small)
    if size.components > small and (8 * small * (small + large) <= _DENSE_BYTES or not iterates):
        return "Dense"
    return "Iterated" if iterates and size.components >= iterated.FEWEST else "Direct"


def _iterated_space(pieces: Sequence[Lazy], size: Size) -> Space:
    found = iterated.space(pieces, size)
    if found is not None:
        return found
    return (_direct_space if size.components <= min(size.d_out, size.d_in) else _dense_space)(pieces, size)


def _direct_space(pieces: Sequence[Lazy], size: Size) -> Space:
    groups = Groups(pieces, size, math.inf)
    (stacked,), both = groups, grams(groups, np.dtype(np.float64))
    left_gram, right_gram = (np.asarray(gram, np.float64) for gram in (both.rows[0].left, both.rows[0].right))
    norms = np.sqrt(np.diag(right_gram))
    lower = _cholesky(right_gram, norms)
    if lower is None:
        return _qr_space(stacked, size.rank)
    core = lower.T @ (left_gram * norms * norms[:, None]) @ lower
    vectors, energy = _dominant(core, size.rank)
    basis = np.linalg.qr(stacked.row_combinations(np.linalg.solve(lower.T, vectors) / norms[:, None])).Q
    return Space(basis.T, np.asarray(stacked.times(basis), np.float64), energy)


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


def _dense_space(pieces: Sequence[Lazy], size: Size) -> Space:
    dense = np.zeros((size.d_out, size.d_in))
    for piece in pieces:
        weights, factors = piece.read()
        dense += (factors.b * weights) @ factors.a.astype(np.float64)
    wide = size.d_out < size.d_in
    gram = dense @ dense.T if wide else dense.T @ dense
    vectors, energy = _dominant(gram, size.rank)
    basis = np.linalg.qr(dense.T @ vectors if wide else vectors).Q
    return Space(basis.T, dense @ basis, energy)


def _dominant(gram: Float64, rank: int) -> tuple[Float64, float]:
    """The eigenvectors of the `rank` largest eigenvalues as columns, and the trace."""
    whole = float(np.trace(gram))
    if len(gram) >= _LARGE * subspace.block_size(rank):
        operator = subspace.Operator(len(gram), np.dtype(np.float64), lambda vectors: vectors, lambda vectors: gram @ vectors)
        found = subspace.dominant(operator, rank, whole)
        if found is not None and found.missed <= subspace.bearable(whole - float(found.values.sum()), whole):
            return found.vectors, whole
    return np.linalg.eigh(gram).eigenvectors[:, -rank:], whole


def _ordered(b: Float64, basis: Float64) -> tuple[Float64, Float64]:
    """Rotate to singular-value order, largest first; the entry of largest magnitude in each row of the basis is positive."""
    rotation = np.linalg.eigh(b.T @ b).eigenvectors[:, ::-1]
    basis = rotation.T @ basis
    peaks = basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)]
    signs = np.where(peaks < 0, -1.0, 1.0)
    return b @ (rotation * signs), basis * signs[:, None]


WAYS: Final[dict[str, Callable[[Sequence[Lazy], Size], Space]]] = {
    "Direct": _direct_space,
    "Iterated": _iterated_space,
    "Dense": _dense_space,
}
