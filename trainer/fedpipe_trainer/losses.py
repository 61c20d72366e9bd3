"""The loss as a sum and a number of targets, so that a step split into micro-batches (or a mean over sites) stays exact."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpipe_trainer.contract import CausalLM, Objective, Preference, SequenceClassification
from fedpipe_trainer.data import IGNORED
from fedpipe_trainer.reference import margins, reference_margins


def summed_loss(model: Any, batch: dict[str, Tensor], objective: Objective) -> tuple[Tensor, int]:  # noqa: ANN401 - any transformers model
    """The loss in float32, summed over the targets, and the number of targets.

    A target is a sample for a classification, a pair for a preference, a labelled token for a language model. The loss is the cross
    entropy; with several labels the mean of the labels' binary cross entropies; of a regression the squared error; of a pair DPO's. The
    caller divides the sum by the number of targets of the whole step, not of this micro-batch.
    """
    if isinstance(objective, CausalLM):
        return _summed_response_loss(model, batch)
    if isinstance(objective, Preference):
        rewards = reward_margins(model, batch, objective.beta)
        return summed_preference_loss(rewards), len(rewards)
    labels = batch["labels"]
    inputs = model_inputs(model, batch)
    if isinstance(objective, SequenceClassification):
        return summed_head_loss(model(**inputs).logits, labels, objective), len(labels)
    return _sum_cross_entropy(model(**inputs, labels=labels, use_cache=False).logits, labels)


def model_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model reads of a batch: all but the labels, and without token types if it knows none, whatever its tokenizer tells."""
    unread = {"labels"} if "token_type_ids" in signature(model.forward).parameters else {"labels", "token_type_ids"}
    return {name: tensor for name, tensor in batch.items() if name not in unread}


def reward_margins(model: Any, batch: dict[str, Tensor], beta: float) -> Tensor:  # noqa: ANN401 - any transformers model
    """By pair, the reward of the chosen answer less that of the rejected one (Rafailov et al., arXiv 2305.18290, section 5).

    The reward of an answer is beta · log(p / p of the reference), of which the part that depends on the prompt alone cancels out.

    Args:
        model: a causal language model with its adapters.
        batch: of n pairs, as of `data.collate`.
        beta: of the objective.

    Returns:
        Of shape (n,), float32.
    """
    reference = reference_margins(model, batch)  # first, so that it does not lie in memory beside the activations
    return beta * (margins(model, batch) - reference)


def summed_preference_loss(rewards: Tensor) -> Tensor:
    """DPO's loss -log σ(margin) (arXiv 2305.18290, eq. 7), summed over the pairs."""
    return -functional.logsigmoid(rewards).sum()


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
