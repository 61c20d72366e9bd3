"""Recipe: profile a site. model → kept profile, or: data → each bit width: load, steps → importance, range test; → link, cache.

What is measured, and how, is in `profiling`. A profile that the site has kept of the same model, data, machine and
parameters is used again, but for the bandwidth to the store and whether the site's cache works, which are found every time.
"""

import logging
import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil
import torch

from fedpipe_trainer import activation_store, device, peak_memory
from fedpipe_trainer.contract import (
    BaseModelFacts,
    Bits,
    FailureReason,
    Importance,
    ImportanceMethod,
    Objective,
    Outcome,
    ProfileResult,
    ProfileTask,
    Progress,
    RangeTestResult,
    SequenceClassification,
)
from fedpipe_trainer.data import Example, Row, Rows, encode, labels_of, lengths_of, select_rows, with_found_labels, with_run_labels
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.failures import failure_of
from fedpipe_trainer.model import Base, check_model, clear_cache, facts, fetch, fingerprint, load, read_revision, read_tokenizer
from fedpipe_trainer.parallel import LoadBase, WorkerGroup, processes_of, worker_group
from fedpipe_trainer.printable import printable
from fedpipe_trainer.profiling import bandwidth, hardware, kept
from fedpipe_trainer.profiling.importance import measure_importance
from fedpipe_trainer.profiling.range_test import measure_rates
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.profiling.throughput import Steps, measure_steps
from fedpipe_trainer.task_runtime import TaskRuntime

_LOG = logging.getLogger(__name__)
_UNQUANTISED: Final = 16
"""Bits from which on a base is not quantised."""
_TRAINED: Final = 32
"""Bits of what is trained."""
_MIB: Final = 2**20
_UNSUPPORTED: Final[tuple[type[Exception], ...]] = (
    *(TaskFailed, RuntimeError, MemoryError, ImportError),
    *(TypeError, ValueError, LookupError, AttributeError, AssertionError),
)
"""What is raised at a bit width that a site cannot compute with."""


@dataclass(frozen=True)
class PreparedSite:
    """The data and the model of a site, before anything is measured."""

    folder: Path
    objective: Objective
    """The task's objective; if it has no labels, with the labels found in the data."""
    base: BaseModelFacts
    examples: Sequence[Example]
    validation: Sequence[Example]
    """Of the range test; empty without one."""
    validation_samples: int
    skipped_rows: int
    labels: tuple[int, int]
    """Different labels of the training and of the validation rows."""
    workers: WorkerGroup | None = None
    """The processes with which steps are divided."""


@dataclass(frozen=True)
class Measurements:
    """The measurements at one bit width."""

    load_seconds: float
    load_growth_bytes: int
    """Growth of memory to its peak while the base was loaded."""
    base_bytes: int
    steps: Steps


@dataclass(frozen=True)
class BitWidths:
    """What was found of the bit widths of a task."""

    measured: dict[Bits, Measurements]
    unsupported: dict[Bits, str]
    """By bit width that does not work here: the reason."""
    out_of_memory: dict[Bits, int]
    """By bit width for which memory did not suffice: bytes that are known to be too few."""


def run(task: ProfileTask, runtime: TaskRuntime) -> ProfileResult:
    """Profile the site.

    Raises:
        TaskFailed: the data or the model is invalid, or no bit width works at this site.
        Terminated: the task was requested to stop.
    """
    runtime.report(Progress(phase="load"))
    clear_cache()
    folder, first_fetch_seconds = _fetch(task, runtime)
    profiles, name = runtime.cache / "profiles", _key(task, runtime, folder) if task.reuse else None
    profile = kept.read(profiles, name) if name else None
    if profile is None:
        profile = measure(task, runtime, folder, first_fetch_seconds)
        if name:
            kept.write(profiles, name, profile)
    else:
        _LOG.info("the site was profiled before, and nothing has changed: its profile is used again")
    link = bandwidth.measure(runtime, task.probe_write, task.probe_read)
    header = runtime.result_header(task)
    peak = max(point.peak_memory_bytes for point in profile.throughput)
    header["measured"] = header["measured"].model_copy(update={"peak_memory_bytes": peak})
    # Another commit of a hub may have the same weights, so it is no part of what is kept.
    now = {"model_revision": read_revision(folder), "up_bits_per_second": link.up, "down_bits_per_second": link.down}
    return profile.model_copy(update={**header, **now, "cache_problem": _cache_problem(task, runtime)})


