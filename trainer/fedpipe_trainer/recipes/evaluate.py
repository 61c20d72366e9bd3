"""Evaluate: how good a global adapter (or the base alone) is on the validation data of one site.

Losses for every task, accuracy and macro-F1 for a classification, generated answers against their references for the
two generating tasks. Rows of the data leave the site only where the run asks to see some.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from fedpipe_trainer import device, metrics
from fedpipe_trainer.adapters import GlobalUpdate, attached, read_update
from fedpipe_trainer.adapters.lora import NO_ADAPTER_SPEC
from fedpipe_trainer.contract import (
    CausalLM,
    EvaluateResult,
    EvaluateTask,
    FailureReason,
    Outcome,
    Progress,
    Sample,
    Seq2SeqLM,
    SequenceClassification,
    perplexity_of,
)
from fedpipe_trainer.data import Example, Row, batch_indices, columns_of, encode, encode_prompts, fill, read_rows
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import Decoding, Total, answers, evaluating, passes
from fedpipe_trainer.metrics import Answer
from fedpipe_trainer.model import Base, borrow, fetch
from fedpipe_trainer.workplace import Workplace

_LONGEST_SHOWN: Final = 1000  # characters of a sample's text


def run(task: EvaluateTask, workplace: Workplace) -> EvaluateResult:
    """Do the task.

    Raises:
        TaskFailed: the data, the model or the adapter is not what the task says; OutOfMemory with a single sample;
            Diverged for a loss that is no number.
        Terminated: it was asked to stop.
    """
    if not isinstance(task.objective, SequenceClassification):
        metrics.slot_pattern(task.objective.slot_pattern)  # a useless one is refused before the work
    with workplace.phase("load"):
        workplace.progress(Progress(phase="load"))
        validation = read_rows(task.data.validation, columns_of(task.objective))
        folder = fetch(task.model, workplace)
        base = borrow(folder, task.bits, task.objective)
        update = _global_update(task, base, workplace)
    chosen = batch_indices(len(validation.rows), min(len(validation.rows), task.evaluation.max_samples), step=0, seed=task.seed)
    rows = [validation.rows[i] for i in chosen]
    examples = encode(rows, task.objective, base.tokenizer)
    limit = device.memory_limit(base.device, workplace.memory_limit_bytes)
    with workplace.phase("evaluate"), attached(base, NO_ADAPTER_SPEC, update, task.seed), limit:
        total = _measure(task, base, examples, workplace)
        answered = _answer(task, base, _asked(task, rows, validation.rows), workplace)
        found = _metrics(task, total, examples, answered)
    return EvaluateResult(
        **workplace.heading(task),
        outcome=Outcome.COMPLETED,
        fingerprint=base.fingerprint,
        batch_size=total.batch_size,
        samples=len(rows),
        targets=total.targets,
        skipped_rows=validation.skipped,
        loss=total.mean_loss,
        metrics=found,
        examples=_shown(task, rows, total.predicted, answered),
    )


def _global_update(task: EvaluateTask, base: Base, workplace: Workplace) -> GlobalUpdate:
    if task.global_adapter is None:
        return GlobalUpdate()
    path = workplace.folder / "global.safetensors"
    workplace.download(task.global_adapter.url, path, task.global_adapter.sha256)
    return read_update(path, base.model, base.head)


def _look_up(task: EvaluateTask, workplace: Workplace) -> None:
    """End the task if it was asked to stop, or is past its deadline."""
    if workplace.stop_requested():
        raise Terminated
    if workplace.clock() > task.deadline_seconds:
        raise TaskFailed(FailureReason.TERMINATED, f"the evaluation was not done by its deadline of {task.deadline_seconds:.0f} s")


def _measure(task: EvaluateTask, base: Base, examples: Sequence[Example], workplace: Workplace) -> Total:
    """Loss and, for a classification, predictions over all examples."""
    total, steps, began = Total(), math.ceil(len(examples) / task.batch_size), workplace.clock()
    with evaluating(base.model):
        done_passes = passes(base.model, examples, objective=task.objective, pad_id=base.pad_id, batch_size=task.batch_size)
        for done in done_passes:
            total.add(done)
            if not math.isfinite(total.loss_sum):
                raise TaskFailed(FailureReason.DIVERGED, "the loss on the validation data is no number: the adapter blows the model up")
            speed = total.tokens / max(workplace.clock() - began, 1e-9)
            step = math.ceil(sum(total.batches) / task.batch_size)
            workplace.progress(Progress(phase="evaluate", step=step, steps=steps, loss=total.mean_loss, tokens_per_second=speed))
            _look_up(task, workplace)
    return total


def _metrics(task: EvaluateTask, total: Total, examples: Sequence[Example], answered: Sequence[Answer]) -> dict[str, float]:
    objective = task.objective
    if isinstance(objective, SequenceClassification):
        predicted = [total.predicted[i] for i in range(len(examples))]
        return metrics.of_classes([example.labels[0] for example in examples], predicted)
    return {"perplexity": perplexity_of(total.mean_loss), **metrics.of_answers(answered, metrics.slot_pattern(objective.slot_pattern))}


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


def _answer(task: EvaluateTask, base: Base, asked: dict[str, tuple[str, ...]], workplace: Workplace) -> list[Answer]:
    if not asked or not isinstance(task.objective, CausalLM | Seq2SeqLM):
        return []
    room = task.evaluation.max_new_tokens
    end = base.tokenizer.eos_token_id
    prompts = encode_prompts(list(asked), task.objective, base.tokenizer, room=room)
    how = Decoding(max_new_tokens=room, pad_id=base.pad_id, end_id=end, batch_size=task.batch_size)
    generated = answers(base.model, prompts, task.objective, how=how, between=lambda: _look_up(task, workplace))
    texts = base.tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [Answer(prompt, references, text.strip()) for (prompt, references), text in zip(asked.items(), texts, strict=True)]


def _shown(task: EvaluateTask, rows: Sequence[Row], predicted: Mapping[int, int], answered: Sequence[Answer]) -> tuple[Sample, ...]:
    objective, count = task.objective, task.evaluation.samples
    if isinstance(objective, SequenceClassification):
        labels = objective.labels
        return tuple(_sample(row[objective.text], row[objective.label], labels[predicted[i]]) for i, row in enumerate(rows[:count]))
    return tuple(_sample(answer.prompt, answer.references[0], answer.text) for answer in answered[:count])


def _sample(text: str, expected: str, predicted: str) -> Sample:
    return Sample(text=text[:_LONGEST_SHOWN], expected=expected, predicted=predicted)
