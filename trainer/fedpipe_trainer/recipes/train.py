"""Recipe: train for one round at a site and upload the update. load → evaluate → fit → validate → upload.

A task may request that the global adapter, which the training starts from, is evaluated first: then base and adapter are loaded
once for both. That evaluation is a result of its own, and the bytes of the update do not depend on it.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import numpy as np
import torch

from fedpipe_trainer import checkpoint, device
from fedpipe_trainer.activation_cache import CacheCounts, cached_activations
from fedpipe_trainer.adapters import Adapters, AdapterSpec, AdapterTensors, attach_adapters, read_global_adapter, write_tensors
from fedpipe_trainer.checkpoint import TrainingState
from fedpipe_trainer.compression import Compressed, compressed_update
from fedpipe_trainer.contract import (
    EVALUATION_SHARE,
    Artifact,
    EvaluateResult,
    EvaluateTask,
    FailureReason,
    Outcome,
    Progress,
    TrainEvaluation,
    TrainingLosses,
    TrainResult,
    TrainTask,
)
from fedpipe_trainer.data import (
    Example,
    Rows,
    batch_of_step,
    compose_batches,
    count_padding,
    count_tokens,
    encode,
    encode_once,
    lengths_of,
    select_rows,
)
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import mean_loss
from fedpipe_trainer.failures import failure_of
from fedpipe_trainer.flops import Work, training_flop, work_of
from fedpipe_trainer.mfu import model_flops_utilisation
from fedpipe_trainer.model import Base, check_depth, fetch, fingerprint, load_cached
from fedpipe_trainer.parallel import LoadBase, Session, SessionRequest, WorkerGroup, open_session, processes_of, worker_group
from fedpipe_trainer.printable import printable
from fedpipe_trainer.profiling.energy import meter
from fedpipe_trainer.proximal import ProximalTerm
from fedpipe_trainer.recipes import evaluate
from fedpipe_trainer.reference_cache import cached_reference
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode
from fedpipe_trainer.task_runtime import TaskRuntime
from fedpipe_trainer.token_cache import EncodedData, TokenCache

_TRAINING_SHARE: Final = 0.9
"""Share of the deadline for training; the rest is for validation and the upload."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingInputs:
    """What a round of training starts from."""

    base: Base
    start: AdapterTensors
    start_file: Path | None
    """Where `start` was read from; None before the first round."""
    examples: Sequence[Example]
    skipped_rows: int
    dropped_rows: int


class Fitted(NamedTuple):
    """What the steps of a training did."""

    start: TrainingState
    """At a step above 0 after a checkpoint."""
    end: TrainingState
    seconds: float
    """Between the two."""
    work: Work
    """Likewise."""


class Sent(NamedTuple):
    """The update as it was uploaded."""

    artifact: Artifact
    shapes: dict[str, tuple[int, ...]]
    """Of each tensor, by key."""
    compressed: Compressed | None
    """None: without a codec."""


def run(task: TrainTask, runtime: TaskRuntime) -> TrainResult:
    """Train for one round and upload the update.

    Raises:
        TaskFailed: the task, the data or the model is invalid, memory ran out with a micro-batch of 1, or training diverged.
        Terminated: the task was requested to stop; it has written a checkpoint if the task has a URL for one.
    """
    with worker_group(device.usable_processes(task.processes), runtime) as workers:
        return _train(task, runtime, workers)