def _cache_problem(task: ProfileTask, runtime: TaskRuntime) -> str:
    """Why the site's cache cannot keep activations; empty if it can, or the site has no cache."""
    return printable(activation_store.find_problem(runtime.cache / activation_store.FOLDER)) if task.reuse else ""


def _fetch(task: ProfileTask, runtime: TaskRuntime) -> tuple[Path, float]:
    """The folder of the model, and the seconds of fetching it that no later task of the site needs.

    The site's cache keeps a download and the hashes of a local model, so that later tasks only check them. That is done here once more,
    because it is part of their set-up. Without a cache, or if it could not be written, every task fetches the model: 0 seconds.
    """
    with runtime.phase("load"):
        before = runtime.measured().seconds["load"]
        folder = fetch(task.model, runtime)
        if not task.reuse or folder.is_relative_to(runtime.folder):
            return folder, 0.0
        first = runtime.measured().seconds["load"] - before
        fetch(task.model.model_copy(update={"commit": read_revision(folder)}), runtime)
    return folder, first


def measure(task: ProfileTask, runtime: TaskRuntime, folder: Path, first_fetch_seconds: float) -> ProfileResult:
    """Everything but the bandwidth to the store and the state of the site's cache.

    Args:
        task: the profile task.
        runtime: its runtime.
        folder: the folder of the model.
        first_fetch_seconds: what fetching it took beyond what every later task needs.
    """
    used_device = device.choose()
    runtime_bytes = _resident_bytes(used_device)
    with worker_group(device.usable_processes(task.processes), runtime) as workers:
        with runtime.phase("load"):
            site = replace(prepare(task, folder, runtime.cache), workers=workers)
        setup_seconds = runtime.measured().seconds["load"] - first_fetch_seconds
        with runtime.phase("profile"):
            found = measure_bit_widths(task, runtime, site)
            measured = found.measured
            importance, range_test = score(task, runtime, site, measured)
        memory, device_memory = _memory(used_device, runtime, is_shared=workers is not None)
    lengths = lengths_of(site.examples)
    efficiency = max((one.steps.efficiency for one in measured.values()), key=lambda one: one.tokens_per_second)
    return ProfileResult(
        **runtime.result_header(task),
        outcome=Outcome.COMPLETED,
        fingerprint=fingerprint(site.folder),
        base=site.base,
        labels=site.objective.labels if isinstance(site.objective, SequenceClassification) else (),
        train_samples=len(lengths),
        validation_samples=site.validation_samples,
        skipped_rows=site.skipped_rows,
        train_labels=site.labels[0],
        validation_labels=site.labels[1],
        mean_tokens=sum(lengths) / len(lengths),
        longest_tokens=max(lengths),
        rank=task.rank,
        processes=processes_of(workers),
        memory_bytes=memory,
        device_memory_bytes=device_memory,
        runtime_bytes=runtime_bytes,
        setup_seconds=setup_seconds,
        # Memory that earlier bit widths left in this process is not part of the peak of a new process.
        load_peak_bytes={bits: runtime_bytes + measurements.load_growth_bytes for bits, measurements in measured.items()},
        base_bytes={bits: measurements.base_bytes for bits, measurements in measured.items()},
        load_seconds={bits: measurements.load_seconds for bits, measurements in measured.items()},
        throughput=tuple(point for measurements in measured.values() for point in measurements.steps.points),
        unsupported=found.unsupported,
        out_of_memory=found.out_of_memory,
        first_step_seconds={bits: measurements.steps.first_step_seconds for bits, measurements in measured.items()},
        generation={bits: speed for bits, one in measured.items() if (speed := one.steps.generation)},
        memory_bytes_per_second=hardware.memory_bytes_per_second(used_device),
        mfu=efficiency.mfu,
        tokens_per_joule=efficiency.tokens_per_joule,
        energy_source=efficiency.energy_source,
        importance=importance,
        range_test=range_test,
    )


def prepare(task: ProfileTask, folder: Path, cache: Path | None = None) -> PreparedSite:
    """Read the data, if it is large into files on the volume of `cache`, and the facts about the model, without loading weights."""
    paths = (task.data.train, task.data.validation)
    train, validation = (select_rows(path, task.objective, task.policy, cache) for path in paths)
    objective = with_found_labels(task.objective, (train, validation), task.policy)
    train, validation = (with_run_labels(path, rows, objective) for path, rows in zip(paths, (train, validation), strict=True))
    tokenizer = read_tokenizer(folder)
    check_model(folder, objective, tokenizer, max_new_tokens=task.max_new_tokens)
    return PreparedSite(
        folder=folder,
        objective=objective,
        base=facts(folder, objective, task.target_modules, task.model.attn_implementation, task.model.modules_to_save),
        examples=encode(train.rows, objective, tokenizer, cache),
        validation=encode(_draw_validation(task, validation.rows), objective, tokenizer),
        validation_samples=len(validation.rows),
        skipped_rows=train.skipped + train.dropped + validation.skipped + validation.dropped,
        labels=(_label_count(train, objective), _label_count(validation, objective)),
    )


