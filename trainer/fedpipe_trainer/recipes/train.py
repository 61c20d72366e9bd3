"""Recipe: train one round at a site and send the update. setup → fit → validate → send."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Final, NoReturn

import torch

from fedpipe_trainer import checkpoint, device
from fedpipe_trainer.adapters import Adapters, GlobalUpdate, Site, attached, read_update, write_tensors
from fedpipe_trainer.checkpoint import Position
from fedpipe_trainer.contract import Artifact, FailureReason, Objective, Outcome, Progress, Seq2SeqLM, TrainResult, TrainTask
from fedpipe_trainer.data import Example, batch_indices, columns_of, encode, read_rows
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import mean_loss
from fedpipe_trainer.model import Base, borrow, fetch, matrix_parameters
from fedpipe_trainer.steps import gradients, make_optimizer, training_mode, update
from fedpipe_trainer.workplace import Workplace

_TRAINING_SHARE: Final = 0.9
"""Of the deadline: the rest is for validation and sending."""


@dataclass(frozen=True)
class Setup:
    """What a round of training starts from."""

    base: Base
    start: GlobalUpdate
    examples: list[Example]
    skipped_rows: int
    matrix_parameters: int


def run(task: TrainTask, workplace: Workplace) -> TrainResult:
    """Train one round and send the update.

    Raises:
        TaskFailed: the task, the data or the model is bad, memory ran out at a micro-batch of 1, or training diverged.
        Terminated: it was asked to stop, and left a checkpoint if the task says where.
    """
    workplace.progress(Progress(phase="load"))
    ready = setup(task, workplace)
    plan = task.plan
    site = Site(ranks=plan.ranks, scale=plan.scale, dropout=task.hyperparameters.dropout)
    with attached(ready.base, site, ready.start, task.hyperparameters.seed) as adapters:
        where = ready.base.device
        with workplace.phase("train"), device.deterministic(where), device.memory_limit(where, workplace.memory_limit_bytes):
            resumed, position, seconds = fit(task, workplace, ready, adapters)
        with workplace.phase("evaluate"), device.memory_limit(where, workplace.memory_limit_bytes):
            validation_loss = validate(task, ready.base, adapters)
        artifact, shapes = send(task, workplace, adapters)
    tokens_per_second = (position.tokens - resumed.tokens) / seconds if seconds else None
    return TrainResult(
        **workplace.heading(task),
        outcome=Outcome.COMPLETED,
        fingerprint=ready.base.fingerprint,
        adapter=artifact,
        tensors=shapes,
        ranks={weight: rank for weight, rank in plan.ranks.items() if rank},
        scaling=plan.scaling,
        scales={weight: plan.scale(weight) for weight, rank in plan.ranks.items() if rank},
        bits=plan.bits,
        batch_size=plan.batch_size,
        micro_batch_size=position.micro_batch,
        steps=position.step,
        resumed_from_step=resumed.step,
        samples=position.samples,
        tokens=position.tokens,
        skipped_rows=ready.skipped_rows,
        losses=position.losses,
        train_loss=sum(position.losses) / len(position.losses),
        validation_loss=validation_loss,
        tokens_per_second=tokens_per_second,
        mfu=_mfu(task.objective, ready, tokens_per_second),
    )


def setup(task: TrainTask, workplace: Workplace) -> Setup:
    """Load data first (it fails fastest), then the base, then the global adapter."""
    with workplace.phase("load"):
        rows = read_rows(task.data.train, columns_of(task.objective))
        base = borrow(fetch(task.model, workplace), task.plan.bits, task.objective)
        examples = encode(rows.rows, task.objective, base.tokenizer)
        start = GlobalUpdate()
        if task.global_adapter is not None:
            path = workplace.download(task.global_adapter.url, workplace.folder / "global.safetensors", task.global_adapter.sha256)
            start = read_update(path, base.model, base.head)
    return Setup(base, start, examples, rows.skipped, matrix_parameters(base.model))


def fit(task: TrainTask, workplace: Workplace, ready: Setup, adapters: Adapters) -> tuple[Position, Position, float]:
    """Train until the plan's steps are done, the deadline is near or a stop is asked for (then: checkpoint, Terminated).

    Returns:
        Where it started (not at 0 after a checkpoint), where it ended, and the seconds between.
    """
    plan, hyper = task.plan, task.hyperparameters
    if not adapters.trained:
        raise TaskFailed(FailureReason.BAD_TASK, "the plan trains nothing: every rank is 0 and the objective has no head")
    order = _data_seed(hyper.seed, task.site, task.round)
    torch.manual_seed(order)
    optimizer = make_optimizer(hyper, adapters)
    start = position = _resume(task, workplace, adapters, optimizer) or Position(micro_batch=task.micro_batch or plan.batch_size)
    began, longest_step = workplace.clock(), 0.0
    with training_mode(adapters.model, checkpointing=hyper.gradient_checkpointing):
        while position.step < plan.steps and not _is_late(task, workplace, position, longest_step):
            if workplace.stop_requested():
                _leave_checkpoint(task, workplace, position, adapters=adapters, optimizer=optimizer)
            step_began = workplace.clock()
            examples = [ready.examples[i] for i in batch_indices(len(ready.examples), plan.batch_size, position.step, order)]
            loss, micro_batch = gradients(examples, task.objective, ready.base, adapters=adapters, micro_batch=position.micro_batch)
            learning_rate = hyper.learning_rate * min(1.0, (position.step + 1) / max(1, hyper.warmup_steps))
            norm = update(optimizer, learning_rate=learning_rate, max_grad_norm=hyper.max_grad_norm)
            if not math.isfinite(loss) or not math.isfinite(norm):
                where = f"step {position.step + 1} has loss {loss:.3g} and gradient norm {norm:.3g}"
                msg = f"{where}: lower the learning rate {hyper.learning_rate:g}"
                raise TaskFailed(FailureReason.DIVERGED, msg)
            tokens = sum(_tokens(example, task.objective) for example in examples)
            position = position.after(loss=loss, samples=len(examples), tokens=tokens, micro_batch=micro_batch)
            longest_step = max(longest_step, workplace.clock() - step_began)
            speed = (position.tokens - start.tokens) / max(workplace.clock() - began, 1e-9)
            workplace.progress(Progress(phase="train", step=position.step, steps=plan.steps, loss=loss, tokens_per_second=speed))
    return start, position, workplace.clock() - began


def validate(task: TrainTask, base: Base, adapters: Adapters) -> float | None:
    """Mean loss on the first validation rows, or None if the task wants none."""
    if not task.validate_samples:
        return None
    rows = read_rows(task.data.validation, columns_of(task.objective)).rows[: task.validate_samples]
    examples = encode(rows, task.objective, base.tokenizer)
    batch_size = task.plan.batch_size
    return mean_loss(adapters.model, examples, objective=task.objective, pad_id=base.pad_id, batch_size=batch_size)[0]


def send(task: TrainTask, workplace: Workplace, adapters: Adapters) -> tuple[Artifact, dict[str, tuple[int, ...]]]:
    """Write and upload the update; the artifact, and the shape of each of its tensors."""
    path = workplace.folder / "adapter.safetensors"
    write_tensors(adapters.trained, path)
    return workplace.upload(path, task.adapter), {key: tuple(tensor.shape) for key, tensor in adapters.trained.items()}


def _tokens(example: Example, objective: Objective) -> int:
    return len(example.input_ids) + (len(example.labels) if isinstance(objective, Seq2SeqLM) else 0)


def _is_late(task: TrainTask, workplace: Workplace, position: Position, longest_step: float) -> bool:
    """Whether another step might not leave time to send. The first step is always done: an update of nothing is none."""
    return position.step > 0 and workplace.clock() + longest_step > _TRAINING_SHARE * task.deadline_seconds


def _resume(task: TrainTask, workplace: Workplace, adapters: Adapters, optimizer: torch.optim.Optimizer) -> Position | None:
    path = workplace.folder / "resume.safetensors"
    if task.checkpoint_read is None or not workplace.download_if_there(task.checkpoint_read, path):
        return None
    return checkpoint.restore(path, _identity(task), trained=adapters.trained, optimizer=optimizer)


def _leave_checkpoint(
    task: TrainTask, workplace: Workplace, position: Position, *, adapters: Adapters, optimizer: torch.optim.Optimizer
) -> NoReturn:
    if task.checkpoint_write is not None:
        path = workplace.folder / "checkpoint.safetensors"
        checkpoint.save(path, _identity(task), position, trained=adapters.trained, optimizer=optimizer)
        workplace.upload(path, task.checkpoint_write)
    msg = f"after step {position.step} of {task.plan.steps}"
    raise Terminated(msg)


def _identity(task: TrainTask) -> str:
    """What must be the same for a checkpoint to be of this task: all but the attempt and where things are."""
    said = task.model_dump(mode="json", include={"run", "site", "round", "objective", "plan", "hyperparameters"})
    start = task.global_adapter.sha256 if task.global_adapter else None
    text = json.dumps([said, start, task.model.fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _data_seed(seed: int, site: str, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{site}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _mfu(objective: Objective, ready: Setup, tokens_per_second: float | None) -> float | None:
    """4·N FLOP a token (arXiv 2310.03150 has 6·N; frozen weights need no gradient), N in matrices, over the measured peak."""
    if tokens_per_second is None or isinstance(objective, Seq2SeqLM):  # a token passes one of two stacks: N is not known
        return None
    peak = device.peak_flops(ready.base.device, ready.base.compute_dtype)
    return 4.0 * ready.matrix_parameters * tokens_per_second / peak
