"""The loss as a sum and a count, so that a step split into micro-batches (or a mean over sites) stays exact."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedpipe_trainer.contract import CausalLM, Objective, SequenceClassification
from fedpipe_trainer.data import IGNORED


def summed_loss(model: Any, batch: dict[str, Tensor], objective: Objective) -> tuple[Tensor, int]:  # noqa: ANN401 - any transformers model
    """Cross entropy in float32, summed over the targets, and how many targets there were.

    A target is a sample for a classification, a labelled token for a language model. What the sum must be divided by
    is the caller's to know: the targets of the whole step, not of this piece of it.
    """
    if isinstance(objective, CausalLM):
        return _of_responses(model, batch)
    labels = batch["labels"]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if isinstance(objective, SequenceClassification):
        return _summed(model(**inputs).logits, labels)
    return _summed(model(**inputs, labels=labels, use_cache=False).logits, labels)


def _of_responses(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:  # noqa: ANN401 - likewise
    # Logits over a vocabulary of 50,000 are the largest tensor of a step: they are made only where some row has a target.
    targets = batch["labels"][:, 1:]
    columns = torch.nonzero((targets != IGNORED).any(dim=0)).squeeze(1)
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=columns, use_cache=False)
    return _summed(output.logits, targets[:, columns])


def _summed(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    flat = targets.reshape(-1)
    loss = functional.cross_entropy(logits.reshape(flat.shape[0], -1).float(), flat, ignore_index=IGNORED, reduction="sum")
    return loss, int((flat != IGNORED).sum())