def _label_count(rows: Rows, objective: Objective) -> int:
    if not isinstance(objective, SequenceClassification) or objective.problem == "Regression":
        return 0
    return len({label for row in rows.rows.column(objective.label) for label in labels_of({objective.label: row}, objective)})


def measure_bit_widths(task: ProfileTask, runtime: TaskRuntime, site: PreparedSite) -> BitWidths:
    """What is found of each bit width that is tried.

    Fewer than 16 bits answer a shortage of memory, and are otherwise slower: where the base fits at 16 or more with every batch, they
    are not measured unless the task says so. The planner then assumes that they are as slow as the slowest that was.

    Raises:
        TaskFailed: no bit width works at this site; the message has the reasons. Or a worker has ended, which says nothing about bit
            widths: the profile is not kept, and another attempt may succeed.
    """
    found = BitWidths({}, {}, {})
    requested = sorted(set(task.bits), reverse=True)
    for number, bits in enumerate(requested):
        if bits < _UNQUANTISED and not task.all_bits and any(one.steps.fits for one in found.measured.values()):
            break
        runtime.report(Progress(phase="profile", step=number, steps=len(requested)))
        clear_cache()
        available, needed = device.memory_bytes(device.choose(), runtime.memory_limit_bytes), _bytes_with_base(bits, site)
        try:
            _check_base_fits(needed, runtime)
            with device.memory_limit(device.choose(), runtime.memory_limit_bytes):
                found.measured[bits] = measure_bit_width(bits, task, runtime, site)
        except _UNSUPPORTED as error:
            if site.workers and site.workers.is_broken:
                raise
            reason = failure_of(error, elapsed_seconds=runtime.elapsed_seconds()).message
            if _is_out_of_memory(error):
                found.out_of_memory[bits] = max(available, needed)
            else:
                found.unsupported[bits] = reason
            _LOG.warning("the model cannot be trained at %d bits at this site: %s", bits, reason)
    clear_cache()
    if not found.measured:
        raise _failure(found, device.memory_bytes(device.choose(), runtime.memory_limit_bytes))
    return found


