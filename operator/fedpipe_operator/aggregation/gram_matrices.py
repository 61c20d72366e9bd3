"""The Gram matrices LᵀL and R'·R'ᵀ of a weight's components, computed by batches, and the energy ‖W‖²_F = ⟨LᵀL, R'·R'ᵀ⟩.

R' = diag(w)·R. Both matrices are symmetric, so that only the block rows from the diagonal on are computed and stored: n² numbers in all.
"""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe_operator.aggregation.factors import Float64
from fedpipe_operator.aggregation.stacked_factors import FactorBatches, Real, StackedFactors, inner_products

_ROUNDING: Final = {"float32": 1e-7, "float64": 1e-15}
"""Relative error of an energy, a few times the errors observed at d = 4096."""
_SQUARED_NORM_RANGE: Final = {"float32": (1e-20, 1e20), "float64": (0.0, math.inf)}
"""Range of the squared norms of components within which no product of them overflows or underflows."""


class Energy(NamedTuple):
    """‖W‖²_F and a bound on its error. Rounding errors are relative to the components' own energies, which may cancel in W.

    The error is infinite where components are too small or too large for the precision.
    """

    value: float
    error: float


class _BlockRow(NamedTuple):
    """The block row of both matrices that begins on the diagonal at `start`: g × (n − start)."""

    start: int
    left: Real
    right: Real


class GramMatrices(NamedTuple):
    """Both matrices and the energy."""

    rows: list[_BlockRow]
    energy: Energy

    def left_times(self, vectors: Real) -> Real:
        """LᵀL·x for x (n × r)."""
        return _symmetric_product([(row.start, row.left) for row in self.rows], vectors)

    def right_times(self, vectors: Real) -> Real:
        """R'·R'ᵀ·x for x (n × r)."""
        return _symmetric_product([(row.start, row.right) for row in self.rows], vectors)


class _EnergySum:
    """The energy, summed over pairs of batches."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._rounding, self._range = _ROUNDING[np.dtype(dtype).name], _SQUARED_NORM_RANGE[np.dtype(dtype).name]
        self._value, self._of_components, self._in_range = 0.0, 0.0, True

    def add(self, left: Real, right: Real, *, diagonal: bool) -> None:
        # In float64 whatever the precision of the blocks: n² terms are summed, and some cancel.
        self._value += (1 if diagonal else 2) * float(np.vdot(left.astype(np.float64), right.astype(np.float64)))
        if diagonal:
            least, most = self._range
            squared_norms = np.diag(left), np.diag(right)
            self._of_components += float(np.vdot(*squared_norms))
            self._in_range &= all(bool(np.all((least <= norms) & (norms <= most))) for norms in squared_norms)

    def energy(self) -> Energy:
        error = self._rounding * max(self._value, self._of_components) if self._in_range else math.inf
        return Energy(self._value, error)


def gram_matrices(batches: FactorBatches, dtype: npt.DTypeLike) -> GramMatrices:
    """Both matrices in this precision: 4·n² bytes in float32."""
    total, rows = _EnergySum(dtype), list[_BlockRow]()
    start, column = 0, 0
    for first, second, left, right in _blocks(batches, dtype):
        if first is second:
            start += len(rows[-1].left) if rows else 0
            row_shape = len(left), batches.shape.components - start
            rows.append(_BlockRow(start, np.empty(row_shape, dtype), np.empty(row_shape, dtype)))
            column = 0
        columns = slice(column, column + left.shape[1])
        rows[-1].left[:, columns], rows[-1].right[:, columns] = left, right
        column = columns.stop
        total.add(left, right, diagonal=first is second)
    return GramMatrices(rows, total.energy())


def energy(batches: FactorBatches, dtype: npt.DTypeLike) -> Energy:
    """‖W‖²_F only: two blocks are held in memory at a time."""
    total = _EnergySum(dtype)
    for first, second, left, right in _blocks(batches, dtype):
        total.add(left, right, diagonal=first is second)
    return total.energy()


def component_products(batches: FactorBatches) -> Iterator[tuple[slice, slice, Float64]]:
    """The inner products ⟨C_i, C_j⟩ of the components C_i = l_i r'_i in float64, in blocks: from the diagonal on, each pair once."""
    start = end = column = 0
    for first, second, left, right in _blocks(batches, np.float64):
        if first is second:
            start, end = end, end + len(left)
            column = start
        columns = slice(column, column + left.shape[1])
        column = columns.stop
        yield slice(start, end), columns, np.asarray(left * right, np.float64)


def _blocks(batches: FactorBatches, dtype: npt.DTypeLike) -> Iterator[tuple[StackedFactors, StackedFactors, Real, Real]]:
    for first, second in batches.pairs():
        with np.errstate(all="ignore"):  # values beyond the range of float32: see `Energy`
            left = inner_products(first.left, second.left, dtype)
            right = (
                inner_products(first.right.T, second.right.T, dtype) * first.weights.astype(dtype)[:, None] * second.weights.astype(dtype)
            )
        yield first, second, left, right


def _symmetric_product(rows: list[tuple[int, Real]], vectors: Real) -> Real:
    if len(rows) == 1:
        return rows[0][1] @ vectors
    product = np.zeros_like(vectors)
    for start, block in rows:
        end = start + len(block)
        product[start:end] += block @ vectors[start:]
        product[end:] += block[:, len(block) :].T @ vectors[start:end]
    return product
