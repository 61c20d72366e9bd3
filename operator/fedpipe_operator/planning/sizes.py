"""Numbers of parameters of adapters and heads, for the memory model and the time model."""

from collections.abc import Iterable, Mapping
from math import prod

from fedpipe_trainer.contract import WeightShape

WIRE_BYTES = 4
"""Per parameter: adapters are trained and sent in fp32."""


def adapter_parameters(weights: Iterable[WeightShape], ranks: Mapping[str, int]) -> int:
    """Σ r·(d_in + d_out): elements of A (r × d_in) and B (d_out × r) over all weights; a weight without an entry has rank 0."""
    return sum(ranks.get(weight.name, 0) * (weight.d_in + weight.d_out) for weight in weights)


def rank_parameters(weights: Iterable[WeightShape]) -> int:
    """Elements that one rank adds to the adapters of all weights."""
    return sum(weight.d_in + weight.d_out for weight in weights)


def residual_parameters(weights: Iterable[WeightShape], ranks: Mapping[str, int], global_rank: int) -> int:
    """Elements of the frozen residual: the global adapter's rank above the site's own, over all weights."""
    return sum(max(0, global_rank - ranks.get(weight.name, 0)) * (weight.d_in + weight.d_out) for weight in weights)


def uniform_ranks(weights: Iterable[WeightShape], rank: int) -> dict[str, int]:
    """The same rank for every weight."""
    return {weight.name: rank for weight in weights}


def head_shapes(head: Mapping[str, tuple[int, ...]], labels: int) -> dict[str, tuple[int, ...]]:
    """The head's tensors with -1 replaced by the number of labels."""
    return {key: tuple(labels if size == -1 else size for size in shape) for key, shape in head.items()}


def head_parameters(head: Mapping[str, tuple[int, ...]]) -> int:
    """Elements of the tensors that are trained and sent in full."""
    return sum(prod(shape) for shape in head.values())
