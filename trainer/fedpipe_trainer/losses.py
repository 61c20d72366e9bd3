"""The loss as a sum and a number of targets, so that a step split into micro-batches (or a mean over sites) stays exact."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedpipe_trainer.contract import CausalLM, Objective, SequenceClassification
from fedpipe_trainer.data import IGNORED


def summed_loss(model: Any, batch: dict[str, Tensor], objective: Objective) -> tuple[Tensor, int]:  # noqa: ANN401 - any transformers model
    """Cross entropy in float32, summed over the targets, and the number of targets.

    A target is a sample for a classification, a labelled token for a language model. The caller divides the sum by the
    number of targets of the whole step, not of this micro-batch.
    """
    if isinstance(objective, CausalLM):
        return _summed_response_loss(model, batch)
    labels = batch["labels"]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if isinstance(objective, SequenceClassification):
        return _sum_cross_entropy(model(**inputs).logits, labels)
    return _sum_cross_entropy(model(**inputs, labels=labels, use_cache=False).logits, labels)


def _summed_response_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:  # noqa: ANN401 - any transformers model
    # Logits over a vocabulary of 50,000 are the largest tensor of a step: they are computed only for columns where a row has a target.
    targets = batch["labels"][:, 1:]
    columns = torch.nonzero((targets != IGNORED).any(dim=0)).squeeze(1)
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=columns, use_cache=False)
    return _sum_cross_entropy(output.logits, targets[:, columns])


def _sum_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    flat = targets.reshape(-1)
    loss = functional.cross_entropy(logits.reshape(flat.shape[0], -1).float(), flat, ignore_index=IGNORED, reduction="sum")
    return loss, int((flat != IGNORED).sum())
