"""Recipe: profile a site. data → model facts → for each bit width: load, training steps, forward passes.

The planner calibrates its models with these measurements, so they use the same code and data as training: the training
step of `steps`, real examples, and an adapter of the task's rank for every target weight. Batches are measured at the
mean length of the samples, which determines the time, and the largest batch also at the length of the longest samples,
which determines the peak memory. It is fast rather than precise: one warm-up step per bit width and two timed steps per
measurement.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch

from fedpipe_trainer import device, peak_memory
from fedpipe_trainer.adapters import Adapters, AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import (
    BaseModelFacts,
    Bits,
    FailureReason,
    Hyperparameters,
    Objective,
    Outcome,
    ProfileResult,
    ProfileTask,
    Progress,
    SequenceClassification,
    Throughput,
)
from fedpipe_trainer.data import Example, collate, columns_of, encode, read_rows
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import evaluation_mode
from fedpipe_trainer.losses import summed_loss
from fedpipe_trainer.model import Base, clear_cache, facts, fetch, fingerprint, load, read_tokenizer
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode
from fedpipe_trainer.task_runtime import TaskRuntime

_LOG = logging.getLogger(__name__)

_TIMED_STEPS: Final = 2
_HYPER: Final = Hyperparameters()


@dataclass(frozen=True)
class PreparedSite:
    """The data and the model of a site, before anything is measured."""

    folder: Path
    objective: Objective
    """The task's objective; if it has no labels, with the labels found in the data."""
    base: BaseModelFacts
    examples: list[Example]
    validation_samples: int
    skipped_rows: int


@dataclass(frozen=True)
class Measurements:
    """The measurements at one bit width."""

    load_seconds: float
    load_growth_bytes: int
    """Growth of memory to its peak while the base was loaded."""
    base_bytes: int
    throughput: tuple[Throughput, ...]


def run(task: ProfileTask, runtime: TaskRuntime) -> ProfileResult:
    """Profile the site.

    Raises:
        TaskFailed: the data or the model is invalid, or no bit width works at this site.
        Terminated: the task was requested to stop.
    """
    runtime.report(Progress(phase="load"))
    clear_cache()
    used_device = device.choose()
    runtime_bytes = _resident_bytes(used_device)
    with runtime.phase("load"):
        site = prepare(task, runtime)
    with runtime.phase("profile"):
        measured, unsupported = measure_bit_widths(task, runtime, site)
    peak = max(point.peak_memory_bytes for measurements in measured.values() for point in measurements.throughput)
    header = runtime.result_header(task)
    header["measured"] = header["measured"].model_copy(update={"peak_memory_bytes": peak})
    lengths = [len(example.input_ids) for example in site.examples]
    return ProfileResult(
        **header,
        outcome=Outcome.COMPLETED,
        fingerprint=fingerprint(site.folder),
        base=site.base,
        labels=site.objective.labels if isinstance(site.objective, SequenceClassification) else (),
        train_samples=len(lengths),
        validation_samples=site.validation_samples,
        skipped_rows=site.skipped_rows,
        mean_tokens=sum(lengths) / len(lengths),
        longest_tokens=max(lengths),
        rank=task.rank,
        memory_bytes=device.memory_bytes(used_device, runtime.memory_limit_bytes),
        runtime_bytes=runtime_bytes,
        # Memory that earlier bit widths left in this process is not part of the peak of a new process.
        load_peak_bytes={bits: runtime_bytes + measurements.load_growth_bytes for bits, measurements in measured.items()},
        base_bytes={bits: measurements.base_bytes for bits, measurements in measured.items()},
        load_seconds={bits: measurements.load_seconds for bits, measurements in measured.items()},
        throughput=tuple(point for measurements in measured.values() for point in measurements.throughput),
        unsupported=unsupported,
    )


