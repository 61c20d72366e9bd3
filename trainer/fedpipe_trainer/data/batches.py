"""Which examples a step trains on, and their tensors."""

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
"""Tokens that lengths of batches differ by. With every length of its own, a process on the CPU grew by 18 MB a step (freed blocks that
no later tensor fits), and a GPU's matrix units want multiples of eight anyway."""


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The examples of step `step` (from 0), out of `n`: the next `batch_size` of an endless row of shuffled epochs.

    A function of its arguments alone, on every machine and in every version of Python: a task that goes on at some
    step sees the data it would have seen.
    """
    first = step * batch_size
    return [_epoch(n, position // n, seed)[position % n] for position in range(first, first + batch_size)]


@lru_cache(maxsize=2)  # a step reads one epoch, or the end of one and the start of the next
def _epoch(n: int, epoch: int, seed: int) -> tuple[int, ...]:
    return tuple(sorted(range(n), key=lambda i: blake2b(f"{seed}/{epoch}/{i}".encode(), digest_size=16).digest()))


def collate(examples: Sequence[Example], objective: SequenceClassification | CausalLM | Seq2SeqLM, pad_id: int) -> dict[str, Tensor]:
    """The batch as a model takes it, padded on the right to its longest example and on to a multiple of `STRIDE` (or to max_length).

    Returns:
        `input_ids` and `attention_mask` of shape (batch, length); `labels` of shape (batch,) for a classification,
        else (batch, length) of inputs (CausalLM) or of targets (Seq2SeqLM), padded with -100. All int64.
    """
    inputs = [example.input_ids for example in examples]
    labels = [example.labels for example in examples]
    most = objective.max_length
    return {
        "input_ids": _padded(inputs, pad_id, most),
        "attention_mask": _padded([[1] * len(ids) for ids in inputs], 0, most),
        "labels": torch.tensor(labels).squeeze(1) if isinstance(objective, SequenceClassification) else _padded(labels, IGNORED, most),
    }


def target_count(batch: dict[str, Tensor]) -> int:
    """How many labels (or tokens) the batch's loss is a mean over."""
    return int((batch["labels"] != IGNORED).sum())


def _padded(rows: Sequence[list[int]], filler: int, most: int) -> Tensor:
    longest = max(len(row) for row in rows)
    length = max(longest, min(most, math.ceil(longest / STRIDE) * STRIDE))
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])
