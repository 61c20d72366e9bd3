"""Evaluate: how good a global adapter (or the base alone) is on the validation data of one site.

Losses for every task, accuracy and macro-F1 for a classification, generated answers against their references for the
two generating tasks. Rows of the data leave the site only where the run asks to see some.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedpipe_trainer import metrics
from fedpipe_trainer.adapters import GlobalUpdate, attached, read_update
from fedpipe_trainer.adapters.lora import NOBODY
from fedpipe_trainer.contract import (
    CausalLM,
    EvaluateTask,
    EvaluationManifest,
    FailureReason,
    Outcome,
    Progress,
    Sample,
    Seq2SeqLM,
    SequenceClassification,
)
from fedpipe_trainer.data import Row, batch_indices, columns_of, encode, encode_prompts, fill, read_rows
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import Decoding, answers, evaluating, passes
from fedpipe_trainer.metrics import Answer
from fedpipe_trainer.model import Base, borrow, fetch
from fedpipe_trainer.workplace import Workplace

_LONGEST_SHOWN: Final = 1000  # characters of a sample's text


@dataclass(frozen=True)
class Found:
    """What a pass over the validation rows found."""

    loss: float
    targets: int
    metrics: dict[str, float] = field(default_factory=dict)
    predicted: tuple[int, ...] = ()
    """Class by row, for a classification."""


def run(task: EvaluateTask, workplace: Workplace) -> EvaluationManifest:
    """Do the task.

    Raises:
        TaskFailed: the data, the model or the adapter is not what the task says; Diverged for a loss that is no number.
        Terminated: it was asked to stop.
    """
    metrics.slot_pattern(_slots(task))
    with workplace.phase("load"):
        workplace.progress(Progress(phase="load"))
        validation = read_rows(task.data.validation, columns_of(task.objective))
        folder = fetch(task.model, workplace)
        base = borrow(folder, task.bits, task.objective)
        update = _global_update(task, base, workplace)
    chosen = batch_indices(len(validation.rows), min(len(validation.rows), task.evaluation.max_samples), step=0, seed=task.seed)
    rows = [validation.rows[i] for i in chosen]
    with workplace.phase("evaluate"), attached(base, NOBODY, update, task.seed):
        found = _measure(task, base, rows, workplace)
        answered = _answer(task, base, _asked(task, rows, validation.rows), _watch(task, workplace))
    return EvaluationManifest(
        **workplace.heading(task),
        outcome=Outcome.COMPLETED,
        fingerprint=base.fingerprint,
        samples=len(rows),
        targets=found.targets,
        skipped_rows=validation.skipped,
        loss=found.loss,
        metrics={**found.metrics, **metrics.of_answers(answered, metrics.slot_pattern(_slots(task)))},
        examples=_shown(task, rows, found.predicted, answered),
    )


def _slots(task: EvaluateTask) -> str | None:
    return None if isinstance(task.objective, SequenceClassification) else task.objective.slot_pattern


def _global_update(task: EvaluateTask, base: Base, workplace: Workplace) -> GlobalUpdate:
    if task.global_adapter is None:
        return GlobalUpdate()
    path = workplace.folder / "global.safetensors"
    workplace.download(task.global_adapter.url, path, task.global_adapter.sha256)
    return read_update(path, base.model, base.head)


def _watch(task: EvaluateTask, workplace: Workplace) -> Callable[[], None]:
    """A function that ends the task when it was asked to stop or is past its deadline."""

    def look() -> None:
        if workplace.stop_requested():
            raise Terminated
        if workplace.clock() > task.deadline_seconds:
            raise TaskFailed(FailureReason.TERMINATED, f"the evaluation was not done by its deadline of {task.deadline_seconds:.0f} s")

    return look


def _measure(task: EvaluateTask, base: Base, rows: Sequence[Row], workplace: Workplace) -> Found:
    """Loss and, for a classification, predictions over all rows."""
    examples = encode(rows, task.objective, base.tokenizer)
    watch, steps = _watch(task, workplace), math.ceil(len(examples) / task.batch_size)
    loss_sum, targets, tokens, started = 0.0, 0, 0, workplace.clock()
    predicted = [0] * len(examples)
    watch()
    with evaluating(base.model):
        done_passes = passes(base.model, examples, objective=task.objective, pad_id=base.pad_id, batch_size=task.batch_size)
        for step, done in enumerate(done_passes, start=1):
            loss_sum, targets, tokens = loss_sum + done.loss_sum, targets + done.targets, tokens + done.tokens
            if isinstance(task.objective, SequenceClassification):
                for position, label in zip(done.positions, done.logits.argmax(dim=-1).tolist(), strict=True):
                    predicted[position] = label
            speed = tokens / max(workplace.clock() - started, 1e-9)
            workplace.progress(
                Progress(phase="evaluate", step=step, steps=steps, loss=_finite(loss_sum / max(targets, 1)), tokens_per_second=speed)
            )
            watch()
    return _found(task, loss_sum / max(targets, 1), targets, tuple(predicted), [example.labels[0] for example in examples])


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TaskFailed(FailureReason.DIVERGED, f"the loss on the validation data is {loss}: the adapter's values blow the model up")
    return loss


def _found(task: EvaluateTask, loss: float, targets: int, predicted: tuple[int, ...], expected: list[int]) -> Found:
    if isinstance(task.objective, SequenceClassification):
        return Found(loss, targets, metrics.of_classes(expected, predicted), predicted)
    return Found(loss, targets, {"perplexity": metrics.perplexity(loss)})


def _asked(task: EvaluateTask, rows: Sequence[Row], every_row: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """The prompts to be answered, each with all the responses that the whole file has to it."""
    objective = task.objective
    if isinstance(objective, SequenceClassification):
        return {}
    prompts = list(dict.fromkeys(fill(objective.prompt, row) for row in rows))[: task.evaluation.generations]
    responses: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    for row in every_row:
        if (prompt := fill(objective.prompt, row)) in responses:
            responses[prompt].append(fill(objective.response, row).strip())
    return {prompt: tuple(dict.fromkeys(texts)) for prompt, texts in responses.items()}


def _answer(task: EvaluateTask, base: Base, asked: dict[str, tuple[str, ...]], watch: Callable[[], None]) -> list[Answer]:
    if not asked or not isinstance(task.objective, CausalLM | Seq2SeqLM):
        return []
    room = task.evaluation.max_new_tokens
    end = base.tokenizer.eos_token_id
    prompts = encode_prompts(list(asked), task.objective, base.tokenizer, room=room)
    how = Decoding(max_new_tokens=room, pad_id=base.pad_id, end_id=end, batch_size=task.batch_size)
    generated = answers(base.model, prompts, task.objective, how=how, between=watch)
    texts = base.tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [Answer(prompt, references, text.strip()) for (prompt, references), text in zip(asked.items(), texts, strict=True)]


def _shown(task: EvaluateTask, rows: Sequence[Row], predicted: Sequence[int], answered: Sequence[Answer]) -> tuple[Sample, ...]:
    objective, count = task.objective, task.evaluation.samples
    if isinstance(objective, SequenceClassification):
        pairs = zip(rows[:count], predicted, strict=False)
        return tuple(_sample(row[objective.text], row[objective.label], objective.labels[label]) for row, label in pairs)
    return tuple(_sample(answer.prompt, answer.references[0], answer.text) for answer in answered[:count])


def _sample(text: str, expected: str, predicted: str) -> Sample:
    return Sample(text=text[:_LONGEST_SHOWN], expected=expected, predicted=predicted)
