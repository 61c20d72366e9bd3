"""The dominant space of W = L·R by subspace iteration, in bounded memory and mostly in float32.

The energy ‖W‖² takes both Gram matrices in any case. As long as they fit `_GRAM_BYTES` they are kept, and the iteration runs on
coefficients, in products of size n; of more components they are only summed up, and the iteration runs on W itself, reading each site's
factors twice a step.

Float32 halves the time, and its rounding would show where the spectrum decays. So what it finds is a proposal: in float64, the space is
orthonormalised, W·V taken, and the residual WᵀW·V − V·Θ measured. If that does not bound the missed energy, steps of the power method
in float64 improve the space; if it is far from that, all is done again in float64.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation import subspace
from fedpipe_operator.aggregation.grams import Energy, energy, grams
from fedpipe_operator.aggregation.stack import HELD_BYTES, Groups, Lazy, Real, Size
from fedpipe_operator.aggregation.values import Float64

FEWEST: Final = 96
"""Components from which on this is faster than the direct way (rank 16, d = 4096)."""
_GRAM_BYTES: Final = HELD_BYTES // 2
"""Float32 Gram matrices that are kept, out of `HELD_BYTES`: of 1144 components."""
_NARROW_BYTES: Final = HELD_BYTES // 4
"""A group where the width saves no reading, so that the iteration's own blocks fit beside it."""
_MOST_ERROR: Final = 1e-6
"""Of the energy, as a share of it: then float64 is needed."""
_ATTEMPTS: Final = 3
"""Residuals that are measured in float64, with a step of the power method between them."""
_HOPELESS: Final = 100
"""Excess that these steps will not remove: only a better proposal does."""


class Space(NamedTuple):
    """The dominant right singular space of W."""

    basis: Float64
    """V, rank × d_in, orthonormal."""
    image: Float64
    """W·Vᵀ, d_out × rank."""
    energy: float
    """‖W‖²_F."""


class _Proposal(NamedTuple):
    """Vectors whose span should be the space, the energy of W, and about the largest eigenvalue of WᵀW outside the space."""

    vectors: Real
    """d_in × rank."""
    whole: Energy
    floor: float


def space(pieces: Sequence[Lazy], size: Size) -> Space | None:
    """The space, if iteration finds it; None if W has too few independent components or the residual check fails in float64, too."""
    gram_bytes = 4 * size.components**2
    few = gram_bytes <= _GRAM_BYTES
    groups = Groups(pieces, size, HELD_BYTES - gram_bytes if few else _NARROW_BYTES)
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        proposal = (_from_grams if few else _from_products)(groups, dtype)
        found = _checked(groups, proposal) if proposal else None
        if found is not None:
            return found
    return None


def _from_grams(groups: Groups, dtype: np.dtype[np.floating]) -> _Proposal | None:
    both = grams(groups, dtype)
    operator = subspace.Operator(groups.size.components, dtype, both.right_times, both.left_times)
    found = _dominant(operator, groups, both.energy)
    return found and _Proposal(groups.row_combinations(found.vectors.astype(dtype)), both.energy, found.floor + both.energy.error)


def _from_products(groups: Groups, dtype: np.dtype[np.floating]) -> _Proposal | None:
    whole = energy(groups.regrouped(HELD_BYTES), dtype)
    operator = subspace.Operator(groups.size.d_in, dtype, lambda v: v, lambda v: groups.transposed_times(groups.times(v)))
    found = _dominant(operator, groups, whole)
    return found and _Proposal(found.vectors, whole, found.floor + whole.error)


def _dominant(operator: subspace.Operator, groups: Groups, whole: Energy) -> subspace.Found | None:
    if not whole.error <= _MOST_ERROR * whole.value:  # also if either is no number
        return None
    return subspace.dominant(operator, groups.size.rank, whole.value)


def _checked(groups: Groups, proposal: _Proposal) -> Space | None:
    """The proposal's space, or what steps of the power method make of it, as soon as the residual shows that it is good enough."""
    vectors = proposal.vectors.astype(np.float64)
    coarse = proposal.vectors.dtype
    for _ in range(_ATTEMPTS):
        basis = np.linalg.qr(vectors).Q
        image = _float64(groups.times(basis))
        # A residual in float32 only looks larger than it is: if it will do, the product in float64 is saved.
        for precision in dict.fromkeys((coarse, np.dtype(np.float64))):
            vectors = _float64(groups.transposed_times(image.astype(precision)))
            excess = _excess(proposal, basis, image, vectors)
            if excess <= 1:
                return Space(basis.T, image, proposal.whole.value)
            if excess > _HOPELESS:
                return None
        coarse = np.dtype(np.float64)
    return None


def _excess(proposal: _Proposal, basis: Float64, image: Float64, back: Float64) -> float:
    """How much more energy another space of this rank might catch, as a multiple of what is bearable; `back` is Wᵀ·image."""
    core = image.T @ image
    values, rotation = np.linalg.eigh(core)
    residuals = np.linalg.norm((back - basis @ core) @ rotation, axis=0)
    whole, error = proposal.whole
    missed = subspace.missed(values, residuals, proposal.floor)
    return missed / subspace.bearable(whole - error - float(values.sum()), whole) if missed else 0.0


def _float64(array: Real) -> Float64:
    return array.astype(np.float64, copy=False)
