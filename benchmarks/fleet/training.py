"""Training and evaluation with the trainer's own functions, in this process."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from configuration import Problem
from task import TEST_DOCUMENTS, Task
from torch.nn import functional

from fedpipe_trainer.adapters import Adapters, AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.adapters.lora import FROZEN_ADAPTER
from fedpipe_trainer.contract import Hyperparameters, Scaling, SequenceClassification
from fedpipe_trainer.contract.plan import scale_of
from fedpipe_trainer.data import IGNORED, Example, batch_of_step, collate, compose_batches
from fedpipe_trainer.evaluation import EvaluationTotals, evaluate_batches, evaluation_mode, mean_loss
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode

ALPHA = 16.0
_EVALUATION_BATCH = 64
_RESPONSES_AT_ONCE = 16


@dataclass(frozen=True)
class Quality:
    """An adapter's quality on the test documents."""

    accuracy: float
    """Share of the documents, or of the response's tokens, that are predicted right."""
    loss: float
    slow_accuracy: float | None
    """Accuracy on the documents of the reported classes; None for a language model."""


def scale(rank: int) -> float:
    """The factor of B·A, as the product's default plan has it (rsLoRA)."""
    return scale_of(Scaling.RSLORA, ALPHA, rank)


def ranks_of(task: Task, rank: int, depth: int | None) -> dict[str, int]:
    """This rank on the target weights of the top `depth` layers."""
    lowest = task.layers - (depth or task.layers)
    return {weight.name: rank for weight in task.weights if weight.layer >= lowest}


@contextmanager
def trainable(task: Task, ranks: dict[str, int], start: AdapterTensors, seed: int) -> Iterator[Adapters]:
    """The base with adapters of these ranks that continue from `start`."""
    spec = AdapterSpec(ranks=ranks, scale=lambda weight: scale(ranks[weight]))
    with attach_adapters(task.base, spec, start, seed) as adapters:
        yield adapters


def steps(  # noqa: PLR0913 -- what a step depends on
    task: Task,
    adapters: Adapters,
    examples: tuple[Example, ...],
    problem: Problem,
    *,
    name: str,
    lowest: int = 0,
    batch_size: int | None = None,
    share: Callable[[int], float] = lambda _step: 1.0,
) -> Iterator[float]:
    """Take optimiser steps with a new AdamW for as long as the caller iterates; the loss of each.

    Args:
        task: the model and its objective.
        adapters: what is trained.
        examples: the site's training data.
        problem: learning rate, seed and, if it is not given, the batch.
        lowest: the lowest trained layer.
        batch_size: samples of a step; None: the problem's.
        share: of the learning rate, by step from 0.
        name: of the site and, after a slash, the round: seeds the batches (by site), their order and the dropout.
    """
    seed, size = _seed(problem.seed, name), batch_size or problem.batch_size
    batches = compose_batches([len(example.input_ids) for example in examples], size, _seed(problem.seed, name.partition("/")[0]))
    torch.manual_seed(seed)
    optimizer = make_optimizer(Hyperparameters(learning_rate=problem.learning_rate), adapters)
    for step in count():
        batch = [examples[i] for i in batch_of_step(batches, step, seed)]
        with training_mode(adapters.model, checkpointing=False, lowest_layer=lowest):
            loss, _ = compute_gradients(batch, task.objective, task.base, adapters=adapters, micro_batch=size)
            optimizer_step(optimizer, learning_rate=share(step) * problem.learning_rate, max_grad_norm=1.0)
        yield loss


def evaluate_global(task: Task, adapter: AdapterTensors, slow_classes: frozenset[int]) -> Quality:
    """The quality of a global adapter."""
    with attach_adapters(task.base, FROZEN_ADAPTER, adapter, 0):
        return evaluate(task, slow_classes)


def validation_loss(task: Task, adapter: AdapterTensors, rows: Sequence[int]) -> float:
    """The mean loss of a global adapter on these rows of the sites' data."""
    examples = [task.train[row] for row in rows]
    with attach_adapters(task.base, FROZEN_ADAPTER, adapter, 0):
        return mean_loss(task.base.model, examples, objective=task.objective, pad_id=task.base.pad_id, batch_size=_EVALUATION_BATCH)[0]


def evaluate(task: Task, slow_classes: frozenset[int], documents: int = TEST_DOCUMENTS) -> Quality:
    """The quality of the model as it is, on evenly spaced documents of the test subset."""
    totals, model, test = EvaluationTotals(), task.base.model, task.test[:: max(1, len(task.test) // documents)]
    if not isinstance(task.objective, SequenceClassification):
        return _quality_of_responses(task, test)
    with evaluation_mode(model):
        for batch in evaluate_batches(model, test, objective=task.objective, pad_id=task.base.pad_id, batch_size=_EVALUATION_BATCH):
            totals.add(batch)
    hits = {i: totals.predicted[i][0] == example.labels[0] for i, example in enumerate(test)}
    slow = [hit for i, hit in hits.items() if test[i].labels[0] in slow_classes]
    return Quality(sum(hits.values()) / len(hits), totals.mean_loss, sum(slow) / len(slow))


def _quality_of_responses(task: Task, test: Sequence[Example]) -> Quality:
    """Over the tokens of the responses, each predicted from the right tokens before it."""
    model, hits, targets, losses = task.base.model, 0, 0, 0.0
    with evaluation_mode(model):
        for start in range(0, len(test), _RESPONSES_AT_ONCE):
            batch = collate(test[start : start + _RESPONSES_AT_ONCE], task.objective, task.base.pad_id)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            counted = labels != IGNORED
            hits += int((logits.argmax(dim=-1) == labels)[counted].sum())
            losses += float(functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum"))
            targets += int(counted.sum())
    return Quality(hits / targets, losses / targets, None)


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
