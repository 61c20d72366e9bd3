"""One weight's components from all sites side by side: W = L·diag(w)·R, as the files hold them, in float32.

The products are in float64: a slice at a time is widened, so that the stack takes half the memory of a float64 one and loses nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation.tensors import Float32
from fedpipe_operator.aggregation.values import Factors, Float64

_SLICE_BYTES: Final = 8 * 2**20
"""Size of the float64 slice that is widened at a time: some cores' cache, and enough for a fast product."""


class Piece(NamedTuple):
    """Some components of W: factors.b · diag(weights) · factors.a."""

    weights: Float64
    """One for each component."""
    factors: Factors


class Size(NamedTuple):
    """What the cost of a way depends on: L is d_out × components, R is components × d_in."""

    d_out: int
    d_in: int
    components: int
    rank: int


class Stack(NamedTuple):
    """Shapes: `left` d_out × n, `weights` n, `right` n × d_in."""

    left: Float32
    weights: Float64
    right: Float32

    def left_gram(self) -> Float64:
        """LᵀL, n × n."""
        return _gram(self.left.T)

    def right_gram(self) -> Float64:
        """R'·R'ᵀ with R' = diag(w)·R, n × n."""
        return _gram(self.right) * self.weights * self.weights[:, None]

    def row_combinations(self, coefficients: Float64) -> Float64:
        """R'ᵀz for coefficients z (n × r): d_in × r."""
        weighted = (coefficients * self.weights[:, None]).T
        return np.hstack([weighted @ part for part in _slices(self.right)]).T

    def times(self, vectors: Float64) -> Float64:
        """W·v for vectors v (d_in × r): d_out × r."""
        inner = np.zeros((len(self.right), vectors.shape[1]))
        for span in _spans(self.right):
            inner += self.right[:, span].astype(np.float64) @ vectors[span]
        weighted = (inner * self.weights[:, None]).T
        return np.hstack([weighted @ part for part in _slices(self.left.T)]).T


def stack(pieces: Iterable[Piece], size: Size) -> Stack:
    """The pieces side by side; each is let go of before the next is asked for."""
    made = Stack(
        left=np.empty((size.d_out, size.components), np.float32),
        weights=np.empty(size.components),
        right=np.empty((size.components, size.d_in), np.float32),
    )
    start = 0
    for weights, factors in pieces:
        end = start + len(weights)
        made.left[:, start:end], made.weights[start:end], made.right[start:end] = factors.b, weights, factors.a
        start = end
    return made


def _gram(rows: Float32) -> Float64:
    """X·Xᵀ of X (n × d)."""
    gram = np.zeros((len(rows), len(rows)))
    for part in _slices(rows):
        gram += part @ part.T
    return gram


def _slices(matrix: Float32) -> Iterator[Float64]:
    return (matrix[:, span].astype(np.float64) for span in _spans(matrix))


def _spans(matrix: Float32) -> Iterator[slice]:
    """The columns of the slices of a matrix."""
    width = max(1, _SLICE_BYTES // (8 * len(matrix)))
    return (slice(start, start + width) for start in range(0, matrix.shape[1], width))
