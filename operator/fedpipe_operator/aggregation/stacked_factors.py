"""The stacked components of one weight from all sites, W = L·diag(w)·R, in batches that fit a fixed memory budget.

The factors are held in float32, as in the files. A product has the precision of the array that the factors are multiplied with: for
float64, a slice of the factors is converted at a time, so that no accuracy is lost and the stack takes half the memory of a float64 one.
A single batch stays in memory; of several batches, each is read again for every product, so that memory does not depend on the number of
sites.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe_operator.aggregation.factors import Factors, Float64
from fedpipe_operator.aggregation.tensors import Float32

Real = npt.NDArray[np.floating[Any]]
"""Float32 or float64: a product of the float32 factors with such an array is computed in its precision."""

MEMORY_BUDGET: Final = 10 * 2**20
"""Bytes of float32 factors and Gram matrices of one weight held at a time: 16 sites of rank 16 and a frozen residual at d = 4096."""
_ROW_TO_COLUMN_BYTES: Final = 4
"""Where not all components fit: size of a batch relative to those that it is paired with."""
_SLICE_BYTES: Final = 2**20
"""Size of the float64 slice that is converted at a time: it fits the cache of one core."""


class WeightedFactors(NamedTuple):
    """A summand of W: factors.b · diag(weights) · factors.a."""

    weights: Float64
    """One for each component."""
    factors: Factors


class LazyFactors(NamedTuple):
    """A summand of W that is read from its source at every call of `read`."""

    components: int
    read: Callable[[], WeightedFactors]


class StackShape(NamedTuple):
    """What an algorithm's cost depends on: L is d_out × components, R is components × d_in, the result has this rank."""

    d_out: int
    d_in: int
    components: int
    rank: int


class StackedFactors(NamedTuple):
    """A batch of stacked components. Shapes: `left` d_out × n, `weights` n, `right` n × d_in."""

    left: Float32
    weights: Float64
    right: Float32

    def times(self, vectors: Real) -> Real:
        """W·v for vectors v (d_in × r): d_out × r."""
        return multiply(self.left, self._scale(multiply_transposed(self.right.T, vectors)))

    def transposed_times(self, vectors: Real) -> Real:
        """Wᵀ·u for vectors u (d_out × r): d_in × r."""
        return multiply(self.right.T, self._scale(multiply_transposed(self.left, vectors)))

    def combine_rows(self, coefficients: Real) -> Real:
        """R'ᵀz with R' = diag(w)·R for coefficients z (n × r): d_in × r."""
        return multiply(self.right.T, self._scale(coefficients))

    def _scale(self, coefficients: Real) -> Real:
        return coefficients * self.weights.astype(coefficients.dtype)[:, None]


