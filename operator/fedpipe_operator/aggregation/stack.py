"""One weight's components from all sites, W = L·diag(w)·R, in groups that fit a fixed budget of memory.

The factors are held as the files have them, in float32. A product takes the precision of what it is multiplied with: float64 widens a
slice at a time, so that nothing is lost and the stack takes half the memory of a float64 one. One group is kept; of several, each is
read again for every product, so that memory does not depend on the number of sites.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe_operator.aggregation.tensors import Float32
from fedpipe_operator.aggregation.values import Factors, Float64

Real = npt.NDArray[np.floating[Any]]
"""Float32 or float64: a product of the float32 factors with such an array is computed in its precision."""

HELD_BYTES: Final = 10 * 2**20
"""Float32 factors and Gram matrices of one weight that are held at a time: 16 sites of rank 16 and a frozen tail at d = 4096."""
_ROW_GROUP: Final = 4
"""Where not all components fit: how much wider a group is than those it is paired with."""
_SLICE_BYTES: Final = 2**20
"""Size of the float64 slice that is widened at a time: it stays in a core's own cache."""


class Piece(NamedTuple):
    """Some components of W: factors.b · diag(weights) · factors.a."""

    weights: Float64
    """One for each component."""
    factors: Factors


class Lazy(NamedTuple):
    """A piece that is read when it is asked for, every time anew."""

    components: int
    read: Callable[[], Piece]


class Size(NamedTuple):
    """What the cost of a way depends on: L is d_out × components, R is components × d_in."""

    d_out: int
    d_in: int
    components: int
    rank: int


class Stack(NamedTuple):
    """Components side by side. Shapes: `left` d_out × n, `weights` n, `right` n × d_in."""

    left: Float32
    weights: Float64
    right: Float32

    def times(self, vectors: Real) -> Real:
        """W·v for vectors v (d_in × r): d_out × r."""
        return _across(self.left, self._weighted(_along(self.right.T, vectors)))

    def transposed_times(self, vectors: Real) -> Real:
        """Wᵀ·u for vectors u (d_out × r): d_in × r."""
        return _across(self.right.T, self._weighted(_along(self.left, vectors)))

    def row_combinations(self, coefficients: Real) -> Real:
        """R'ᵀz with R' = diag(w)·R for coefficients z (n × r): d_in × r."""
        return _across(self.right.T, self._weighted(coefficients))

    def _weighted(self, coefficients: Real) -> Real:
        return coefficients * self.weights.astype(coefficients.dtype)[:, None]


