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
        inner = sum(
            (part @ rows for part, rows in zip(_slices(self.right), _rows(vectors, _width(len(self.right))), strict=True)), np.zeros(())
        )
        weighted = (inner * self.weights[:, None]).T
        return np.hstack([weighted @ part for part in _slices(self.left.T)]).T


def stack(pieces: Iterable[Piece], *, d_out: int, d_in: int, components: int) -> Stack:
    """The pieces side by side; each is let go of before the next is asked for."""
    made = Stack(
        left=np.empty((d_out, components), np.float32), weights=np.empty(components), right=np.empty((components, d_in), np.float32)
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
    width = _width(len(matrix))
    for start in range(0, matrix.shape[1], width):
        yield matrix[:, start : start + width].astype(np.float64)


def _rows(vectors: Float64, width: int) -> Iterator[Float64]:
    for start in range(0, len(vectors), width):
        yield vectors[start : start + width]


def _width(components: int) -> int:
    return max(1, _SLICE_BYTES // (8 * components))