class FactorBatches:
    """All components of a weight in order, as batches of at most `budget` bytes in memory at a time: each overwrites the one before."""

    def __init__(self, summands: Sequence[LazyFactors], shape: StackShape, budget: float) -> None:
        self.shape = shape
        self._summands = summands
        self._row_bytes = budget * _ROW_TO_COLUMN_BYTES / (_ROW_TO_COLUMN_BYTES + 1)
        self._buffers = [np.empty(0, np.float32), np.empty(0, np.float32)]
        self._single = self._stack(range(len(summands))) if self._bytes(shape.components) <= budget else None

    def __iter__(self) -> Iterator[StackedFactors]:
        if self._single is not None:
            return iter([self._single])
        return map(self._stack, self._split(0, self._row_bytes))

    def with_budget(self, budget: float) -> "FactorBatches":
        """The same components in batches of another size."""
        return FactorBatches(self._summands, self.shape, budget)

    def pairs(self) -> Iterator[tuple[StackedFactors, StackedFactors]]:
        """Each batch with itself, then with the components after it in smaller batches: every pair of components once."""
        if self._single is not None:
            yield self._single, self._single
            return
        for indices in self._split(0, self._row_bytes):
            rows = self._stack(indices)
            yield rows, rows
            for later in self._split(indices.stop, self._row_bytes / _ROW_TO_COLUMN_BYTES):
                yield rows, self._stack(later, buffer=1)

    def times(self, vectors: Real) -> Real:
        """W·v, as `StackedFactors.times`."""
        product = np.zeros((self.shape.d_out, vectors.shape[1]), vectors.dtype)
        for batch in self:
            product += batch.times(vectors)
        return product

    def transposed_times(self, vectors: Real) -> Real:
        """Wᵀ·u, as `StackedFactors.transposed_times`."""
        product = np.zeros((self.shape.d_in, vectors.shape[1]), vectors.dtype)
        for batch in self:
            product += batch.transposed_times(vectors)
        return product

    def combine_rows(self, coefficients: Real) -> Real:
        """R'ᵀz, as `StackedFactors.combine_rows`."""
        product, start = np.zeros((self.shape.d_in, coefficients.shape[1]), coefficients.dtype), 0
        for batch in self:
            end = start + len(batch.weights)
            product += batch.combine_rows(coefficients[start:end])
            start = end
        return product

    def _bytes(self, components: int) -> int:
        return 4 * components * (self.shape.d_out + self.shape.d_in)

    def _split(self, start: int, max_bytes: float) -> Iterator[range]:
        """The indices of the summands from `start` on in ranges of at most `max_bytes`, or of one summand."""
        count = 0
        for index in range(start, len(self._summands)):
            count += self._summands[index].components
            if index > start and self._bytes(count) > max_bytes:
                yield range(start, index)
                start, count = index, self._summands[index].components
        if start < len(self._summands):
            yield range(start, len(self._summands))

    def _stack(self, indices: range, buffer: int = 0) -> StackedFactors:
        """These summands stacked; each is read, copied and freed before the next."""
        summands = self._summands[indices.start : indices.stop]
        stacked = self._allocate(sum(summand.components for summand in summands), buffer)
        start = 0
        for summand in summands:
            end = start + summand.components
            weights, factors = summand.read()
            _rows_as_items(stacked.left, 4 * start, summand.components)[:] = _rows_as_items(
                np.ascontiguousarray(factors.b), 0, summand.components
            )
            stacked.weights[start:end], stacked.right[start:end] = weights, factors.a
            start = end
        return stacked

    def _allocate(self, count: int, buffer: int) -> StackedFactors:
        """An uninitialised batch, in memory that is reused for the next one."""
        d_out, d_in = self.shape.d_out, self.shape.d_in
        if self._buffers[buffer].size < count * (d_out + d_in):
            self._buffers[buffer] = np.empty(0, np.float32)  # frees the smaller buffer first
            self._buffers[buffer] = np.empty(count * (d_out + d_in), np.float32)
        left, right = np.split(self._buffers[buffer][: count * (d_out + d_in)], [count * d_out])
        return StackedFactors(left.reshape(d_out, count), np.empty(count), right.reshape(count, d_in))


def _rows_as_items(matrix: Float32, offset: int, columns: int) -> npt.NDArray[np.void]:
    """The columns of each row from a byte offset on as one item: numpy copies such items twice as fast as 16 single floats."""
    return np.ndarray(len(matrix), f"V{4 * columns}", matrix, offset, matrix.strides[:1])


def multiply(matrix: Float32, coefficients: Real) -> Real:
    """X·c of X (d × n) and c (n × r): d × r."""
    if coefficients.dtype == np.float32:
        return matrix @ coefficients
    product = np.empty((len(matrix), coefficients.shape[1]), coefficients.dtype)
    for rows in _row_slices(matrix):
        product[rows] = matrix[rows].astype(np.float64) @ coefficients
    return product


def multiply_transposed(matrix: Float32, vectors: Real) -> Real:
    """Xᵀ·v of X (d × n) and v (d × r): n × r."""
    if vectors.dtype == np.float32:
        return matrix.T @ vectors
    product = np.zeros((matrix.shape[1], vectors.shape[1]), vectors.dtype)
    for rows in _row_slices(matrix):
        product += matrix[rows].astype(np.float64).T @ vectors[rows]
    return product


def inner_products(first: Float32, second: Float32, dtype: npt.DTypeLike) -> Real:
    """Xᵀ·Y of X (d × n) and Y (d × m) in this precision: n × m."""
    if dtype == np.float32:
        return first.T @ second
    product = np.zeros((first.shape[1], second.shape[1]))
    for rows in _row_slices(first):
        converted = first[rows].astype(np.float64)
        product += converted.T @ (converted if first is second else second[rows].astype(np.float64))
    return product


def _row_slices(matrix: Float32) -> Iterator[slice]:
    """Row slices of X (d × n) of `_SLICE_BYTES` in float64 each."""
    height = max(1, _SLICE_BYTES // (8 * matrix.shape[1]))
    return (slice(start, start + height) for start in range(0, len(matrix), height))
