"""What a site sends of its update with a codec: of each tensor the increment from what the training started from, encoded.

Of a factor that the global adapter does not have (before the first round, or of a larger rank) the start is zero: the operator does not
know the random one. Where every codec loses too much, a tensor is sent as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import torch

from fedpipe_trainer.adapters import Adapters, AdapterTensors, Factors
from fedpipe_trainer.adapters.wire import lora_a_key, lora_b_key, parameter_key
from fedpipe_trainer.codecs import Array, Float32, TensorCodec, update_codecs
from fedpipe_trainer.codecs.encoding import Encoded, Fidelity, counted, encode
from fedpipe_trainer.codecs.files import part_key
from fedpipe_trainer.contract import IDENTITY, Codec, FailureReason, TrainTask
from fedpipe_trainer.error_feedback import Residuals, ResidualStore, as_residuals, correct, left_over, residual_of
from fedpipe_trainer.errors import TaskFailed


@dataclass(frozen=True)
class Compressed:
    """An update as it is sent, and what was lost."""

    arrays: Mapping[str, Array]
    """By key of the file."""
    codecs: Mapping[str, int]
    """Tensors by codec."""
    fidelity: Fidelity
    """Of all increments together."""
    residuals: Residuals
    """What was lost, with what earlier rounds had lost: for the next round; empty without error feedback."""


@dataclass(frozen=True)
class Weight:
    """A weight of the update: the keys of its factors, and the scale of their product."""

    name: str
    scale: float

    @property
    def keys(self) -> tuple[str, str]:
        """Of A and B."""
        return lora_a_key(self.name), lora_b_key(self.name)


def compressed_update(task: TrainTask, codec: Codec, adapters: Adapters, start: AdapterTensors, cache: Path) -> Compressed:
    """The update as it is sent. What was lost of it is kept in the site's `cache` for its next one, if the codec says so.

    Raises:
        TaskFailed: BadTask, there is no such codec.
    """
    sent = {key: tensor.detach().cpu().numpy() for key, tensor in adapters.update().items()}
    weights = [Weight(name, task.plan.scale(name)) for name, rank in task.plan.ranks.items() if rank]
    starts = starts_of(adapters, start, weights)
    if codec.type == IDENTITY or not codec.error_feedback:
        return compress(sent, starts, codec, weights=weights)
    store = ResidualStore(cache, task.run, task.site)
    compressed = compress(sent, starts, codec, weights=weights, residuals=store.read(task.round))
    store.write(task.round, compressed.residuals)
    return compressed


def starts_of(adapters: Adapters, start: AdapterTensors, weights: list[Weight]) -> dict[str, Float32]:
    """By key of the update: what the operator knows of the tensor that the training started from."""
    starts: dict[str, Float32] = {}
    for weight in weights:
        if weight.name in start.weights:
            a, b = weight.keys
            rank = adapters.trainable[a].shape[0]
            factors = start.weights[weight.name].components(0, rank)
            starts[a], starts[b] = _padded(factors, rank, weight.scale)
    for name, value in start.head.items():
        sent = value - adapters.whole[name] if name in adapters.whole else value
        starts[parameter_key(name)] = sent.numpy()
    return starts


def _padded(factors: Factors, rank: int, scale: float) -> tuple[Float32, Float32]:
    """A and, without the scale, B of this rank: zero in the components that the global adapter does not have."""
    a, b = torch.zeros(rank, factors.a.shape[1]), torch.zeros(len(factors.b), rank)
    a[: factors.rank], b[:, : factors.rank] = factors.a, factors.b / scale
    return a.numpy(), b.numpy()


def compress(
    sent: Mapping[str, Float32],
    starts: Mapping[str, Float32],
    codec: Codec,
    *,
    weights: list[Weight],
    residuals: Residuals | None = None,
) -> Compressed:
    """Encode each tensor's increment, after what earlier rounds lost of it was added.

    Args:
        sent: the update by key.
        starts: by key; a tensor without one starts at zero.
        codec: of the run.
        weights: those of the update, whose factors are corrected together.
        residuals: of earlier rounds; None: without error feedback.

    Raises:
        TaskFailed: BadTask, there is no such codec.
    """
    try:
        rungs = update_codecs(codec)
    except ValueError as error:
        raise TaskFailed(FailureReason.BAD_TASK, f"codec.type: {error}; or use a trainer image as new as the operator") from error
    encoder = _Encoder(starts, codec, rungs)
    left = dict(residuals or {})
    for weight in sorted(weights, key=lambda one: one.name):
        left |= encoder.weight(weight, sent, residuals)
    for key in sorted(sent.keys() - {key for weight in weights for key in weight.keys}):
        left |= encoder.whole(key, sent[key], residuals)
    return Compressed(
        encoder.arrays,
        counted(one.name for one in encoder.encoded),
        reduce(add, (one.fidelity for one in encoder.encoded), Fidelity()),
        left,
    )


class _Encoder:
    """Collects the encoded tensors of an update."""

    def __init__(self, starts: Mapping[str, Float32], codec: Codec, rungs: Sequence[TensorCodec]) -> None:
        self._starts, self._codec, self._rungs = starts, codec, rungs
        self.arrays: dict[str, Array] = {}
        self.encoded: list[Encoded] = []

    def weight(self, weight: Weight, sent: Mapping[str, Float32], residuals: Residuals | None) -> Residuals:
        """Encode both factors of a weight; what is left over for the next round."""
        a_key, b_key = weight.keys
        a, b = sent[a_key], sent[b_key]
        if residuals is None:
            self._tensor(a_key, a), self._tensor(b_key, b)
            return {}
        a, b, rest = correct(a, b, weight.scale, residual_of(residuals, weight.name, (len(b), a.shape[1])))
        decoded = self._tensor(a_key, a), self._tensor(b_key, b)
        return as_residuals(weight.name, left_over(rest, weight.scale, (a, b), decoded))

    def whole(self, key: str, value: Float32, residuals: Residuals | None) -> Residuals:
        """Encode a tensor that is trained whole; what is left over."""
        if residuals is None:
            self._tensor(key, value)
            return {}
        corrected = value + residuals[key] if key in residuals and residuals[key].shape == value.shape else value
        return {key: corrected - self._tensor(key, corrected)}

    def _tensor(self, key: str, value: Float32) -> Float32:
        """Encode one tensor; what is decoded of it."""
        start = self._starts.get(key)
        encoded = encode(value if start is None else value - start, self._rungs, self._codec)
        self.encoded.append(encoded)
        self.arrays |= {part_key(key, encoded.name, part): array for part, array in encoded.parts.items()} or {key: value}
        if encoded.decoded is None:
            return value
        return encoded.decoded if start is None else encoded.decoded + start
