"""Divides the samples of a step among processes. Pure."""

from collections.abc import Sequence
from hashlib import blake2b

from fedpipe_trainer.data import Example, micro_batches
from fedpipe_trainer.parallel.messages import Piece


def divide(examples: Sequence[Example], size: int, processes: int, seed: int) -> tuple[Piece, ...]:
    """The micro-batches of a step, in order; process r of n computes those of numbers r, r + n, r + 2n and so on.

    Args:
        examples: the samples of the step.
        size: samples of a micro-batch at most.
        processes: how many processes divide the step.
        seed: with several processes, it decides together with the number of a micro-batch over its dropout.
    """
    parts = micro_batches(examples, size, processes)
    return tuple(Piece(tuple(part), None if processes == 1 else _seed_of(seed, number)) for number, part in enumerate(parts))


def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(blake2b(f"{seed}/{number}".encode(), digest_size=8).digest(), "big") >> 1