def _train(task: TrainTask, runtime: TaskRuntime, workers: WorkerGroup | None) -> TrainResult:
    runtime.report(Progress(phase="load"))
    inputs = load_inputs(task, runtime, workers)
    if task.evaluation is not None:
        evaluate_start(task, task.evaluation, runtime, inputs)
    plan = task.plan
    spec = AdapterSpec(ranks=plan.ranks, scale=plan.scale, dropout=task.hyperparameters.dropout)
    with attach_adapters(inputs.base, spec, inputs.start, task.hyperparameters.seed) as adapters:
        used_device = inputs.base.device
        with (
            runtime.phase("train"),
            device.deterministic(used_device),
            device.memory_limit(used_device, runtime.memory_limit_bytes),
            cached_activations(inputs.base, plan, inputs.start, runtime) as cache,
            cached_reference(inputs.base, task.objective, runtime),
            open_session(workers, _session_request(task, runtime, inputs), adapters.trainable) as session,
        ):
            energy = meter(used_device, processes_of(workers))
            start, end, seconds, work = fit(task, runtime, inputs, adapters, session)
            joules = energy.joules()
        if session:
            cache.add(session.cache_counts)
        limit = device.memory_limit(used_device, runtime.memory_limit_bytes)
        with runtime.phase("evaluate"), limit, cached_reference(inputs.base, task.objective, runtime):
            validation_loss = validate(task, inputs.base, adapters, runtime.cache)
        sent = upload_update(task, runtime, adapters, inputs.start)
    tokens_per_second = (end.tokens - start.tokens) / seconds if seconds else None
    return TrainResult(
        **runtime.result_header(task),
        outcome=Outcome.COMPLETED,
        fingerprint=inputs.base.fingerprint,
        adapter=sent.artifact,
        tensors=sent.shapes,
        ranks={weight: rank for weight, rank in plan.ranks.items() if rank},
        scaling=plan.scaling,
        scales={weight: plan.scale(weight) for weight, rank in plan.ranks.items() if rank},
        bits=plan.bits,
        batch_size=plan.batch_size,
        micro_batch_size=end.micro_batch,
        steps=end.step,
        resumed_from_step=start.step,
        samples=end.samples,
        tokens=end.tokens,
        padded_tokens=end.padding,
        cache_hits=cache.hits,
        cache_misses=cache.misses,
        cache_held=cache.held,
        cache_problem=printable(cache.problem),
        skipped_rows=inputs.skipped_rows,
        dropped_rows=inputs.dropped_rows,
        losses=() if _hides_steps(task) else end.losses,
        train_loss=sum(end.losses) / len(end.losses),
        validation_loss=validation_loss,
        tokens_per_second=tokens_per_second,
        mfu=_mfu(task, inputs.base, work, seconds * processes_of(session), cache),
        energy_joules=joules,
        energy_source=energy.source if joules is not None else None,
        codecs=dict(sent.compressed.codecs) if sent.compressed else None,
        update_cosine=sent.compressed.fidelity.cosine if sent.compressed else None,
        update_relative_error=sent.compressed.fidelity.relative_error if sent.compressed else None,
    )


def _session_request(task: TrainTask, runtime: TaskRuntime, inputs: TrainingInputs) -> SessionRequest:
    """How the other processes compute gradients: as this one does."""
    plan = task.plan
    return SessionRequest(
        plan.ranks,
        {weight: plan.scale(weight) for weight in plan.ranks},
        task.hyperparameters.seed,
        dropout=task.hyperparameters.dropout,
        start=inputs.start_file,
        gradient_checkpointing=plan.gradient_checkpointing,
        lowest_layer=plan.lowest_layer,
        cache_activations=plan.cache_activations,
        keeps_reference=True,
        cache=runtime.cache,
        activation_cache_bytes=runtime.activation_cache_bytes,
        memory_limit_bytes=runtime.memory_limit_bytes,
        is_deterministic=True,
    )


def load_inputs(task: TrainTask, runtime: TaskRuntime, workers: WorkerGroup | None) -> TrainingInputs:
    """Load the data first, since it fails fastest, unless its tokens may be kept; then the base and the global adapter."""
    with runtime.phase("load"):
        tokens = TokenCache(runtime.cache / "tokens", task)
        rows = None if tokens.may_hit() else _rows(task, runtime)
        base = _load_base(task, fetch(task.model, runtime), workers)
        check_depth(task.plan, base.model, base.head, tuple(base.whole))
        data = tokens.read(base.tokenizer) or _encode(task, rows or _rows(task, runtime), base, tokens, runtime.cache)
        start, file = AdapterTensors(), None
        if task.global_adapter is not None:
            file = runtime.download(task.global_adapter.url, runtime.folder / "global.safetensors", task.global_adapter.sha256)
            start = read_global_adapter(file, base.model, base.head, base.whole)
    return TrainingInputs(base, start, file, data.examples, data.skipped_rows, data.dropped_rows)


def _load_base(task: TrainTask, folder: Path, workers: WorkerGroup | None) -> Base:
    """The base, which the workers load at the same time."""
    bits, attention, whole = task.plan.bits, task.model.attn_implementation, task.model.modules_to_save
    asked = LoadBase(folder, fingerprint(folder), bits, task.objective, attention, whole)
    with workers.loading(asked) if workers else nullcontext():
        return load_cached(folder, bits, task.objective, attention, whole)


def _rows(task: TrainTask, runtime: TaskRuntime) -> Rows:
    return select_rows(task.data.train, task.objective, task.policy, runtime.cache)


def _encode(task: TrainTask, rows: Rows, base: Base, tokens: TokenCache, folder: Path) -> EncodedData:
    """The data as samples, which the site keeps if they are many."""
    examples = encode_once(rows.rows, task.objective, base.tokenizer, folder)
    return tokens.write(base.tokenizer, EncodedData(examples, rows.skipped, rows.dropped))


