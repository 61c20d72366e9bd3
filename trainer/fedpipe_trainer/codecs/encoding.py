"""Which codec a tensor gets: the first of the ladder of which little enough is lost. numpy only."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedpipe_trainer.codecs.codec import Array, Float32, TensorCodec
from fedpipe_trainer.contract import IDENTITY, Codec


@dataclass(frozen=True)
class Fidelity:
    """How far what is decoded is from what was encoded, from sums that add up over tensors."""

    square: float = 0.0
    """‖x‖²."""
    decoded_square: float = 0.0
    """‖x̂‖²."""
    product: float = 0.0
    """⟨x, x̂⟩."""
    error: float = 0.0
    """‖x̂ − x‖²."""

    @classmethod
    def of(cls, values: Float32, decoded: Float32) -> "Fidelity":
        """Of one tensor. Values that are not finite make the sums NaN, which no bound allows."""
        with np.errstate(over="ignore", invalid="ignore"):
            x, y = values.astype(np.float64).reshape(-1), decoded.astype(np.float64).reshape(-1)
            return cls(float(x @ x), float(y @ y), float(x @ y), float((y - x) @ (y - x)))

    def __add__(self, other: "Fidelity") -> "Fidelity":
        return Fidelity(
            self.square + other.square,
            self.decoded_square + other.decoded_square,
            self.product + other.product,
            self.error + other.error,
        )

    @property
    def cosine(self) -> float:
        """Between both; 1 where there was nothing to lose."""
        if not self.error:
            return 1.0
        norms = math.sqrt(self.square) * math.sqrt(self.decoded_square)
        return max(min(self.product / norms, 1.0), -1.0) if norms else 0.0  # in this order, NaN stays NaN

    @property
    def relative_error(self) -> float:
        """‖x̂ − x‖ / ‖x‖; 0 where there was nothing to lose."""
        return math.sqrt(self.error / self.square) if self.square else 0.0

    def is_within(self, codec: Codec) -> bool:
        """Whether the bounds of the spec hold."""
        return self.cosine >= codec.min_cosine and self.relative_error <= codec.max_relative_error


class Encoded(NamedTuple):
    """One tensor, encoded."""

    name: str
    """Of the codec."""
    parts: Mapping[str, Array]
    """By name of the part; empty of Identity."""
    decoded: Float32 | None
    """What the receiver adds to the start; None of Identity, which is sent as it is."""
    fidelity: Fidelity


def encode(increment: Float32, rungs: Sequence[TensorCodec], bounds: Codec) -> Encoded:
    """The increment by the first of these codecs that keeps to the bounds; by Identity if none does, or if it is not finite."""
    for codec in rungs if np.isfinite(increment).all() else ():
        if not codec.parts(increment.shape):
            continue
        try:
            parts = codec.encode(increment)
        except np.linalg.LinAlgError:  # a decomposition that does not converge
            continue
        decoded = codec.decode(parts, increment.shape)
        fidelity = Fidelity.of(increment, decoded)
        if fidelity.is_within(bounds):
            return Encoded(codec.name, parts, decoded, fidelity)
    return Encoded(IDENTITY, {}, None, Fidelity.of(increment, increment))


def counted(names: Iterable[str]) -> dict[str, int]:
    """How many tensors each codec was used for."""
    return dict(sorted(Counter(names).items()))
