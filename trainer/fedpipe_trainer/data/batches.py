"""Selects the examples of a training step and collates them into tensors."""

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import torch
from torch import Tensor

from fedpipe_trainer.contract import CausalLM, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data.encoding import IGNORED, Example

STRIDE: Final = 8
"""Batches are padded to a multiple of this many tokens. Without it, a process on the CPU grew by 18 MB per step, since freed blocks fitted
no later tensor. A GPU's matrix units need multiples of eight anyway."""


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the examples of step `step` (from 0) out of `n`: the next `batch_size` of an endless sequence of shuffled epochs.

    The result depends only on the arguments, on every machine and in every version of Python. So a task that resumes at
    a step sees the same data as one that was not stopped.
    """
    first = step * batch_size
    return [_shuffle_epoch(n, position // n, seed)[position % n] for position in range(first, first + batch_size)]


@lru_cache(maxsize=2)  # a step reads from one epoch, or from the end of one and the start of the next
def _shuffle_epoch(n: int, epoch: int, seed: int) -> tuple[int, ...]:
    return tuple(sorted(range(n), key=lambda i: blake2b(f"{seed}/{epoch}/{i}".encode(), digest_size=16).digest()))


def collate(examples: Sequence[Example], objective: SequenceClassification | CausalLM | Seq2SeqLM, pad_id: int) -> dict[str, Tensor]:
    """The batch as input of a model, padded on the right.

    Its length is that of the longest example, rounded up to a multiple of `STRIDE`, but not beyond max_length.

    Returns:
        `input_ids` and `attention_mask` of shape (batch, length). `labels` has shape (batch,) for a classification, otherwise
        (batch, length) with the length of the inputs (CausalLM) or of the targets (Seq2SeqLM), padded with -100. All int64.
    """
    inputs = [example.input_ids for example in examples]
    labels = [example.labels for example in examples]
    max_length = objective.max_length
    return {
        "input_ids": _pad(inputs, pad_id, max_length),
        "attention_mask": _pad([[1] * len(ids) for ids in inputs], 0, max_length),
        "labels": torch.tensor(labels).squeeze(1) if isinstance(objective, SequenceClassification) else _pad(labels, IGNORED, max_length),
    }


def target_count(batch: dict[str, Tensor]) -> int:
    """The number of labels (or tokens) over which the batch's loss is a mean."""
    return int((batch["labels"] != IGNORED).sum())


def _pad(rows: Sequence[list[int]], pad_value: int, max_length: int) -> Tensor:
    longest = max(len(row) for row in rows)
    length = max(longest, min(max_length, math.ceil(longest / STRIDE) * STRIDE))
    return torch.tensor([row + [pad_value] * (length - len(row)) for row in rows])