def evaluate_start(task: TrainTask, requested: TrainEvaluation, runtime: TaskRuntime, inputs: TrainingInputs) -> None:
    """Evaluate the global adapter that the training starts from, and upload the result.

    If the evaluation fails, its result says why and the training goes on: it costs the site its part of the evaluation, not the round.

    Raises:
        TaskFailed: TransferFailed, the result cannot be uploaded.
        Terminated: the task was requested to stop; there is no result.
    """
    evaluation = _evaluation_task(task, requested)
    with runtime.phase("evaluate"):
        result = _evaluate_or_fail(evaluation, runtime, inputs)
    path = runtime.folder / "evaluation.json"
    path.write_text(result.to_json(), encoding="utf-8")
    runtime.upload(path, requested.result)


def _evaluate_or_fail(task: EvaluateTask, runtime: TaskRuntime, inputs: TrainingInputs) -> EvaluateResult:
    try:
        validation = evaluate.read_validation(task, runtime.cache)
        return evaluate.evaluate_adapter(task, runtime, base=inputs.base, adapter=inputs.start, validation=validation)
    except Terminated:
        raise
    except Exception as error:  # noqa: BLE001 - every failure is reported in a result
        failure = failure_of(error, elapsed_seconds=runtime.elapsed_seconds())
    _LOG.error("the evaluation of round %d failed: %s: %s", task.round, failure.reason, failure.message)
    return EvaluateResult(**runtime.result_header(task), outcome=Outcome.FAILED, failure=failure)


def _evaluation_task(task: TrainTask, requested: TrainEvaluation) -> EvaluateTask:
    """The evaluation as a task of its own: the adapter, base, data and seed of the training."""
    return EvaluateTask(
        run=task.run,
        site=task.site,
        round=requested.round,
        attempt=task.attempt,
        model=task.model,
        deadline_seconds=EVALUATION_SHARE * task.deadline_seconds,
        result=requested.result,
        objective=task.objective,
        data=task.data,
        bits=task.plan.bits,
        batch_size=requested.batch_size,
        evaluation=requested.evaluation,
        global_adapter=task.global_adapter,
        seed=task.hyperparameters.seed,
        policy=task.policy,
    )


def fit(task: TrainTask, runtime: TaskRuntime, inputs: TrainingInputs, adapters: Adapters, session: Session | None) -> Fitted:
    """Train until the plan's steps are done or the deadline is near. On a request to stop: write a checkpoint, raise `Terminated`.

    With a session, its processes divide each step.
    """
    plan, hyper = task.plan, task.hyperparameters
    if not adapters.trainable:
        raise TaskFailed(FailureReason.BAD_TASK, "the plan has nothing to train: every rank is 0 and the objective has no head")
    batches = compose_batches(lengths_of(inputs.examples), plan.batch_size, _seed(hyper.seed, task.site))
    data_seed = _seed(hyper.seed, task.site, task.round)
    torch.manual_seed(data_seed)
    proximal = ProximalTerm.at_start(hyper, adapters)  # before a checkpoint is restored
    optimizer = make_optimizer(hyper, adapters)
    start = state = _start(task, runtime, adapters, optimizer)
    work = Work()
    started, longest_step = runtime.elapsed_seconds(), 0.0
    with training_mode(adapters.model, checkpointing=plan.gradient_checkpointing, lowest_layer=plan.lowest_layer):
        while state.step < plan.steps and not _is_near_deadline(task, runtime, state, longest_step):
            if runtime.stop_requested():
                _save_checkpoint_and_stop(task, runtime, state, adapters=adapters, optimizer=optimizer)
            step_started = runtime.elapsed_seconds()
            examples = [inputs.examples[i] for i in batch_of_step(batches, state.step, data_seed)]
            loss, micro_batch = compute_gradients(
                examples,
                task.objective,
                inputs.base,
                adapters=adapters,
                micro_batch=state.micro_batch,
                session=session,
                seed=_seed(data_seed, state.step),
            )
            rate, most = hyper.rate(state.step), hyper.max_grad_norm
            norm = optimizer_step(optimizer, learning_rate=rate, max_grad_norm=most, proximal=proximal)
            if not math.isfinite(loss) or not math.isfinite(norm):
                found = "no finite loss or gradient norm" if _hides_steps(task) else f"loss {loss:.3g} and gradient norm {norm:.3g}"
                values = f"step {state.step + 1} has {found}"
                msg = f"training diverged: {values}; lower the learning rate, which is {hyper.learning_rate:g}"
                raise TaskFailed(FailureReason.DIVERGED, msg)
            tokens = count_tokens(examples, task.objective)
            padding = count_padding(examples, task.objective, micro_batch, processes_of(session))
            state = state.after(loss=loss, samples=len(examples), tokens=tokens, padding=padding, micro_batch=micro_batch)
            work += work_of(examples, task.objective)
            longest_step = max(longest_step, runtime.elapsed_seconds() - step_started)
            speed = (state.tokens - start.tokens) / max(runtime.elapsed_seconds() - started, 1e-9)
            told = None if _hides_steps(task) else loss
            runtime.report(Progress(phase="train", step=state.step, steps=plan.steps, loss=told, tokens_per_second=speed))
    return Fitted(start, state, runtime.elapsed_seconds() - started, work)