def prepare(task: ProfileTask, runtime: TaskRuntime) -> PreparedSite:
    """Read the data and the facts about the model, without loading weights."""
    columns = columns_of(task.objective)
    train, validation = read_rows(task.data.train, columns), read_rows(task.data.validation, columns)
    folder = fetch(task.model, runtime)
    objective = task.objective
    if isinstance(objective, SequenceClassification) and not objective.labels:
        labels = {row[objective.label] for row in (*train.rows, *validation.rows)}
        objective = objective.model_copy(update={"labels": tuple(sorted(labels))})
    return PreparedSite(
        folder=folder,
        objective=objective,
        base=facts(folder, objective, task.target_modules),
        examples=encode(train.rows, objective, read_tokenizer(folder)),
        validation_samples=len(validation.rows),
        skipped_rows=train.skipped + validation.skipped,
    )


def measure_bit_widths(task: ProfileTask, runtime: TaskRuntime, site: PreparedSite) -> tuple[dict[Bits, Measurements], dict[Bits, str]]:
    """Measurements by bit width, and the reason for each bit width that is not supported.

    Raises:
        TaskFailed: no bit width works at this site; the message has the reasons.
    """
    measured: dict[Bits, Measurements] = {}
    unsupported: dict[Bits, str] = {}
    requested = sorted(set(task.bits))
    for number, bits in enumerate(requested):
        runtime.report(Progress(phase="profile", step=number, steps=len(requested)))
        try:
            with device.memory_limit(device.choose(), runtime.memory_limit_bytes):
                measured[bits] = measure_bit_width(bits, task, runtime, site)
        except (TaskFailed, RuntimeError, MemoryError, NotImplementedError, ImportError) as error:
            unsupported[bits] = "out of memory" if device.is_out_of_memory(error) else str(error)
            _LOG.warning("training at %d bits is not supported at this site: %s", bits, unsupported[bits])
    clear_cache()
    if not measured:
        reasons = "; ".join(f"{bits} bits: {reason}" for bits, reason in unsupported.items())
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model cannot be trained at this site at any bit width: {reasons}")
    return measured, unsupported


def measure_bit_width(bits: Bits, task: ProfileTask, runtime: TaskRuntime, site: PreparedSite) -> Measurements:
    """Load the base at one bit width and run training steps and forward passes."""
    clear_cache()
    _check_base_fits(bits, runtime, site)
    peak_memory.reset_peak()
    started, bytes_before = runtime.elapsed_seconds(), _resident_bytes(device.choose())
    base = load(site.folder, bits, site.objective)
    load_seconds, load_growth = runtime.elapsed_seconds() - started, peak_memory.peak_bytes() - bytes_before
    spec = AdapterSpec(ranks={weight.name: task.rank for weight in site.base.weights}, scale=lambda _weight: 1.0)
    with (
        attach_adapters(base, spec, AdapterTensors(), task.seed) as adapters,
        training_mode(adapters.model, checkpointing=False),
    ):
        benchmark = Benchmark(base, adapters, site.objective, make_optimizer(_HYPER, adapters))
        batches = _batches(site.examples, task.batch_sizes)
        benchmark.train_step(batches[0])
        points = list(_measure_throughput(benchmark, batches, runtime))
    if not points:
        raise TaskFailed(FailureReason.OUT_OF_MEMORY, "out of memory in the first training step")
    return Measurements(load_seconds, load_growth, base.memory_bytes, tuple(points))


def _resident_bytes(used_device: torch.device) -> int:
    """The resident memory of the process; 0 on a GPU, where peaks are those of the device's allocator."""
    return 0 if used_device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _check_base_fits(bits: Bits, runtime: TaskRuntime, site: PreparedSite) -> None:
    """Raise an exception if the base exceeds the memory limit. Loading it would get the process killed: file pages have no other limit."""
    limit = runtime.memory_limit_bytes
    if device.choose().type == "cuda" or limit is None:
        return
    quantised = site.base.quantised_parameters if bits < 16 else 0  # noqa: PLR2004 - a bit width needs no name
    needed = (quantised * bits + (site.base.parameters - quantised) * max(bits, 16)) // 8
    if psutil.Process().memory_info().rss + needed > limit:
        msg = f"the base alone needs {needed / 1e6:.0f} MB, more than the site's memory limit of {limit / 1e6:.0f} MB leaves"
        raise TaskFailed(FailureReason.OUT_OF_MEMORY, msg)


