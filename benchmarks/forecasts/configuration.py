"""What is measured: the configurations of a plan, chosen with a fixed seed. Every field is part of a measurement's key."""

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from typing import Any, Final

from fedpipe_trainer.contract import Bits

BITS: Final[tuple[Bits, ...]] = (16, 32, 8, 4)
BATCH: Final = 16
"""Samples per optimiser step."""


@dataclass(frozen=True)
class Work:
    """A base model and what it learns."""

    model: str
    """A folder of the model cache."""
    task: dict[str, Any]
    """`spec.task`."""
    layers: tuple[int, ...]
    """The numbers of top layers that are trained: the fractions of all layers that the planner chooses from."""
    steps: int
    """Optimiser steps of a measurement."""
    checkpointing: tuple[bool, ...] = (False, True)
    train_per_label: int = 30
    validation_per_label: int = 3


WORKS: Final = {
    "minilm": Work(
        "minilm", {"type": "SequenceClassification", "text": "text", "label": "label", "maxLength": 64}, layers=(6, 4, 3, 2), steps=6
    ),
    "mpnet": Work(
        "mpnet",
        {"type": "SequenceClassification", "text": "text", "label": "label", "maxLength": 64},
        layers=(12, 9, 6, 4),
        steps=4,
        checkpointing=(False,),
    ),
    "smollm2": Work(
        "smollm2", {"type": "CausalLM", "prompt": "{label}:\n", "response": "{text}", "maxLength": 64}, layers=(30, 22, 15, 10), steps=4
    ),
}


@dataclass(frozen=True)
class Configuration:
    """One plan to measure."""

    work: str
    """A key of `WORKS`."""
    clock: str
    """What the seconds are measured with: `wall` or `processor`."""
    bits: Bits
    """The configurations of a bit width are measured right after a profile of it, which they are forecast from."""
    micro_batch: int
    layers: int
    checkpointing: bool
    rank: int


def configurations(work: str, clock: str, size: int) -> list[Configuration]:
    """So many different ones of each bit width: each value of each field about equally often, in combinations drawn with a fixed seed."""
    return [one for bits in BITS for one in _of_bits(work, clock, bits, size)]


def _of_bits(work: str, clock: str, bits: Bits, size: int) -> list[Configuration]:
    model, chance = WORKS[work], random.Random(bits)  # noqa: S311 - not for cryptography
    chosen: dict[Configuration, None] = {}
    while len(chosen) < size:
        columns = [_spread(values, size, chance) for values in ((1, 2, 4, 8, BATCH), model.layers, model.checkpointing, (4, 8, 16, 32))]
        chosen |= dict.fromkeys(Configuration(work, clock, bits, *row) for row in zip(*columns, strict=True))
    return list(chosen)[:size]


def key_of(configuration: Configuration) -> str:
    """The name under which its measurement is stored."""
    fields = {"work": asdict(WORKS[configuration.work]), "configuration": asdict(configuration)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _spread(values: tuple[Any, ...], count: int, chance: random.Random) -> list[Any]:
    """So many of these values, each as often as any other (or once more), in random order."""
    column = [values[index % len(values)] for index in range(count)]
    chance.shuffle(column)
    return column
