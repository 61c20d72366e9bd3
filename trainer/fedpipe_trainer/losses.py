"""The loss as a sum and a number of targets, so that a step split into micro-batches (or a mean over sites) stays exact."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpipe_trainer.contract import CausalLM, Objective, SequenceClassification
from fedpipe_trainer.data import IGNORED


def summed_loss(model: Any, batch: dict[str, Tensor], objective: Objective) -> tuple[Tensor, int]:  # noqa: ANN401 - any transformers model
    """The loss in float32, summed over the targets, and the number of targets.

    A target is a sample for a classification, a labelled token for a language model. The loss is the cross entropy; with several labels the
    mean of the labels' binary cross entropies; of a regression the squared error. The caller divides the sum by the
    number of targets of the whole step, not of this micro-batch.
    """
    if isinstance(objective, CausalLM):
        return _summed_response_loss(model, batch)
    labels = batch["labels"]
    inputs = model_inputs(model, batch)
    if isinstance(objective, SequenceClassification):
        return summed_head_loss(model(**inputs).logits, labels, objective), len(labels)
    return _sum_cross_entropy(model(**inputs, labels=labels, use_cache=False).logits, labels)


def model_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model reads of a batch: all but the labels, and without token types if it knows none, whatever its tokenizer tells."""
    unread = {"labels"} if "token_type_ids" in signature(model.forward).parameters else {"labels", "token_type_ids"}
    return {name: tensor for name, tensor in batch.items() if name not in unread}


def summed_head_loss(logits: Tensor, labels: Tensor, objective: SequenceClassification) -> Tensor:
    """The loss of a head, summed over the samples.

    Args:
        logits: (batch, outputs).
        labels: as of `data.collate`.
        objective: its problem decides over the loss.
    """
    logits = logits.float()
    if objective.problem == "Regression":
        return functional.mse_loss(logits.squeeze(1), labels, reduction="sum")
    if objective.problem == "MultiLabel":
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1).sum()
    return functional.cross_entropy(logits, labels, reduction="sum")


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
