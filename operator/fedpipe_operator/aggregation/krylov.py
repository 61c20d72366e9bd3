"""The dominant right singular space of L·R by block Lanczos on the two Gram matrices: for stacks of many components and a low rank.

A vector of the row space is held by its coefficients z (it is Rᵀz), so that inner products are zᵀ(R·Rᵀ)w and WᵀW acts as
z ↦ (LᵀL)(R·Rᵀ)z: a step costs two thin products of size n, nothing of size d. Every block is orthogonalised against all before it,
twice, as the plain three-term recurrence loses orthogonality (Golub & Van Loan, Matrix Computations, §10.3).
"""

import math
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation.values import Float64

TYPICAL_STEPS: Final = 24
"""Steps that a flat spectrum takes (independent random factors, the slowest case met); decaying ones take fewer."""
_CHECK_EVERY: Final = 6
_MOST_STEPS: Final = 36
_TOLERANCE: Final = 1e-7
"""How much larger than the best one the cut's error ‖W − BA‖ may be, as a share of ‖W‖."""


class _Space(NamedTuple):
    """Coefficients z, orthonormal under R·Rᵀ, with what the two Gram matrices make of them; all n × columns."""

    z: Float64
    inner: Float64
    """(R·Rᵀ) z."""
    image: Float64
    """(LᵀL)(R·Rᵀ) z."""

    def columns(self, start: int, end: int) -> "_Space":
        return _Space(self.z[:, start:end], self.inner[:, start:end], self.image[:, start:end])


def block_size(rank: int) -> int:
    """Columns per step: thinner blocks would make the matrix products slow."""
    return max(rank, 8)


def dominant_coefficients(left_gram: Float64, right_gram: Float64 | None, rank: int) -> Float64 | None:
    """Z (n × rank) with Rᵀ·Z spanning the dominant space; None if the residual check fails: use a direct way then.

    Without `right_gram` the rows of R are orthonormal, and Z itself is an orthonormal basis.
    """
    whole = float(np.trace(left_gram) if right_gram is None else np.vdot(left_gram, right_gram))
    count, wide = len(left_gram), block_size(rank)
    most = min(_MOST_STEPS, count // wide)
    room = _Space(*(np.empty((count, most * wide)) for _ in range(3)))
    residue: Float64 = np.random.default_rng(0).standard_normal((count, wide))
    for step in range(1, most + 1):
        if not _append(room.columns((step - 1) * wide, step * wide), residue, left_gram, right_gram):
            return None
        space = room.columns(0, step * wide)
        residue = _orthogonal_to(space, space.image[:, -wide:])
        if step % _CHECK_EVERY == 0:
            found, caught, missed = _ritz(space, residue, right_gram, rank)
            if missed <= _bearable(caught, whole):
                return found
    return None


def _bearable(caught: float, whole: float) -> float:
    """The energy δ that may be missed: √(cut + δ) − √cut ≈ δ / 2√cut is the growth of the cut's error."""
    return 2 * _TOLERANCE * math.sqrt(max(0.0, whole - caught) * whole)


def _append(block: _Space, residue: Float64, left_gram: Float64, right_gram: Float64 | None) -> bool:
    """Fill the block with the residue made orthonormal; False if its columns have become dependent (the space is exhausted)."""
    inner = _inner(right_gram, residue)
    try:
        lower = np.linalg.cholesky(residue.T @ inner)
    except np.linalg.LinAlgError:
        return False
    scale = np.linalg.inv(lower).T
    block.z[:] = residue @ scale
    block.inner[:] = inner @ scale
    block.image[:] = left_gram @ block.inner
    return True


def _orthogonal_to(space: _Space, image: Float64) -> Float64:
    residue = image - space.z @ (space.inner.T @ image)
    again: Float64 = residue - space.z @ (space.inner.T @ residue)
    return again


def _ritz(space: _Space, residue: Float64, right_gram: Float64 | None, rank: int) -> tuple[Float64, float, float]:
    """The best `rank` vectors so far, the energy they catch, and the sum of their residuals' norms (at least the energy missed)."""
    values, vectors = np.linalg.eigh(space.inner.T @ space.image)
    best = vectors[:, -rank:]
    last = residue @ best[-residue.shape[1] :]
    residuals = np.sqrt(np.maximum(0.0, np.einsum("ij,ij->j", last, _inner(right_gram, last))))
    return space.z @ best, float(values[-rank:].sum()), float(residuals.sum())


def _inner(right_gram: Float64 | None, columns: Float64) -> Float64:
    return columns if right_gram is None else right_gram @ columns
