"""Codecs that keep a part of a tensor: its largest values, or its largest components."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Final

import numpy as np

from fedpipe_trainer.codecs.codec import Array, Float32, Part, Shape

_MATRIX: Final = 2
_MOST_INDEX: Final = 2**31 - 1


@dataclass(frozen=True)
class TopK:
    """The values of largest size, each in float16 with its position."""

    fraction: float
    """Of a tensor's values, at least one."""

    name = "TopK"

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """The positions in the flattened tensor, ascending, and the values there."""
        size = prod(shape)
        kept = ceil(self.fraction * size)
        return {"positions": Part("I32", (kept,)), "values": Part("F16", (kept,))} if 0 < size <= _MOST_INDEX else {}

    def encode(self, values: Float32) -> Mapping[str, Array]:
        """Of values of equal size, those that come first are kept."""
        flat = values.reshape(-1)
        kept = ceil(self.fraction * flat.size)
        positions = np.sort(np.argsort(-np.abs(flat), kind="stable")[:kept])
        with np.errstate(over="ignore"):
            return {"positions": positions.astype(np.int32), "values": flat[positions].astype(np.float16)}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """The values at their positions, zero elsewhere.

        Raises:
            ValueError: the positions do not ascend, or are outside of the tensor.
        """
        positions, flat = parts["positions"], np.zeros(prod(shape), np.float32)
        if positions[0] < 0 or positions[-1] >= flat.size or not bool((np.diff(positions.astype(np.int64)) > 0).all()):
            raise ValueError("its positions do not ascend within the tensor")
        flat[positions] = parts["values"]
        return flat.reshape(shape)


@dataclass(frozen=True)
class LowRank:
    """The largest components of a matrix's singular value decomposition, each factor in float16 with √σ. Other tensors have none."""

    rank: int
    """Components."""

    name = "LowRank"

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """Left (rows × rank) and right (rank × columns); nothing where they are not smaller than the matrix."""
        if len(shape) != _MATRIX or self.rank * sum(shape) >= prod(shape):
            return {}
        return {"left": Part("F16", (shape[0], self.rank)), "right": Part("F16", (self.rank, shape[1]))}

    def encode(self, values: Float32) -> Mapping[str, Array]:
        """By the eigenvectors of the smaller Gram matrix in float64: a factor's increment has few rows or few columns."""
        wide = values if values.shape[0] <= values.shape[1] else values.T
        exact = wide.astype(np.float64)
        squares, vectors = np.linalg.eigh(exact @ exact.T)
        left = vectors[:, ::-1][:, : self.rank]
        roots = np.sqrt(np.sqrt(np.maximum(squares[::-1][: self.rank], 0)))  # √σ
        right = np.divide(left.T @ exact, roots[:, None], out=np.zeros((self.rank, wide.shape[1])), where=roots[:, None] > 0)
        with np.errstate(over="ignore"):
            pair = (left * roots).astype(np.float16), right.astype(np.float16)
        return {"left": pair[0], "right": pair[1]} if wide is values else {"left": pair[1].T.copy(), "right": pair[0].T.copy()}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """Left times right."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(parts["left"].astype(np.float32) @ parts["right"].astype(np.float32)).reshape(shape)