@dataclass(frozen=True)
class Benchmark:
    """A base with adapters and an optimiser, ready to be measured."""

    base: Base
    adapters: Adapters
    objective: Objective
    optimizer: torch.optim.Optimizer

    def train_step(self, examples: Sequence[Example]) -> bool:
        """Run one training step; False if the batch had to be split to fit in memory."""
        batch_size = len(examples)
        _, micro_batch = compute_gradients(examples, self.objective, self.base, adapters=self.adapters, micro_batch=batch_size)
        optimizer_step(self.optimizer, learning_rate=_HYPER.learning_rate, max_grad_norm=_HYPER.max_grad_norm)
        device.synchronise(self.base.device)
        return micro_batch == batch_size

    def forward(self, examples: Sequence[Example]) -> None:
        """Run one forward pass without gradients."""
        batch = collate(examples, self.objective, self.base.pad_id)
        with evaluation_mode(self.adapters.model):
            summed_loss(self.adapters.model, {name: tensor.to(self.base.device) for name, tensor in batch.items()}, self.objective)
        device.synchronise(self.base.device)


def _batches(examples: Sequence[Example], sizes: Sequence[int]) -> list[list[Example]]:
    """A batch of each size with samples close to the mean length, smallest first; then one of the largest size with the longest samples."""
    ascending = sorted(set(sizes))
    mean = sum(len(example.input_ids) for example in examples) / len(examples)
    typical = sorted(examples, key=lambda example: abs(len(example.input_ids) - mean))
    longest = sorted(examples, key=lambda example: -len(example.input_ids))
    batches = [_repeat(typical, size) for size in ascending]
    return batches if _length(longest) == _length(batches[-1]) else [*batches, _repeat(longest, ascending[-1])]


def _measure_throughput(benchmark: Benchmark, batches: Sequence[list[Example]], runtime: TaskRuntime) -> Iterator[Throughput]:
    """Measure each batch, up to the first that does not fit in memory."""
    bytes_per_token = 0.0
    for examples in batches:
        if runtime.stop_requested():
            raise Terminated
        device.trim_memory()
        bytes_before = psutil.Process().memory_info().rss
        tokens = len(examples) * _length(examples)
        if _exceeds_limit(bytes_before + bytes_per_token * tokens, runtime.memory_limit_bytes, benchmark.base.device):
            return
        peak_memory.reset_peak()
        started = runtime.elapsed_seconds()
        if not _run_timed_steps(benchmark, examples):
            return
        trained = runtime.elapsed_seconds()
        benchmark.forward(examples)
        bytes_per_token = max(0, peak_memory.peak_bytes() - bytes_before) / tokens
        yield Throughput(
            bits=benchmark.base.bits,
            batch_size=len(examples),
            length=_length(examples),
            tokens_per_second=_TIMED_STEPS * tokens / (trained - started),
            evaluate_tokens_per_second=tokens / (runtime.elapsed_seconds() - trained),
            peak_memory_bytes=peak_memory.peak_bytes(),
        )


def _exceeds_limit(expected_bytes: float, limit: int | None, used_device: torch.device) -> bool:
    """Whether a batch would run out of memory, as predicted from the batch before it.

    On a CPU such a batch is not tried: some libraries do not recover after the process has run out of memory.
    """
    return limit is not None and used_device.type == "cpu" and expected_bytes > limit


def _run_timed_steps(benchmark: Benchmark, examples: Sequence[Example]) -> bool:
    """Run the timed steps; False if the whole batch did not fit in memory. Earlier measurements are kept in that case."""
    try:
        return all(benchmark.train_step(examples) for _ in range(_TIMED_STEPS))
    except TaskFailed as failure:
        if failure.reason is FailureReason.OUT_OF_MEMORY:
            return False
        raise


def _repeat(examples: Sequence[Example], count: int) -> list[Example]:
    return [examples[i % len(examples)] for i in range(count)]


def _length(examples: Sequence[Example]) -> int:
    return max(len(example.input_ids) for example in examples)
