"""Speed and peak memory of training steps at one bit width: by batch with all layers trained, and with the top half of them.

The planner calibrates its models with these points, so they use the same code and data as training: the training step of
`steps`, real examples, and an adapter of the task's rank for every target weight. Few points are measured, since each costs
seconds: every batch at the mean length of the samples, which determines the time; the largest batch also at the length of
the longest samples where these are clearly longer, which determines the peak memory; and the largest batch that fits at a second
depth, which tells the forward pass from the backward pass: seconds a token = a + c · trained layers. Gradient checkpointing is not
measured: what it adds is the forward pass a second time.

Where the site's steps are divided among devices, those that are measured are, too: each device computes a batch, and the speed is that of
all. What is not divided, evaluation and answers, is measured on one.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final

import psutil
import torch

from fedpipe_trainer import device, peak_memory
from fedpipe_trainer.adapters import Adapters, AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import EnergySource, FailureReason, GenerationSpeed, Hyperparameters, Throughput, WeightShape
from fedpipe_trainer.data import Example, collate, lengths_of
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import evaluation_mode
from fedpipe_trainer.flops import Work, training_flop, work_of
from fedpipe_trainer.losses import summed_loss
from fedpipe_trainer.mfu import model_flops_utilisation
from fedpipe_trainer.model import Base
from fedpipe_trainer.parallel import Session, SessionRequest, open_session
from fedpipe_trainer.profiling import energy
from fedpipe_trainer.profiling.generation import measure_generation
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode
from fedpipe_trainer.task_runtime import TaskRuntime

_HYPER: Final = Hyperparameters()
_ENOUGH_SECONDS: Final = 1.0
"""A point is measured until its steps took this long together: one step on a slow site, some on a fast one."""
_MOST_STEPS: Final = 5
_USABLE_SHARE: Final = 0.85
"""Of the memory limit: a plan uses no more, and `device.memory_limit` keeps 8 % for file pages."""
_CLEARLY_LONGER: Final = 1.1


@dataclass(frozen=True)
class Efficiency:
    """How well the fastest of some training steps used the device."""

    tokens_per_second: float
    mfu: float | None
    tokens_per_joule: float | None
    energy_source: EnergySource | None


@dataclass(frozen=True)
class Steps:
    """The measured steps of one bit width."""

    points: tuple[Throughput, ...]
    first_step_seconds: float
    """Seconds by which the first step exceeded a later one of the same batch."""
    efficiency: Efficiency
    fits: bool
    """Whether memory sufficed for every batch."""
    generation: GenerationSpeed | None
    """None for a classification, and where it could not be measured."""


@dataclass(frozen=True)
class _Timed:
    point: Throughput
    seconds: float
    work: Work
    """Of one process in one step."""
    tokens_per_joule: float | None
    energy_source: EnergySource | None


def measure_steps(subject: Subject, batch_sizes: Sequence[int], runtime: TaskRuntime) -> Steps:
    """Measure the batches up to the first that does not fit in memory, and the largest that does at a second depth.

    Raises:
        TaskFailed: OutOfMemory, not even the smallest batch fits.
        Terminated: the task was requested to stop.
    """
    batches = _batches(subject.examples, batch_sizes)
    _read_weights(subject.base)
    with _Benchmark.attached(subject, runtime, lowest_layer=0) as benchmark:
        first = _seconds_of(runtime, benchmark, batches[0])
        evaluate_speed = _evaluate_speed(runtime, benchmark, batches[0])
        generation = measure_generation(subject, batches[0], runtime)
        measured = list(_measure(benchmark, batches, runtime, evaluate_speed))
    timed = [one for one in measured if one is not None]
    if not timed:
        raise TaskFailed(FailureReason.OUT_OF_MEMORY, "out of memory in the first training step")
    fastest = max(timed, key=lambda one: one.point.tokens_per_second)
    speed = fastest.point.tokens_per_second
    flop = training_flop(subject.base, subject.objective, dict.fromkeys((one.name for one in subject.weights), subject.rank), fastest.work)
    mfu = model_flops_utilisation(subject.base, flop, fastest.seconds)
    efficiency = Efficiency(speed, mfu, fastest.tokens_per_joule, fastest.energy_source)
    # On a CPU, some libraries do not recover after the process has run out of memory: see `_exceeds_limit`.
    may_go_on = None not in measured or subject.base.device.type != "cpu"
    shallow = _at_second_depth(subject, batches[: len(timed)], runtime, evaluate_speed) if may_go_on else []
    points = tuple(one.point for one in [*timed, *shallow])
    return Steps(points, max(0.0, first - timed[0].seconds), efficiency, fits=len(timed) == len(batches), generation=generation)


def _read_weights(base: Base) -> None:
    """Read a value of every page of the base.

    32-bit weights are mapped from their file, so a page is in memory once it has been read. A training reads the embeddings of all its
    texts; those of the few samples here would leave out half of the table.
    """
    if base.device.type == "cpu":
        for parameter in base.model.parameters():
            parameter.detach().reshape(-1)[:: device.PAGE_BYTES // parameter.element_size()].sum()


def _at_second_depth(subject: Subject, fitting: Sequence[list[Example]], runtime: TaskRuntime, evaluate_speed: float) -> list[_Timed]:
    """The largest of these batches, of samples of about the mean length, with the upper half of the layers; none of a single layer."""
    lowest = second_depth(subject.weights)
    if lowest is None:
        return []
    largest = max(fitting, key=len)  # of two equally large ones the first, whose samples are not the longest
    with _Benchmark.attached(subject, runtime, lowest_layer=lowest) as benchmark:
        return [one for one in _measure(benchmark, [largest], runtime, evaluate_speed) if one is not None]


def second_depth(weights: Sequence[WeightShape]) -> int | None:
    """The lowest layer of the top half of the layers that have target weights; None for a single layer, which has no half."""
    layers = sorted({weight.layer for weight in weights})
    return layers[len(layers) // 2] if len(layers) > 1 else None


@dataclass(frozen=True)
class _Benchmark:
    """A base with adapters and an optimiser, ready to be measured."""

    subject: Subject
    adapters: Adapters
    optimizer: torch.optim.Optimizer
    lowest_layer: int
    session: Session | None

    @classmethod
    @contextmanager
    def attached(cls, subject: Subject, runtime: TaskRuntime, *, lowest_layer: int) -> "Iterator[_Benchmark]":
        """A benchmark that trains the weights of this layer and of those above it."""
        ranks = {weight.name: subject.rank for weight in subject.weights if weight.layer >= lowest_layer}
        scales = dict.fromkeys(ranks, 1.0)
        spec = AdapterSpec(ranks=ranks, scale=scales.__getitem__)
        limit = runtime.memory_limit_bytes
        request = SessionRequest(ranks, scales, subject.seed, lowest_layer=lowest_layer, memory_limit_bytes=limit)
        with (
            attach_adapters(subject.base, spec, AdapterTensors(), subject.seed) as adapters,
            training_mode(adapters.model, checkpointing=False, lowest_layer=lowest_layer),
            open_session(subject.workers, request, adapters.trainable) as session,
        ):
            yield cls(subject, adapters, make_optimizer(_HYPER, adapters), lowest_layer, session)

    def train_step(self, examples: Sequence[Example]) -> bool:
        """Run one training step, of these examples on each device; False if they had to be split to fit in memory."""
        size, base, objective = len(examples), self.subject.base, self.subject.objective
        everywhere = [*examples] * self.subject.processes
        _, micro_batch = compute_gradients(everywhere, objective, base, adapters=self.adapters, micro_batch=size, session=self.session)
        optimizer_step(self.optimizer, learning_rate=_HYPER.learning_rate, max_grad_norm=_HYPER.max_grad_norm)
        device.synchronise(base.device)
        return micro_batch == size

    def forward(self, examples: Sequence[Example]) -> None:
        """Run one forward pass without gradients."""
        base, objective = self.subject.base, self.subject.objective
        batch = collate(examples, objective, base.pad_id)
        with evaluation_mode(self.adapters.model):
            summed_loss(self.adapters.model, {name: tensor.to(base.device) for name, tensor in batch.items()}, objective)
        device.synchronise(base.device)


def _batches(examples: Sequence[Example], sizes: Sequence[int]) -> list[list[Example]]:
    """A batch of each size with samples close to the mean length, smallest first; then, perhaps, the largest with the longest samples."""
    ascending, lengths = sorted(set(sizes)), lengths_of(examples)
    mean = sum(lengths) / len(lengths)
    typical, longest = (
        [examples[at] for at in nsmallest(ascending[-1], range(len(lengths)), key=key)]
        for key in (lambda at: abs(lengths[at] - mean), lambda at: -lengths[at])
    )
    batches = [_repeat(typical, size) for size in ascending]
    is_clearly_longer = _length(longest) > _CLEARLY_LONGER * _length(batches[-1])
    return [*batches, _repeat(longest, ascending[-1])] if is_clearly_longer else batches


def _measure(
    benchmark: _Benchmark, batches: Sequence[list[Example]], runtime: TaskRuntime, evaluate_speed: float
) -> Iterator[_Timed | None]:
    """Measure each batch, up to the first that does not fit in memory. If that was tried, the last value is None.

    The first step of a batch is not timed: libraries choose kernels for its shape, and memory is allocated. On two cores it took 10 to 35 %
    longer than those of the training. Its peak counts, like that of the others.
    """
    base, processes, bytes_per_token = benchmark.subject.base, benchmark.subject.processes, 0.0
    meter = energy.meter(base.device, processes)
    for examples in batches:
        if runtime.stop_requested():
            raise Terminated
        device.trim_memory()
        bytes_before = psutil.Process().memory_info().rss
        tokens = len(examples) * _length(examples)
        if _exceeds_limit(bytes_before + bytes_per_token * tokens, runtime.memory_limit_bytes, base.device):
            return
        peak_memory.reset_peak()
        if not _fits(benchmark, examples):
            yield None
            return
        meter.joules()
        steps = _run_timed_steps(benchmark, examples, runtime)
        if steps is None:
            yield None
            return
        joules, peak = meter.joules(), peak_memory.peak_bytes()
        bytes_per_token = max(0, peak - bytes_before) / tokens
        seconds = statistics.median(steps)
        point = Throughput(
            bits=base.bits,
            batch_size=len(examples),
            length=_length(examples),
            tokens_per_second=processes * tokens / seconds,
            evaluate_tokens_per_second=evaluate_speed,
            peak_memory_bytes=peak,
            lowest_layer=benchmark.lowest_layer,
        )
        work = work_of(examples, benchmark.subject.objective)
        efficiency = None if joules is None else len(steps) * processes * tokens / joules
        yield _Timed(point, seconds, work, efficiency, meter.source if joules is not None else None)


def _exceeds_limit(expected_bytes: float, limit: int | None, used_device: torch.device) -> bool:
    """Whether a batch would run out of memory, as predicted from the batch before it.

    On a CPU such a batch is not tried: some libraries do not recover after the process has run out of memory, and where little is left
    a matrix product may take minutes (oneDNN cannot allocate its buffers, and torch falls back to a kernel without blocking).
    """
    return limit is not None and used_device.type == "cpu" and expected_bytes > _USABLE_SHARE * limit


def _fits(benchmark: _Benchmark, examples: Sequence[Example]) -> bool:
    """Run one training step; whether the whole batch fitted in memory. Earlier measurements are kept if it did not."""
    try:
        return benchmark.train_step(examples)
    except TaskFailed as failure:
        if failure.reason is FailureReason.OUT_OF_MEMORY:
            return False
        raise


def _run_timed_steps(benchmark: _Benchmark, examples: Sequence[Example], runtime: TaskRuntime) -> list[float] | None:
    """Seconds of each timed step; None if the batch no longer fits in memory."""
    seconds: list[float] = []
    while len(seconds) < _MOST_STEPS and sum(seconds) < _ENOUGH_SECONDS:
        started = runtime.elapsed_seconds()
        if not _fits(benchmark, examples):
            return None
        seconds.append(_elapsed(runtime, started))
    return seconds


def _seconds_of(runtime: TaskRuntime, benchmark: _Benchmark, examples: Sequence[Example]) -> float:
    """Seconds of one training step."""
    started = runtime.elapsed_seconds()
    benchmark.train_step(examples)
    return _elapsed(runtime, started)


def _evaluate_speed(runtime: TaskRuntime, benchmark: _Benchmark, examples: Sequence[Example]) -> float:
    """Tokens per second in one forward pass without gradients."""
    started = runtime.elapsed_seconds()
    benchmark.forward(examples)
    return len(examples) * _length(examples) / _elapsed(runtime, started)


def _elapsed(runtime: TaskRuntime, started: float) -> float:
    return max(runtime.elapsed_seconds() - started, 1e-9)


def _repeat(examples: Sequence[Example], count: int) -> list[Example]:
    return [examples[i % len(examples)] for i in range(count)]


def _length(examples: Sequence[Example]) -> int:
    return max(len(example.input_ids) for example in examples)
