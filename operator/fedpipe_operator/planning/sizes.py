"""Sizes of adapters and heads, in parameters for the memory model and the time model, and in bytes of the files that are sent."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod
from typing import Final

from fedpipe_trainer.codecs import DTYPES, Part, TensorCodec
from fedpipe_trainer.codecs.files import nominal, parts_of
from fedpipe_trainer.contract import BaseModelFacts, WeightShape

WIRE_BYTES: Final = 4
"""Per parameter: adapters are trained, and without a codec sent, in fp32."""
_UPDATE_METADATA: Final = len('"__metadata__":{"format":"pt"},')
"""What the trainer adds to the header of an update. The operator adds nothing to that of the global adapter."""
_ALIGNMENT: Final = 8
Shapes = Mapping[str, tuple[int, ...]]
Rungs = Sequence[TensorCodec]
"""Codecs, of which each tensor is encoded by the first that has something for its shape; empty: none."""


def adapter_parameters(weights: Iterable[WeightShape], ranks: Mapping[str, int]) -> int:
    """Σ r·(d_in + d_out): elements of A (r × d_in) and B (d_out × r) over all weights; a weight without an entry has rank 0."""
    return sum(ranks.get(weight.name, 0) * (weight.d_in + weight.d_out) for weight in weights)


def rank_parameters(weights: Iterable[WeightShape]) -> int:
    """Elements that one rank adds to the adapters of all weights."""
    return sum(weight.d_in + weight.d_out for weight in weights)


def residual_parameters(weights: Iterable[WeightShape], ranks: Mapping[str, int], global_rank: int) -> int:
    """Elements of the frozen residual: the global adapter's rank above the site's own, over all weights."""
    return sum(max(0, global_rank - ranks.get(weight.name, 0)) * (weight.d_in + weight.d_out) for weight in weights)


def update_file_bytes(weights: Iterable[WeightShape], ranks: Mapping[str, int], head: Shapes, rungs: Rungs = ()) -> int:
    """Size of a site's update with these codecs, if none loses too much: larger items first, then in the order of their keys."""
    parts = _parts({**head, **_factor_shapes(weights, ranks)}, rungs)
    ordered = sorted(parts, key=lambda key: (-DTYPES[parts[key].dtype].itemsize, key))
    return _file_bytes({key: parts[key] for key in ordered}, _UPDATE_METADATA)


def update_bytes(weights: Iterable[WeightShape], ranks: Mapping[str, int], head: Shapes, rungs: Rungs = ()) -> int:
    """The same without the file's header: without a codec 4·Σ r·(d_in + d_out), plus the head."""
    if not rungs:
        return WIRE_BYTES * (adapter_parameters(weights, ranks) + head_parameters(head))
    return sum(part.size for part in _parts({**head, **_factor_shapes(weights, ranks)}, rungs).values())


def global_file_bytes(weights: Iterable[WeightShape], rank: int, head: Shapes, rungs: Rungs = ()) -> int:
    """Size of the global adapter with this rank for every weight: the head, then the factors, both in the order of their names."""
    ordered = sorted(weights, key=lambda weight: weight.name)
    factors = _factor_shapes(ordered, dict.fromkeys((weight.name for weight in ordered), rank))
    return _file_bytes(_parts({key: head[key] for key in sorted(head)} | factors, rungs))


def element_bytes(rank: int, width: int, rungs: Rungs) -> float:
    """Bytes that an element of a factor of this rank and width takes on the wire: 4 without a codec."""
    return sum(part.size for part in _parts({"": (rank, width)}, rungs).values()) / (rank * width)


def _parts(shapes: Shapes, rungs: Rungs) -> dict[str, Part]:
    """By key of the file: how the tensors are written, if no codec loses too much."""
    return {part: one for key, shape in shapes.items() for part, one in parts_of(key, shape, nominal(shape, rungs)).items()}


def _factor_shapes(weights: Iterable[WeightShape], ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of A and B of each weight that has a rank, by key of the adapter file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for weight in weights:
        if rank := ranks.get(weight.name, 0):
            stem = f"base_model.model.{weight.name}"
            shapes[f"{stem}.lora_A.weight"], shapes[f"{stem}.lora_B.weight"] = (rank, weight.d_in), (weight.d_out, rank)
    return shapes


def _file_bytes(parts: Mapping[str, Part], metadata: int = 0) -> int:
    """Size of a safetensors file: the header's length (8 bytes), the header in JSON, padded to a multiple of 8 bytes, and the tensors."""
    header, end = len("{") + metadata, 0  # the last entry's comma stands for the closing brace; a shape is written without spaces
    for key, part in parts.items():
        start, end = end, end + part.size
        entry = f'"":{{"dtype":"{part.dtype}","shape":{list(part.shape)},"data_offsets":[{start},{end}]}},'
        header += len(key) + len(entry) - (len(part.shape) - 1)
    return _ALIGNMENT + ceil(header / _ALIGNMENT) * _ALIGNMENT + end


def uniform_ranks(weights: Iterable[WeightShape], rank: int) -> dict[str, int]:
    """The same rank for every weight."""
    return {weight.name: rank for weight in weights}


def head_shapes(base: BaseModelFacts, labels: int) -> dict[str, tuple[int, ...]]:
    """The tensors that are trained in full: the head's, with -1 replaced by the number of labels, and those of `planning.modulesToSave`."""
    head = {key: tuple(labels if size == -1 else size for size in shape) for key, shape in base.head.items()}
    return head | base.whole


def head_parameters(head: Mapping[str, tuple[int, ...]]) -> int:
    """Elements of the tensors that are trained and sent in full."""
    return sum(prod(shape) for shape in head.values())
