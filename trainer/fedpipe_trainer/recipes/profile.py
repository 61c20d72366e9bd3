"""Recipe: measure a site. data → model facts → for each bit width: load, training steps, forward passes.

A planner fits its models to the points measured here, so they are the real thing: the training step of `steps`, real
examples, every target weight at the task's rank. Batches are measured at the samples' mean length, where time is
spent, and the largest batch at the longest sample too, where memory peaks. It is quick rather than precise: one
warm-up step a bit width, two timed steps a point.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch

from fedpipe_trainer import device, peak_memory
from fedpipe_trainer.adapters import Adapters, GlobalUpdate, Site, attached
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
from fedpipe_trainer.evaluation import evaluating
from fedpipe_trainer.losses import summed_loss
from fedpipe_trainer.model import Base, facts, fetch, fingerprint, load, read_tokenizer, release
from fedpipe_trainer.steps import gradients, make_optimizer, training_mode, update
from fedpipe_trainer.workplace import Workplace

_LOG = logging.getLogger(__name__)

_TIMED_STEPS: Final = 2
_HYPER: Final = Hyperparameters()


@dataclass(frozen=True)
class Studied:
    """What is known of a site before anything is measured."""

    folder: Path
    objective: Objective
    """With the labels found here, if the task names none."""
    base: BaseModelFacts
    examples: list[Example]
    validation_samples: int
    skipped_rows: int


@dataclass(frozen=True)
class Findings:
    """What is measured at one bit width."""

    load_seconds: float
    load_growth_bytes: int
    """How far memory rose while the base was loaded."""
    base_bytes: int
    throughput: tuple[Throughput, ...]


def run(task: ProfileTask, workplace: Workplace) -> ProfileResult:
    """Measure the site.

    Raises:
        TaskFailed: the data or the model is bad, or no bit width works here.
        Terminated: it was asked to stop.
    """
    workplace.progress(Progress(phase="load"))
    release()
    where = device.choose()
    runtime_bytes = _resident_bytes(where)
    with workplace.phase("load"):
        studied = study(task, workplace)
    with workplace.phase("profile"):
        found, unsupported = measure_all(task, workplace, studied)
    peak = max(point.peak_memory_bytes for findings in found.values() for point in findings.throughput)
    heading = workplace.heading(task)
    heading["measured"] = heading["measured"].model_copy(update={"peak_memory_bytes": peak})
    lengths = [len(example.input_ids) for example in studied.examples]
    return ProfileResult(
        **heading,
        outcome=Outcome.COMPLETED,
        fingerprint=fingerprint(studied.folder),
        base=studied.base,
        labels=studied.objective.labels if isinstance(studied.objective, SequenceClassification) else (),
        train_samples=len(lengths),
        validation_samples=studied.validation_samples,
        skipped_rows=studied.skipped_rows,
        mean_tokens=sum(lengths) / len(lengths),
        longest_tokens=max(lengths),
        rank=task.rank,
        memory_bytes=device.memory_bytes(where, workplace.memory_limit_bytes),
        runtime_bytes=runtime_bytes,
        # What earlier bit widths left behind in this process is not part of a fresh one's peak.
        load_peak_bytes={bits: runtime_bytes + findings.load_growth_bytes for bits, findings in found.items()},
        base_bytes={bits: findings.base_bytes for bits, findings in found.items()},
        load_seconds={bits: findings.load_seconds for bits, findings in found.items()},
        throughput=tuple(point for findings in found.values() for point in findings.throughput),
        unsupported=unsupported,
    )


def study(task: ProfileTask, workplace: Workplace) -> Studied:
    """Read data and model facts; no weight is loaded."""
    columns = columns_of(task.objective)
    train, validation = read_rows(task.data.train, columns), read_rows(task.data.validation, columns)
    folder = fetch(task.model, workplace)
    objective = task.objective
    if isinstance(objective, SequenceClassification) and not objective.labels:
        labels = {row[objective.label] for row in (*train.rows, *validation.rows)}
        objective = objective.model_copy(update={"labels": tuple(sorted(labels))})
    return Studied(
        folder=folder,
        objective=objective,
        base=facts(folder, objective, task.target_modules),
        examples=encode(train.rows, objective, read_tokenizer(folder)),
        validation_samples=len(validation.rows),
        skipped_rows=train.skipped + validation.skipped,
    )


def measure_all(task: ProfileTask, workplace: Workplace, studied: Studied) -> tuple[dict[Bits, Findings], dict[Bits, str]]:
    """Findings by bit width, and why others gave none.

    Raises:
        TaskFailed: no bit width works here; the reasons are in the message.
    """
    found: dict[Bits, Findings] = {}
    unsupported: dict[Bits, str] = {}
    wanted = sorted(set(task.bits))
    for number, bits in enumerate(wanted):
        workplace.progress(Progress(phase="profile", step=number, steps=len(wanted)))
        try:
            with device.memory_limit(device.choose(), workplace.memory_limit_bytes):
                found[bits] = measure(bits, task, workplace, studied)
        except (TaskFailed, RuntimeError, MemoryError, NotImplementedError, ImportError) as error:
            unsupported[bits] = "memory ran out" if device.is_out_of_memory(error) else str(error)
            _LOG.warning("this site cannot train at %d bits: %s", bits, unsupported[bits])
    release()
    if not found:
        reasons = "; ".join(f"{bits} bits: {reason}" for bits, reason in unsupported.items())
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model cannot be trained at this site at any bit width: {reasons}")
    return found, unsupported


def measure(bits: Bits, task: ProfileTask, workplace: Workplace, studied: Studied) -> Findings:
    """Load the base at one bit width and take training steps and forward passes on it."""
    release()
    _check_room(bits, workplace, studied)
    peak_memory.reset_peak()
    began, before = workplace.clock(), _resident_bytes(device.choose())
    base = load(studied.folder, bits, studied.objective)
    load_seconds, load_growth = workplace.clock() - began, peak_memory.peak_bytes() - before
    site = Site(ranks={weight.name: task.rank for weight in studied.base.weights}, scale=lambda _weight: 1.0)
    with (
        attached(base, site, GlobalUpdate(), task.seed) as adapters,
        training_mode(adapters.model, checkpointing=False),
    ):
        bench = Bench(base, adapters, studied.objective, make_optimizer(_HYPER, adapters))
        batches = _batches(studied.examples, task.batch_sizes)
        bench.step(batches[0])
        points = list(_points(bench, batches, workplace))
    if not points:
        raise TaskFailed(FailureReason.OUT_OF_MEMORY, "memory ran out in the first training step")
    return Findings(load_seconds, load_growth, base.held_bytes, tuple(points))


def _resident_bytes(where: torch.device) -> int:
    """What the process holds now; on a GPU nothing, since its peaks are of the device's allocator."""
    return 0 if where.type == "cuda" else int(psutil.Process().memory_info().rss)


