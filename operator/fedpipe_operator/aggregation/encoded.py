"""Updates and global adapters that travel encoded (`spec.codec`): behind this, the aggregation sees float32 tensors only.

What an update encodes is the increment of each tensor from what its site started from. What is decoded is added to the global adapter,
so that a site may have started from a less exact copy of it (`spec.codec.downlink`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from fedpipe_operator.aggregation.tensors import Float32, MalformedError, Sink, Source, TensorFile, TensorWriter, factor_keys
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.codecs import Shape, TensorCodec, ladder, update_codecs
from fedpipe_trainer.codecs.encoding import encode
from fedpipe_trainer.codecs.files import codec_in, part_key, parts_of
from fedpipe_trainer.contract import Artifact, Codec


class Tensors(Protocol):
    """The float32 tensors of an update, read one at a time."""

    @property
    def source(self) -> Source:
        """The file's bytes."""

    def read(self, key: str) -> Float32:
        """The tensor under this key.

        Raises:
            KeyError: there is no such key.
            MalformedError: it is not encoded as its codec does.
        """


class Factor(NamedTuple):
    """A tensor of an update that is one of the factors of a weight."""

    weight: str
    is_a: bool
    scale: float
    """Of the site's product: its B is without it."""


@dataclass(frozen=True)
class DecodedTensors:
    """The tensors of a file of which some are encoded."""

    file: TensorFile
    shapes: Mapping[str, Shape]
    """Of the tensors, by key."""
    rungs: Sequence[TensorCodec]
    """The codecs that one may be encoded by."""
    factors: Mapping[str, Factor]
    """By key of those that are factors."""
    previous: TensorFile | None
    """The global adapter that the increments are added to; None in round 1."""

    @property
    def source(self) -> Source:
        """See `Tensors.source`."""
        return self.file.source

    @cached_property
    def codecs(self) -> dict[str, TensorCodec | None]:
        """By key of a tensor; None: as it is, or not there."""
        return {key: codec_in(self.file.entries, key, shape, self.rungs) for key, shape in self.shapes.items()}

    def read(self, key: str) -> Float32:
        """See `Tensors.read`."""
        codec, shape = self.codecs[key], self.shapes[key]
        if codec is None:
            return self.file.read(key)
        parts = {name: self.file.read_array(part_key(key, codec.name, name)) for name in codec.parts(shape)}
        try:
            increment = codec.decode(parts, shape)
        except ValueError as error:
            raise MalformedError(f"tensor {key}: {error}") from error
        start = self._start(key, shape)
        return increment if start is None else increment + start

    def _start(self, key: str, shape: Shape) -> Float32 | None:
        """What the site's training started from, as the global adapter has it; zero in the components that it does not have."""
        if self.previous is None:
            return None
        if key not in self.factors:
            return self.previous.read(key)
        factor = self.factors[key]
        known_key = factor_keys(factor.weight)[0 if factor.is_a else 1]
        if known_key not in self.previous.entries:
            return None
        start, known = np.zeros(shape, np.float32), self.previous.read(known_key)
        rows, columns = (min(one, other) for one, other in zip(shape, known.shape, strict=True))
        start[:rows, :columns] = known[:rows, :columns]
        return start if factor.is_a else start / np.float32(factor.scale)


def open_update(file: TensorFile, plan: RoundPlan, site: str, scales: Mapping[str, float], previous: TensorFile | None) -> Tensors:
    """The tensors of a site's update, decoded where the round's plan has a codec."""
    rungs = update_codecs(plan.codec)
    if not rungs:
        return file
    factors = {
        key: Factor(weight, is_a, scales[weight])
        for weight, rank in plan.plans[site].ranks.items()
        if rank
        for key, is_a in zip(factor_keys(weight), (True, False), strict=True)
    }
    return DecodedTensors(file, shapes_of(plan, site), rungs, factors, previous)


def shapes_of(plan: RoundPlan, site: str) -> dict[str, Shape]:
    """The shape of every tensor of this site's update, by key."""
    shapes = dict(plan.head)
    for weight, (d_out, d_in) in plan.weights.items():
        if rank := plan.plans[site].ranks.get(weight, 0):
            a_key, b_key = factor_keys(weight)
            shapes |= {a_key: (rank, d_in), b_key: (d_out, rank)}
    return shapes


def write_encoded(adapter: TensorFile, codec: Codec, name: str, sink: Sink) -> Artifact:
    """Write the tensors of a global adapter as the sites read them, by `codec.downlink`; one tensor is in memory at a time.

    Raises:
        ValueError: there is no such codec.
        OSError: the source or the sink failed.
    """
    rungs = ladder(codec, codec.downlink)
    chosen = {key: encode(adapter.read(key), rungs, codec).name for key in adapter.entries}
    by_name = {one.name: one for one in rungs}
    parts = {key: parts_of(key, entry.shape, by_name.get(chosen[key])) for key, entry in adapter.entries.items()}
    declared = {key: part for of_tensor in parts.values() for key, part in of_tensor.items()}
    writer = TensorWriter(sink, {key: part.shape for key, part in declared.items()}, {key: part.dtype for key, part in declared.items()})
    for key in adapter.entries:
        tensor, one = adapter.read(key), by_name.get(chosen[key])
        arrays = {key: tensor} if one is None else {part_key(key, one.name, part): array for part, array in one.encode(tensor).items()}
        for part in parts[key]:
            writer.write(part, arrays[part])
    return writer.close(name)
