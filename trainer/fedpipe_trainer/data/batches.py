"""Composes batches of examples of like lengths, selects the batch of a training step, and collates it into tensors.

Padding is computed like any other token, so a batch should hold examples of like lengths. Which examples share a batch is
fixed by the run's seed and the site; in which order the batches come is drawn anew for each round and epoch. So the rows
of a batch, and with them its activations, are the same in every pass and round and can be cached (`activation_cache`).
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpipe_trainer.contract import CausalLM, Objective, Preference, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data.examples import IGNORED, Example
from fedpipe_trainer.data.pairs import split_answers

STRIDE: Final = 8
"""Batches are padded to a multiple of this many tokens. Without it, a process on the CPU grew by 18 MB per step, since freed blocks fitted
no later tensor. A GPU's matrix units need multiples of eight anyway."""

_DRAWN_BYTES: Final = 16
Batch = tuple[int, ...]
"""Indices of the examples of one training step, the longest example first."""


@lru_cache(maxsize=2)  # a step reads from one epoch, the next one from the same or the one after
def shuffled(n: int, seed: str) -> tuple[int, ...]:
    """The numbers below `n` in an order that depends only on the arguments, on every machine and in every version of Python."""
    return tuple(_order(seed, n).tolist())


class Batches(Sequence[Batch]):
    """Batches that are made when they are asked for: eight bytes are kept of an example."""

    def __init__(self, order: NDArray[np.int32], lengths: NDArray[np.int32], batch_size: int) -> None:
        """Cut this order of the examples, which have these lengths, into as few batches of so many examples at most as there can be."""
        self._order, self._lengths = order, lengths
        self._count = math.ceil(len(order) / batch_size)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Batch, ...]: ...
    def __getitem__(self, at: int | slice) -> Batch | tuple[Batch, ...]:
        if isinstance(at, slice):
            return tuple(self[one] for one in range(*at.indices(len(self))))
        at = range(len(self))[at]
        cut = self._order[len(self._order) * at // self._count : len(self._order) * (at + 1) // self._count]
        return tuple(sorted(cut.tolist(), key=lambda i: (-int(self._lengths[i]), i)))

    def __eq__(self, other: object) -> bool:
        """Whether the other sequence has the same batches."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # it is no key


def compose_batches(lengths: Sequence[int], batch_size: int, seed: int) -> Batches:
    """Divide all examples into batches of like lengths, as equal in size as possible.

    Examples are sorted by their length, rounded up to a multiple of `STRIDE`: within such a class, where a batch has no
    padding but that up to the multiple, chance decides which examples share a batch. Equal sizes give every example the
    same weight in an epoch; a last batch of a single example would count that one as much as all of another batch.

    Args:
        lengths: tokens of each example.
        batch_size: examples per batch at most.
        seed: decides together with the lengths which examples share a batch.

    Returns:
        Each example in exactly one of ceil(n / batch_size) batches, whose sizes differ by one at most.
    """
    of_all = np.array(lengths, dtype=np.int32)
    return Batches(_order(str(seed), len(lengths), -(-of_all // STRIDE)), of_all, batch_size)


def batch_of_step(batches: Sequence[Batch], step: int, seed: int) -> Batch:
    """The batch of step `step` (from 0): the next one of an endless sequence of epochs, each with all batches in an order of its own.

    The result depends only on the arguments. So a task that resumes at a step sees the same data as one that was not stopped.
    """
    epoch, position = divmod(step, len(batches))
    return batches[shuffled(len(batches), f"{seed}/{epoch}")[position]]


def micro_batches(examples: Sequence[Example], size: int, processes: int = 1) -> Iterator[Sequence[Example]]:
    """Consecutive parts of a batch, of `size` examples each; the last may be smaller.

    With several processes there are as many parts for each, of equal size up to one example, as far as there are examples: each process
    then computes a step's parts in the same time.
    """
    if processes == 1:
        return (examples[first : first + size] for first in range(0, len(examples), size))
    n = len(examples)
    count = min(n, processes * math.ceil(n / (processes * size)))
    return (examples[n * i // count : n * (i + 1) // count] for i in range(count))


def collate(examples: Sequence[Example], objective: Objective, pad_id: int) -> dict[str, Tensor]:
    """The batch as input of a model, padded on the right.

    Its length is that of the longest example, rounded up to a multiple of `STRIDE`, but not beyond max_length.

    Returns:
        `input_ids` and `attention_mask` of shape (batch, length), and `token_type_ids` likewise if a sample has a second text that the
        model is told of. `labels` has shape (batch,) for a classification and a regression, (batch, labels) with several labels, otherwise
        (batch, length) with the length of the inputs (CausalLM, Preference) or of the targets (Seq2SeqLM), padded with -100. All int64,
        but for float32 labels of a regression and of several labels. Pairs of answers have two rows each: those of the chosen ones first.
    """
    if isinstance(objective, Preference):
        examples = split_answers(examples)
    inputs = [example.input_ids for example in examples]
    labels = [example.labels for example in examples]
    max_length = objective.max_length
    batch = {
        "input_ids": _pad(inputs, pad_id, max_length),
        "attention_mask": _pad([[1] * len(ids) for ids in inputs], 0, max_length),
        "labels": _targets(labels, objective) if isinstance(objective, SequenceClassification) else _pad(labels, IGNORED, max_length),
    }
    if any(example.second for example in examples):
        types = [[int(0 < one.second <= at) for at in range(len(one.input_ids))] for one in examples]
        batch["token_type_ids"] = _pad(types, 0, max_length)
    return batch


def _targets(labels: Sequence[Sequence[float]], objective: SequenceClassification) -> Tensor:
    values = torch.tensor([list(of_sample) for of_sample in labels])
    if objective.problem == "SingleLabel":
        return values.squeeze(1)
    return values.float().squeeze(1) if objective.problem == "Regression" else values.float()


def count_tokens(examples: Sequence[Example], objective: Objective) -> int:
    """Tokens that a model reads of these examples, without padding; with the targets for an encoder-decoder."""
    return sum(len(row) for rows in _token_rows(examples, objective) for row in rows)


def count_padding(examples: Sequence[Example], objective: Objective, micro_batch: int, processes: int = 1) -> int:
    """Tokens of padding that `collate` adds to these examples in micro-batches of this size, of so many processes."""
    return sum(
        len(rows) * _padded_length(rows, objective.max_length) - sum(map(len, rows))
        for part in micro_batches(examples, micro_batch, processes)
        for rows in _token_rows(part, objective)
    )


def count_targets(example: Example, objective: Objective) -> int:
    """The number of labels or tokens of a sample that count in the loss: one for a classification or a regression, and for a pair."""
    if isinstance(objective, SequenceClassification | Preference):
        return 1
    # In a causal model, no position predicts the first one.
    labels = example.labels[1:] if isinstance(objective, CausalLM) else example.labels
    return sum(label != IGNORED for label in labels)


def _order(seed: str, n: int, classes: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
    """The numbers below `n` sorted by their class, and in it by a hash of seed and number."""
    drawn = bytearray()
    for number in range(n):
        drawn += blake2b(f"{seed}/{number}".encode(), digest_size=_DRAWN_BYTES).digest()
    high, low = np.frombuffer(drawn, dtype=">u8").reshape(n, 2).T
    return np.lexsort((low, high) if classes is None else (low, high, classes)).astype(np.int32)


def _token_rows(examples: Sequence[Example], objective: Objective) -> list[Sequence[Sequence[float]]]:
    """The rows of each tensor of tokens that a model reads: the inputs, and the targets of an encoder-decoder."""
    if isinstance(objective, Preference):
        examples = split_answers(examples)
    inputs = [example.input_ids for example in examples]
    return [inputs, [example.labels for example in examples]] if isinstance(objective, Seq2SeqLM) else [inputs]


def _padded_length(rows: Sequence[Sequence[float]], max_length: int) -> int:
    longest = max(len(row) for row in rows)
    return max(longest, min(max_length, math.ceil(longest / STRIDE) * STRIDE))


def _pad(rows: Sequence[Sequence[float]], pad_value: int, max_length: int) -> Tensor:
    length = _padded_length(rows, max_length)
    return torch.tensor([[*row, *[pad_value] * (length - len(row))] for row in rows])