def _check_room(bits: Bits, workplace: Workplace, studied: Studied) -> None:
    """Refuse a base that cannot fit, before loading it gets the whole profile killed (what is mapped from a file has no other limit)."""
    where, limit = device.choose(), workplace.memory_limit_bytes
    if where.type == "cuda" or limit is None:
        return
    small = studied.base.quantised_parameters if bits < 16 else 0  # noqa: PLR2004 - a bit width is its own name
    needed = (small * bits + (studied.base.parameters - small) * max(bits, 16)) // 8
    if psutil.Process().memory_info().rss + needed > limit:
        msg = f"the base alone takes {needed / 1e6:.0f} MB, more than the site's limit of {limit / 1e6:.0f} MB leaves"
        raise TaskFailed(FailureReason.OUT_OF_MEMORY, msg)


@dataclass(frozen=True)
class Bench:
    """A base set up to be measured."""

    base: Base
    adapters: Adapters
    objective: Objective
    optimizer: torch.optim.Optimizer

    def step(self, examples: Sequence[Example]) -> bool:
        """One training step; False when the batch had to be split to fit memory."""
        whole = len(examples)
        _, fits = gradients(examples, self.objective, self.base, adapters=self.adapters, micro_batch=whole)
        update(self.optimizer, learning_rate=_HYPER.learning_rate, max_grad_norm=_HYPER.max_grad_norm)
        device.synchronise(self.base.device)
        return fits == whole

    def forward(self, examples: Sequence[Example]) -> None:
        """One pass without gradients."""
        batch = collate(examples, self.objective, self.base.pad_id)
        with evaluating(self.adapters.model):
            summed_loss(self.adapters.model, {name: tensor.to(self.base.device) for name, tensor in batch.items()}, self.objective)
        device.synchronise(self.base.device)


def _batches(examples: Sequence[Example], sizes: Sequence[int]) -> list[list[Example]]:
    """A batch of each size near the mean length, smallest first, and the largest size of the longest samples."""
    ascending = sorted(set(sizes))
    mean = sum(len(example.input_ids) for example in examples) / len(examples)
    typical = sorted(examples, key=lambda example: abs(len(example.input_ids) - mean))
    longest = sorted(examples, key=lambda example: -len(example.input_ids))
    chosen = [_cycled(typical, size) for size in ascending]
    return chosen if _width(longest) == _width(chosen[-1]) else [*chosen, _cycled(longest, ascending[-1])]


def _points(bench: Bench, batches: Sequence[list[Example]], workplace: Workplace) -> Iterator[Throughput]:
    """One measured point a batch, up to the first that does not fit memory."""
    bytes_per_token = 0.0
    for examples in batches:
        if workplace.stop_requested():
            raise Terminated
        device.release_freed()
        resting = psutil.Process().memory_info().rss
        if _is_too_much(resting + bytes_per_token * len(examples) * _width(examples), workplace.memory_limit_bytes, bench.base.device):
            return
        peak_memory.reset_peak()
        began = workplace.clock()
        if not _fits(bench, examples):
            return
        trained = workplace.clock()
        bench.forward(examples)
        tokens = len(examples) * _width(examples)
        bytes_per_token = max(0, peak_memory.peak_bytes() - resting) / tokens
        yield Throughput(
            bits=bench.base.bits,
            batch_size=len(examples),
            length=_width(examples),
            tokens_per_second=_TIMED_STEPS * tokens / (trained - began),
            evaluate_tokens_per_second=tokens / (workplace.clock() - trained),
            peak_memory_bytes=peak_memory.peak_bytes(),
        )


def _is_too_much(expected: float, limit: int | None, where: torch.device) -> bool:
    """Whether a batch is sure to run out of memory, by the batch before it.

    On a CPU it is better not tried: some libraries do not recover in a process whose memory ran out once.
    """
    return limit is not None and where.type == "cpu" and expected > limit


def _fits(bench: Bench, examples: Sequence[Example]) -> bool:
    """Take the timed steps; whether memory sufficed for the whole batch. What was measured before stays."""
    try:
        return all(bench.step(examples) for _ in range(_TIMED_STEPS))
    except TaskFailed as failure:
        if failure.reason is FailureReason.OUT_OF_MEMORY:
            return False
        raise


def _cycled(examples: Sequence[Example], count: int) -> list[Example]:
    return [examples[i % len(examples)] for i in range(count)]


def _width(examples: Sequence[Example]) -> int:
    return max(len(example.input_ids) for example in examples)
