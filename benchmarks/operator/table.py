"""The figures as a Markdown table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import audit
from audit import Log
from sampling import Sample, growth
from store_log import StoreLog

MOST_CALLS, MOST_SECONDS, MOST_MEMORY = 5.0, 2.0, 300.0
"""Targets: calls per site and round of a run of ten rounds, seconds from a Job's end to the next action (99th percentile), MiB."""


@dataclass(frozen=True)
class Measured:
    """All measurements."""

    work: int
    """Completed rounds times sites."""
    rounds: int
    """Completed rounds of all runs."""
    seconds: float
    log: Log
    reported: Mapping[str, float]
    """When each Job's pod ended, by the Job's name."""
    store: StoreLog
    samples: Sequence[Sample]
    others: Mapping[str, float]
    """Processor seconds of the other programs, by name."""
    processors: int


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value that this fraction of all values does not exceed."""
    ascending = sorted(values)
    return ascending[min(len(ascending) - 1, int(fraction * len(ascending)))] if ascending else float("nan")


def lines(found: Measured) -> list[str]:
    """The table of figures and the table of calls."""
    rows = [_calls(found), *_reaction(found), *_memory(found), *_processor(found), *_store(found)]
    table = ["| what | measured | aim |", "|---|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows)]
    return [f"{found.rounds} rounds, {found.work} site rounds, in {found.seconds:.0f} s", "", *table, "", *_by_kind(found)]


def _calls(found: Measured) -> tuple[str, str, str]:
    total = sum(found.log.calls.values())
    return "API calls per site and round, whole life of a run", f"{total / found.work:.2f}", f"≤ {MOST_CALLS:.0f}"


def _reaction(found: Measured) -> list[tuple[str, str, str]]:
    reactions = audit.reactions(found.log, found.reported)
    seconds = [one.seconds for one in reactions]
    median, last, most = (percentile(seconds, share) for share in (0.5, 0.99, 1.0))
    kinds = {kind: [one.seconds for one in reactions if one.kind == kind] for kind in sorted({one.kind for one in reactions})}
    by_kind = ", ".join(f"{kind} {percentile(some, 0.99):.2f} ({len(some)})" for kind, some in kinds.items())
    late = sum(one > MOST_SECONDS for one in seconds)
    return [
        (f"seconds from a Job's end to the write that shows it, median ({len(seconds)} Jobs)", f"{median:.2f}", ""),
        ("… 99 of 100", f"{last:.2f}", f"≤ {MOST_SECONDS:.0f}"),
        ("… 99 of 100, by the Job's kind (Jobs)", by_kind, ""),
        (f"… above {MOST_SECONDS:.0f} s: Jobs, share", f"{late}, {late / max(1, len(seconds)):.2%}", ""),
        ("… longest", f"{most:.2f}", ""),
    ]


def _memory(found: Measured) -> list[tuple[str, str, str]]:
    samples = list(found.samples)
    second, last = growth(samples)
    most = max(one.rss for one in samples), max(one.pss for one in samples)
    return [
        ("operator's memory, most: RSS (PSS), MiB", f"{most[0]:.0f} ({most[1]:.0f})", f"≤ {MOST_MEMORY:.0f}"),
        ("… mean PSS of the second and of the last quarter, MiB", f"{second:.0f}, {last:.0f} ({last - second:+.0f})", "flat"),
        ("memory of its aggregation processes, most (PSS), MiB", f"{max(one.workers for one in samples):.0f}", ""),
    ]


def _processor(found: Measured) -> list[tuple[str, str, str]]:
    first, last = found.samples[0], found.samples[-1]
    own, workers = last.cpu - first.cpu, last.workers_cpu - first.workers_cpu
    others = ", ".join(f"{name} {taken / found.work:.3f}" for name, taken in sorted(found.others.items(), key=lambda pair: -pair[1]))
    busy = (last.busy - first.busy) / (last.at - first.at) / found.processors
    return [
        ("operator's processor seconds per site and round", f"{own / found.work:.3f}", ""),
        ("… of its aggregation processes", f"{workers / found.work:.3f}", ""),
        ("… of the other programs", others, ""),
        (f"all processors of the machine busy, share of the {found.seconds:.0f} s", f"{busy:.0%}", ""),
    ]


def _store(found: Measured) -> list[tuple[str, str, str]]:
    total, reconciles = sum(found.store.calls.values()), found.store.reconciles
    by_call = ", ".join(f"{name} {count / max(1, reconciles):.1f}" for name, count in found.store.calls.most_common(4))
    return [
        ("reconciles of runs per site and round", f"{reconciles / found.work:.2f}", ""),
        ("S3 requests per reconcile, with those of aggregations", f"{total / max(1, reconciles):.1f} ({by_call})", ""),
    ]


def _by_kind(found: Measured) -> list[str]:
    rows = [f"| {name} | {count} | {count / found.work:.3f} |" for name, count in found.log.calls.most_common()]
    errors = ", ".join(f"{name} ({count})" for name, count in found.log.errors.most_common()) or "none"
    return [
        "| call | times | per site and round |",
        "|---|---:|---:|",
        *rows,
        "",
        f"Watches opened: {found.log.watches}. Answered by an error: {errors}.",
    ]
