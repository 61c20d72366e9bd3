"""Recipe: evaluate a global adapter (or only the base) on the validation data of one site.

`evaluate_adapter` does it with a base that is loaded already: a training evaluates the adapter that it starts from.

It measures the loss for every objective, accuracy and macro-F1 for a classification, how often a preference is right, and compares
generated answers with their references for CausalLM and Seq2SeqLM. Rows of the data leave the site only if the run requests some and the
data owner's policy allows it: always the first ones of the file, so that further runs, or other seeds, show no others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedpipe_trainer import device, metrics
from fedpipe_trainer.adapters import FROZEN_ADAPTER, AdapterTensors, attach_adapters, read_global_adapter
from fedpipe_trainer.contract import (
    CausalLM,
    EvaluateResult,
    EvaluateTask,
    FailureReason,
    Outcome,
    Preference,
    Progress,
    Sample,
    Seq2SeqLM,
    SequenceClassification,
    TrainingLosses,
    perplexity_of,
)
from fedpipe_trainer.data import (
    Example,
    Row,
    Rows,
    encode,
    encode_prompts,
    end_tokens,
    is_sample,
    labels_of,
    prompt_key,
    references_of,
    select_rows,
    shown_pair,
    shown_prompt,
    shuffled,
)
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import DecodingConfig, EvaluationTotals, Prediction, evaluate_batches, evaluation_mode, generate_answers
from fedpipe_trainer.metrics import Answer
from fedpipe_trainer.model import Base, check_lengths, fetch, load_cached
from fedpipe_trainer.reference_cache import cached_reference
from fedpipe_trainer.task_runtime import TaskRuntime

_MAX_SAMPLE_CHARACTERS: Final = 1000


def run(task: EvaluateTask, runtime: TaskRuntime) -> EvaluateResult:
    """Perform the task.

    Raises:
        TaskFailed: the data, the model or the adapter does not fit the task; OutOfMemory with a single sample;
            Diverged, the loss is not finite.
        Terminated: the task was requested to stop.
    """
    with runtime.phase("load"):
        runtime.report(Progress(phase="load"))
        validation = read_validation(task, runtime.cache)
        model = task.model
        base = load_cached(fetch(model, runtime), task.bits, task.objective, model.attn_implementation, model.modules_to_save)
        adapter = _load_global_adapter(task, base, runtime)
    return evaluate_adapter(task, runtime, base=base, adapter=adapter, validation=validation)


def read_validation(task: EvaluateTask, folder: Path | None = None) -> Rows:
    """The site's validation data, if it is large on the volume of `folder`. Whatever can fail before a model is loaded fails here.

    Raises:
        TaskFailed: BadData, the file cannot be read; BadTask, the slot pattern is not a regular expression.
    """
    if isinstance(task.objective, CausalLM | Seq2SeqLM):
        metrics.compile_slot_pattern(task.objective.slot_pattern)
    return select_rows(task.data.validation, task.objective, task.policy, folder)


def evaluate_adapter(task: EvaluateTask, runtime: TaskRuntime, *, base: Base, adapter: AdapterTensors, validation: Rows) -> EvaluateResult:
    """Evaluate the adapter on this base, which is left as it was. Raises as `run` does.

    Args:
        task: what to evaluate, and how.
        runtime: the seconds count for its phase `evaluate`.
        base: the loaded base, without adapters.
        adapter: the global adapter; empty to evaluate the base alone.
        validation: the site's validation data, of which the task's seed selects the rows.
    """
    shown = min(task.evaluation.samples, task.policy.max_shown_rows, task.evaluation.max_samples, len(validation.rows))
    others = (at for at in shuffled(len(validation.rows), f"{task.seed}/0") if at >= shown)
    selected = [*range(shown), *others][: task.evaluation.max_samples]
    rows = [validation.rows[i] for i in selected]
    # A row of plain text may be many samples: no more of them are evaluated than of others.
    examples = encode(rows, task.objective, base.tokenizer)[: task.evaluation.max_samples]
    limit = device.memory_limit(base.device, runtime.memory_limit_bytes)
    with (
        runtime.phase("evaluate"),
        attach_adapters(base, FROZEN_ADAPTER, adapter, task.seed),
        limit,
        cached_reference(base, task.objective, runtime),
    ):
        totals = _measure_loss(task, base, examples, runtime)
        answers = _generate(task, base, examples, _questions(task, rows, validation.rows), runtime)
        values = _metrics(task, totals, examples, answers)
    return EvaluateResult(
        **runtime.result_header(task),
        outcome=Outcome.COMPLETED,
        fingerprint=base.fingerprint,
        batch_size=totals.batch_size,
        samples=len(examples),
        targets=totals.targets,
        skipped_rows=validation.skipped,
        dropped_rows=validation.dropped,
        loss=totals.mean_loss,
        metrics=values,
        examples=_samples(task, base, rows[:shown], predicted=totals.predicted, answers=answers),
    )


def _load_global_adapter(task: EvaluateTask, base: Base, runtime: TaskRuntime) -> AdapterTensors:
    if task.global_adapter is None:
        return AdapterTensors()
    path = runtime.folder / "global.safetensors"
    runtime.download(task.global_adapter.url, path, task.global_adapter.sha256)
    return read_global_adapter(path, base.model, base.head, base.whole)


def _check_stop_and_deadline(task: EvaluateTask, runtime: TaskRuntime) -> None:
    """Raise an exception if the task was requested to stop or its deadline has passed."""
    if runtime.stop_requested():
        raise Terminated
    if runtime.elapsed_seconds() > task.deadline_seconds:
        raise TaskFailed(FailureReason.TERMINATED, _too_slow(task.deadline_seconds))


def _too_slow(seconds: float) -> str:
    return f"the evaluation did not end within {seconds:.0f} s of the task's start: lower evaluation.maxSamples or raise rounds.deadline"


def _measure_loss(task: EvaluateTask, base: Base, examples: Sequence[Example], runtime: TaskRuntime) -> EvaluationTotals:
    """The loss and, for a classification, the predictions over all examples."""
    totals, steps, started = EvaluationTotals(), math.ceil(len(examples) / task.batch_size), runtime.elapsed_seconds()
    with evaluation_mode(base.model):
        batches = evaluate_batches(base.model, examples, objective=task.objective, pad_id=base.pad_id, batch_size=task.batch_size)
        for batch in batches:
            totals.add(batch)
            if not math.isfinite(totals.loss_sum):
                loss = "NaN" if math.isnan(totals.loss_sum) else "infinite"
                raise TaskFailed(FailureReason.DIVERGED, f"validation loss is {loss}: the adapter diverged; lower the learning rate")
            speed = totals.tokens / max(runtime.elapsed_seconds() - started, 1e-9)
            step = math.ceil(sum(totals.batches) / task.batch_size)
            # The means of two batches tell the loss of one.
            told = None if task.policy.training_losses is TrainingLosses.MEAN else totals.mean_loss
            runtime.report(Progress(phase="evaluate", step=step, steps=steps, loss=told, tokens_per_second=speed))
            _check_stop_and_deadline(task, runtime)
    return totals


def _metrics(task: EvaluateTask, totals: EvaluationTotals, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, float]:
    objective = task.objective
    if isinstance(objective, SequenceClassification):
        predicted = [totals.predicted[i] for i in range(len(examples))]
        return _head_metrics(objective, [example.labels for example in examples], predicted)
    if isinstance(objective, Preference):
        return metrics.preference_metrics([totals.predicted[i][0] for i in range(len(examples))])
    if objective.format == "QuestionAnswering":
        return {"perplexity": perplexity_of(totals.mean_loss), **metrics.question_metrics(answers)}
    slots = metrics.compile_slot_pattern(objective.slot_pattern)
    return {"perplexity": perplexity_of(totals.mean_loss), **metrics.generation_metrics(answers, slots, task.evaluation.bleu_tokenizer)}


def _head_metrics(
    objective: SequenceClassification, expected: Sequence[Sequence[float]], predicted: Sequence[Prediction]
) -> dict[str, float]:
    if objective.problem == "MultiLabel":
        return metrics.multi_label_metrics(expected, predicted)
    values = [label for (label,) in expected], [label for (label,) in predicted]
    if objective.problem == "Regression":
        return metrics.regression_metrics(*values)
    return metrics.classification_metrics(*([int(label) for label in labels] for labels in values))


@dataclass(frozen=True)
class _Question:
    """A prompt to which an answer is generated, and all its responses in the whole file as references."""

    row: Row
    """The first row that has it."""
    references: tuple[str, ...]


def _questions(task: EvaluateTask, rows: Sequence[Row], all_rows: Sequence[Row]) -> list[_Question]:
    """What answers are generated to: the first distinct prompts of these rows."""
    objective = task.objective
    if isinstance(objective, SequenceClassification | Preference) or objective.format == "Text":
        return []
    asked: dict[str, Row] = {}
    for row in rows:
        if len(asked) < task.evaluation.generations:
            asked.setdefault(prompt_key(row, objective), row)
    responses: dict[str, list[str]] = {prompt: [] for prompt in asked}
    for row in all_rows if asked else ():
        if (prompt := prompt_key(row, objective)) in responses:
            responses[prompt] += references_of(row, objective)
    return [_Question(row, tuple(dict.fromkeys(responses[prompt]))) for prompt, row in asked.items()]


def _generate(
    task: EvaluateTask, base: Base, examples: Sequence[Example], questions: Sequence[_Question], runtime: TaskRuntime
) -> list[Answer]:
    objective = task.objective
    if not questions or not isinstance(objective, CausalLM | Seq2SeqLM):
        return []
    limit = task.evaluation.max_new_tokens
    check_lengths(base.model, objective, max_new_tokens=limit)  # once more: a run's evaluation may change after its profiles
    prompts = encode_prompts([question.row for question in questions], objective, base.tokenizer, max_new_tokens=limit)
    end_ids = end_tokens(examples, objective, base.tokenizer)
    generated = generate_answers(
        base.model,
        prompts,
        objective,
        decoding=DecodingConfig(max_new_tokens=limit, pad_id=base.pad_id, end_ids=end_ids, batch_size=task.batch_size),
        before_batch=lambda: _check_stop_and_deadline(task, runtime),
    )
    texts = base.tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [
        Answer(shown_prompt(question.row, objective), question.references, text.strip())
        for question, text in zip(questions, texts, strict=True)
    ]


def _samples(
    task: EvaluateTask, base: Base, shown: Sequence[Row], *, predicted: Mapping[int, Prediction], answers: Sequence[Answer]
) -> tuple[Sample, ...]:
    """The rows that are shown, the first ones of the evaluated rows; of generated answers, those with one."""
    objective = task.objective
    if isinstance(objective, SequenceClassification):
        return tuple(_shown_row(row, objective, predicted[at]) for at, row in enumerate(shown))
    if isinstance(objective, Preference):
        compared = [row for row in shown if is_sample(row, objective, base.tokenizer)]
        return tuple(_shown_pair(row, objective, *predicted[at]) for at, row in enumerate(compared))
    if not answers:
        return ()
    texts = {answer.prompt: answer.text for answer in answers}
    filled = [(shown_prompt(row, objective), references_of(row, objective)[0]) for row in shown]
    return tuple(_sample(prompt, response, texts[prompt]) for prompt, response in filled if prompt in texts)


def _shown_row(row: Row, objective: SequenceClassification, predicted: Prediction) -> Sample:
    texts = [row[column] for column in (objective.text, objective.text_pair) if column]
    if objective.problem == "Regression":
        return _sample("\n".join(texts), row[objective.label], f"{predicted[0]:.4g}")
    if objective.problem == "SingleLabel":
        return _sample("\n".join(texts), row[objective.label], objective.labels[int(predicted[0])])
    said = ", ".join(label for label, is_there in zip(objective.labels, predicted, strict=True) if is_there)
    has = ", ".join(sorted(labels_of(row, objective), key=objective.labels.index))
    return _sample("\n".join(texts), has, said)


def _shown_pair(row: Row, objective: Preference, margin: float) -> Sample:
    """The prompt, the chosen answer, and that which the model prefers; none if their rewards are equal."""
    prompt, chosen, rejected = shown_pair(row, objective)
    preferred = chosen if margin > 0 else rejected if margin < 0 else ""
    return _sample(prompt, chosen[:_MAX_SAMPLE_CHARACTERS], preferred[:_MAX_SAMPLE_CHARACTERS])


def _sample(text: str, expected: str, predicted: str) -> Sample:
    return Sample(text=text[:_MAX_SAMPLE_CHARACTERS], expected=expected, predicted=predicted)