def validate(task: TrainTask, base: Base, adapters: Adapters, folder: Path | None = None) -> float | None:
    """The mean loss on the first validation rows, or None if the task does not request it."""
    if not task.validate_samples:
        return None
    rows = select_rows(task.data.validation, task.objective, task.policy, folder).rows[: task.validate_samples]
    examples = encode(rows, task.objective, base.tokenizer)
    batch_size = task.plan.batch_size
    return mean_loss(adapters.model, examples, objective=task.objective, pad_id=base.pad_id, batch_size=batch_size)[0]


def upload_update(task: TrainTask, runtime: TaskRuntime, adapters: Adapters, start: AdapterTensors) -> Sent:
    """Write and upload the update, with the task's codec if it has one."""
    path, compressed = runtime.folder / "adapter.safetensors", None
    if task.codec is None or task.codec.is_plain:
        write_tensors(adapters.update(), path)
    else:
        compressed = compressed_update(task, task.codec, adapters, start, runtime.cache)
        write_tensors({key: torch.from_numpy(np.ascontiguousarray(one)) for key, one in compressed.arrays.items()}, path)
    shapes = {key: tuple(tensor.shape) for key, tensor in adapters.trainable.items()}
    return Sent(runtime.upload(path, task.adapter), shapes, compressed)


def _is_near_deadline(task: TrainTask, runtime: TaskRuntime, state: TrainingState, longest_step: float) -> bool:
    """Whether another step might not leave enough time for the upload. False before the first step: an update needs at least one."""
    return state.step > 0 and runtime.elapsed_seconds() + longest_step > _TRAINING_SHARE * task.deadline_seconds


def _start(task: TrainTask, runtime: TaskRuntime, adapters: Adapters, optimizer: torch.optim.Optimizer) -> TrainingState:
    """The state that the training goes on from. Smaller passes may be asked for, or have been found, before or after the checkpoint."""
    asked = task.micro_batch or task.plan.micro_batch
    resumed = _resume(task, runtime, adapters, optimizer)
    return resumed.model_copy(update={"micro_batch": min(asked, resumed.micro_batch)}) if resumed else TrainingState(micro_batch=asked)


def _resume(task: TrainTask, runtime: TaskRuntime, adapters: Adapters, optimizer: torch.optim.Optimizer) -> TrainingState | None:
    path = runtime.folder / "resume.safetensors"
    if task.checkpoint_read is None or not runtime.download_if_exists(task.checkpoint_read, path):
        return None
    return checkpoint.restore(path, _checkpoint_identity(task), trainable=adapters.trainable, optimizer=optimizer)


def _save_checkpoint_and_stop(
    task: TrainTask, runtime: TaskRuntime, state: TrainingState, *, adapters: Adapters, optimizer: torch.optim.Optimizer
) -> NoReturn:
    if task.checkpoint_write is not None:
        path = runtime.folder / "checkpoint.safetensors"
        if _hides_steps(task):  # the store that keeps the checkpoint is not the site's
            state = state.with_mean_losses()
        checkpoint.save(path, _checkpoint_identity(task), state, trainable=adapters.trainable, optimizer=optimizer)
        runtime.upload(path, task.checkpoint_write)
    msg = f"after step {state.step} of {task.plan.steps}"
    raise Terminated(msg)


def _hides_steps(task: TrainTask) -> bool:
    """Whether no loss of a single step may leave the site."""
    return task.policy.training_losses is TrainingLosses.MEAN


def _checkpoint_identity(task: TrainTask) -> str:
    """A hash of everything that must be equal for a checkpoint to belong to this task: all fields but the attempt and the URLs."""
    fields = task.model_dump(mode="json", include={"run", "site", "round", "objective", "plan", "hyperparameters"})
    start = task.global_adapter.sha256 if task.global_adapter else None
    text = json.dumps([fields, start, task.model.fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _seed(*parts: int | str) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _mfu(task: TrainTask, base: Base, work: Work, process_seconds: float, cache: CacheCounts) -> float | None:
    """The utilisation of the device, or of each of the session's, by this work, which took so many seconds of all processes together."""
    computed = cache.misses / (cache.hits + cache.misses) if cache.hits else 1.0
    return model_flops_utilisation(base, training_flop(base, task.objective, task.plan.ranks, work, computed=computed), process_seconds)