class Groups:
    """All components of a weight in order, as stacks of which at most `held_bytes` are held at a time: the next overwrites the last."""

    def __init__(self, pieces: Sequence[Lazy], size: Size, held_bytes: float) -> None:
        self.size = size
        self._pieces = pieces
        self._wide = held_bytes * _ROW_GROUP / (_ROW_GROUP + 1)
        self._rooms = [np.empty(0, np.float32), np.empty(0, np.float32)]
        self._only = self._stack(range(len(pieces))) if self._bytes(size.components) <= held_bytes else None

    def __iter__(self) -> Iterator[Stack]:
        if self._only is not None:
            return iter([self._only])
        return map(self._stack, self._split(0, self._wide))

    def regrouped(self, held_bytes: float) -> "Groups":
        """The same components in other groups."""
        return Groups(self._pieces, self.size, held_bytes)

    def pairs(self) -> Iterator[tuple[Stack, Stack]]:
        """Each group with itself, then with what comes after it in narrower stacks: every pair of components, once."""
        if self._only is not None:
            yield self._only, self._only
            return
        for run in self._split(0, self._wide):
            rows = self._stack(run)
            yield rows, rows
            for later in self._split(run.stop, self._wide / _ROW_GROUP):
                yield rows, self._stack(later, room=1)

    def times(self, vectors: Real) -> Real:
        """W·v, as `Stack.times`."""
        found = np.zeros((self.size.d_out, vectors.shape[1]), vectors.dtype)
        for group in self:
            found += group.times(vectors)
        return found

    def transposed_times(self, vectors: Real) -> Real:
        """Wᵀ·u, as `Stack.transposed_times`."""
        found = np.zeros((self.size.d_in, vectors.shape[1]), vectors.dtype)
        for group in self:
            found += group.transposed_times(vectors)
        return found

    def row_combinations(self, coefficients: Real) -> Real:
        """R'ᵀz, as `Stack.row_combinations`."""
        found, start = np.zeros((self.size.d_in, coefficients.shape[1]), coefficients.dtype), 0
        for group in self:
            end = start + len(group.weights)
            found += group.row_combinations(coefficients[start:end])
            start = end
        return found

    def _bytes(self, components: int) -> int:
        return 4 * components * (self.size.d_out + self.size.d_in)

    def _split(self, start: int, most: float) -> Iterator[range]:
        """The pieces from `start` on in runs of at most `most` bytes, or of one piece."""
        count = 0
        for number in range(start, len(self._pieces)):
            count += self._pieces[number].components
            if number > start and self._bytes(count) > most:
                yield range(start, number)
                start, count = number, self._pieces[number].components
        if start < len(self._pieces):
            yield range(start, len(self._pieces))

    def _stack(self, run: range, room: int = 0) -> Stack:
        """These pieces side by side; each is read, copied and let go of before the next."""
        pieces = self._pieces[run.start : run.stop]
        made = self._room(sum(piece.components for piece in pieces), room)
        start = 0
        for piece in pieces:
            end = start + piece.components
            weights, factors = piece.read()
            _rows_of(made.left, 4 * start, piece.components)[:] = _rows_of(np.ascontiguousarray(factors.b), 0, piece.components)
            made.weights[start:end], made.right[start:end] = weights, factors.a
            start = end
        return made

    def _room(self, count: int, room: int) -> Stack:
        """A stack to be filled, in memory that is kept for the next one."""
        d_out, d_in = self.size.d_out, self.size.d_in
        if self._rooms[room].size < count * (d_out + d_in):
            self._rooms[room] = np.empty(0, np.float32)  # frees the smaller one first
            self._rooms[room] = np.empty(count * (d_out + d_in), np.float32)
        left, right = np.split(self._rooms[room][: count * (d_out + d_in)], [count * d_out])
        return Stack(left.reshape(d_out, count), np.empty(count), right.reshape(count, d_in))


def _rows_of(matrix: Float32, offset: int, columns: int) -> npt.NDArray[np.void]:
    """Each row's columns from a byte offset on as one item: numpy copies those twice as fast as 16 floats one by one."""
    return np.ndarray(len(matrix), f"V{4 * columns}", matrix, offset, matrix.strides[:1])


def _across(matrix: Float32, coefficients: Real) -> Real:
    """X·c of X (d × n) and c (n × r): d × r."""
    if coefficients.dtype == np.float32:
        return matrix @ coefficients
    found = np.empty((len(matrix), coefficients.shape[1]), coefficients.dtype)
    for span in _spans(matrix):
        found[span] = matrix[span].astype(np.float64) @ coefficients
    return found


def _along(matrix: Float32, vectors: Real) -> Real:
    """Xᵀ·v of X (d × n) and v (d × r): n × r."""
    if vectors.dtype == np.float32:
        return matrix.T @ vectors
    found = np.zeros((matrix.shape[1], vectors.shape[1]), vectors.dtype)
    for span in _spans(matrix):
        found += matrix[span].astype(np.float64).T @ vectors[span]
    return found


def inner_products(first: Float32, second: Float32, dtype: npt.DTypeLike) -> Real:
    """Xᵀ·Y of X (d × n) and Y (d × m) in this precision: n × m."""
    if dtype == np.float32:
        return first.T @ second
    found = np.zeros((first.shape[1], second.shape[1]))
    for span in _spans(first):
        wide = first[span].astype(np.float64)
        found += wide.T @ (wide if first is second else second[span].astype(np.float64))
    return found


def _spans(matrix: Float32) -> Iterator[slice]:
    """Rows of X (d × n), a slice of `_SLICE_BYTES` at a time."""
    height = max(1, _SLICE_BYTES // (8 * matrix.shape[1]))
    return (slice(start, start + height) for start in range(0, len(matrix), height))
