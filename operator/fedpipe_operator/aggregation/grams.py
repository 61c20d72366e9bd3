"""LᵀL and R'·R'ᵀ of a weight's components, group by group, and the energy ‖W‖²_F = ⟨LᵀL, R'·R'ᵀ⟩ that follows from them.

Both are symmetric, so that only the block rows from the diagonal on are made and kept: n² numbers in all.
"""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe_operator.aggregation.stack import Groups, Real, Stack, inner_products

_ROUNDING: Final = {"float32": 1e-7, "float64": 1e-15}
"""Relative error of an energy, a few times what was met at d = 4096."""
_SQUARES: Final = {"float32": (1e-20, 1e20), "float64": (0.0, math.inf)}
"""Squared lengths of components within which no product of them leaves the precision's range."""


class Energy(NamedTuple):
    """‖W‖²_F, and how far it may be off: rounding goes by the components' own energies, and these may cancel in W.

    The error is infinite where components are too small or too large for the precision.
    """

    value: float
    error: float


class _Rows(NamedTuple):
    """The block rows of both matrices that begin on the diagonal at `start`: g × (n − start)."""

    start: int
    left: Real
    right: Real


class Grams(NamedTuple):
    """Both matrices and the energy."""

    rows: list[_Rows]
    energy: Energy

    def left_times(self, vectors: Real) -> Real:
        """LᵀL·x for x (n × r)."""
        return _symmetric_product([(rows.start, rows.left) for rows in self.rows], vectors)

    def right_times(self, vectors: Real) -> Real:
        """R'·R'ᵀ·x for x (n × r)."""
        return _symmetric_product([(rows.start, rows.right) for rows in self.rows], vectors)


class _Sum:
    """The energy as pairs of groups add to it."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._rounding, self._squares = _ROUNDING[np.dtype(dtype).name], _SQUARES[np.dtype(dtype).name]
        self._value, self._own, self._in_range = 0.0, 0.0, True

    def add(self, left: Real, right: Real, *, diagonal: bool) -> None:
        # In float64 whatever the blocks are: n² terms are summed here, and some cancel.
        self._value += (1 if diagonal else 2) * float(np.vdot(left.astype(np.float64), right.astype(np.float64)))
        if diagonal:
            least, most = self._squares
            squares = np.diag(left), np.diag(right)
            self._own += float(np.vdot(*squares))
            self._in_range &= all(bool(np.all((least <= part) & (part <= most))) for part in squares)

    def energy(self) -> Energy:
        return Energy(self._value, self._rounding * max(self._value, self._own) if self._in_range else math.inf)


def grams(groups: Groups, dtype: npt.DTypeLike) -> Grams:
    """Both matrices in this precision: 4·n² bytes in float32."""
    total, rows = _Sum(dtype), list[_Rows]()
    start, column = 0, 0
    for first, second, left, right in _blocks(groups, dtype):
        if first is second:
            start += len(rows[-1].left) if rows else 0
            room = len(left), groups.size.components - start
            rows.append(_Rows(start, np.empty(room, dtype), np.empty(room, dtype)))
            column = 0
        span = slice(column, column + left.shape[1])
        rows[-1].left[:, span], rows[-1].right[:, span] = left, right
        column = span.stop
        total.add(left, right, diagonal=first is second)
    return Grams(rows, total.energy())


def energy(groups: Groups, dtype: npt.DTypeLike) -> Energy:
    """‖W‖²_F alone: two blocks are held at a time."""
    total = _Sum(dtype)
    for first, second, left, right in _blocks(groups, dtype):
        total.add(left, right, diagonal=first is second)
    return total.energy()


def _blocks(groups: Groups, dtype: npt.DTypeLike) -> Iterator[tuple[Stack, Stack, Real, Real]]:
    for first, second in groups.pairs():
        with np.errstate(all="ignore"):  # out of float32's range: see `Energy`
            left = inner_products(first.left, second.left, dtype)
            right = (
                inner_products(first.right.T, second.right.T, dtype) * first.weights.astype(dtype)[:, None] * second.weights.astype(dtype)
            )
        yield first, second, left, right


def _symmetric_product(rows: list[tuple[int, Real]], vectors: Real) -> Real:
    if len(rows) == 1:
        return rows[0][1] @ vectors
    found = np.zeros_like(vectors)
    for start, block in rows:
        end = start + len(block)
        found[start:end] += block @ vectors[start:]
        found[end:] += block[:, len(block) :].T @ vectors[start:end]
    return found