def _failure(found: BitWidths, available: int) -> TaskFailed:
    """The failure of a site where no bit width works: for lack of memory, if more of it would help with one of them."""
    reasons = {bits: f"needs more than {too_few // _MIB} MiB of memory" for bits, too_few in found.out_of_memory.items()}
    listed = "; ".join(f"{bits} bits: {reason}" for bits, reason in sorted((found.unsupported | reasons).items(), reverse=True))
    message = f"the model cannot be trained at this site at any bit width: {listed}"
    if not reasons:
        return TaskFailed(FailureReason.BAD_MODEL, message)
    least = min(found.out_of_memory.values()) // _MIB
    advice = "allow fewer bits in planning.bits or smaller planning.ranks, or use a smaller base model"
    return TaskFailed(
        FailureReason.OUT_OF_MEMORY,
        f"{message}. The site has {available // _MIB} MiB: give it more than {least}Mi of memory, {advice}",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    failed = isinstance(error, TaskFailed) and error.reason is FailureReason.OUT_OF_MEMORY
    return failed or device.is_out_of_memory(error)


def measure_bit_width(bits: Bits, task: ProfileTask, runtime: TaskRuntime, site: PreparedSite) -> Measurements:
    """Load the base at one bit width and run training steps and forward passes."""
    peak_memory.reset_peak()
    started, bytes_before = runtime.elapsed_seconds(), _resident_bytes(device.choose())
    base = _load(bits, task, site)
    load_seconds, load_growth = runtime.elapsed_seconds() - started, peak_memory.peak_bytes() - bytes_before
    steps = measure_steps(_subject(base, task, site), task.batch_sizes, runtime)
    return Measurements(load_seconds, load_growth, base.memory_bytes, steps)


def _load(bits: Bits, task: ProfileTask, site: PreparedSite) -> Base:
    """The base, which the workers load at the same time. Raises as `_load_here`."""
    attention, whole = task.model.attn_implementation, task.model.modules_to_save
    asked = LoadBase(site.folder, fingerprint(site.folder), bits, site.objective, attention, whole)
    with site.workers.loading(asked) if site.workers else nullcontext():
        return _load_here(asked)


def _load_here(asked: LoadBase) -> Base:
    """The base, in this process.

    Raises:
        TaskFailed: BadModel, what loads or quantises it cannot. It has no row at hand, so its own words are told.
    """
    try:
        return load(asked.folder, asked.bits, asked.objective, asked.attention, asked.modules_to_save)
    except (RuntimeError, ImportError) as error:
        if device.is_out_of_memory(error):
            raise
        raise TaskFailed(FailureReason.BAD_MODEL, str(error) or type(error).__name__) from error


def score(
    task: ProfileTask, runtime: TaskRuntime, site: PreparedSite, measured: dict[Bits, Measurements]
) -> tuple[Importance | None, RangeTestResult | None]:
    """The importance of the weights and the losses of the learning rates, as far as the task requests them.

    Both are measured on one base, at the largest bit width that works here.
    """
    if task.importance is ImportanceMethod.NONE and task.range_test is None:
        return None, None
    bits, range_test = max(measured), None
    fitting = _fitting_batch(measured[bits].steps)
    with device.memory_limit(device.choose(), runtime.memory_limit_bytes):
        subject = _subject(_load(bits, task, site), task, site)
        importance = measure_importance(task.importance, subject, fitting)
        if task.range_test is not None:
            range_test = measure_rates(task.range_test, subject, site.validation, micro_batch=fitting, runtime=runtime)
        del subject
    clear_cache()
    return importance, range_test


def _fitting_batch(steps: Steps) -> int:
    """A batch that fits in memory at any length: where not all did, the largest may fit at the mean length only."""
    sizes = sorted({point.batch_size for point in steps.points})
    return sizes[-1] if steps.fits else sizes[max(0, len(sizes) - 2)]


def _draw_validation(task: ProfileTask, rows: Sequence[Row]) -> Sequence[Row]:
    """The validation rows of the range test, drawn at random; none without one."""
    if task.range_test is None:
        return ()
    return random.Random(task.seed).sample(rows, min(len(rows), task.range_test.validation_samples))  # noqa: S311 - no secret


def _subject(base: Base, task: ProfileTask, site: PreparedSite) -> Subject:
    return Subject(base, site.objective, site.base.weights, site.examples, rank=task.rank, seed=task.seed, workers=site.workers)


def _key(task: ProfileTask, runtime: TaskRuntime, folder: Path) -> str | None:
    """The key of this task's profile; None if a data file cannot be read, which `prepare` will report."""
    try:
        return kept.key(
            task,
            fingerprint=fingerprint(folder),
            machine=hardware.machine(device.choose()),
            memory_limit=runtime.memory_limit_bytes,
            software=runtime.result_header(task)["software"],
        )
    except (OSError, TaskFailed):
        return None


def _memory(used_device: torch.device, runtime: TaskRuntime, *, is_shared: bool) -> tuple[int, int]:
    """Bytes that a process may use, and those that it might if the site claimed more: on a CPU that processes share, the same."""
    limit = runtime.memory_limit_bytes
    memory = device.memory_bytes(used_device, limit)
    if is_shared and used_device.type == "cpu":
        return memory, memory
    return memory, device.memory_bytes_beyond(used_device, limit)


def _resident_bytes(used_device: torch.device) -> int:
    """The resident memory of the process; 0 on a GPU, where peaks are those of the device's allocator."""
    return 0 if used_device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _bytes_with_base(bits: Bits, site: PreparedSite) -> int:
    """Memory of this process, or of its device, with the base loaded and nothing else."""
    quantised = site.base.quantised_parameters if bits < _UNQUANTISED else 0
    base = (quantised * bits + (site.base.parameters - quantised) * max(bits, _UNQUANTISED)) // 8
    whole = sum(map(math.prod, site.base.whole.values())) * (_TRAINED - max(bits, _UNQUANTISED)) // 8
    return base + whole + _resident_bytes(device.choose())


def _check_base_fits(needed: int, runtime: TaskRuntime) -> None:
    """Raise an exception if the base exceeds the memory limit. Loading it would get the process killed: file pages have no other limit."""
    limit = runtime.memory_limit_bytes
    if device.choose().type != "cuda" and limit is not None and needed > limit:
        msg = f"the base alone needs {needed / 1e6:.0f} MB, and the site's memory limit is {limit / 1e6:.0f} MB"
        raise TaskFailed(FailureReason.OUT_OF_MEMORY, msg)
