"""The figures as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import audit
from audit import Log
from sampling import Sample, growth
from store_log import StoreLog

MOST_CALLS, MOST_SECONDS, MOST_MEMORY = 12.0, 2.0, 300.0
"""What is aimed at: calls a site and round, seconds from a Job's end to the next action (99 of 100), MiB."""


@dataclass(frozen=True)
class Measured:
    """All that was measured."""

    work: int
    """Sites times rounds that were done."""
    rounds: int
    """Of all runs together."""
    seconds: float
    log: Log
    reported: Mapping[str, float]
    """When each Job's pod ended, by the Job's name."""
    store: StoreLog
    samples: Sequence[Sample]
    others: Mapping[str, float]
    """Processor seconds of what is around the operator, by program."""
    processors: int


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    ascending = sorted(values)
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else float("nan")


def lines(found: Measured) -> list[str]:
    """The table, and what the calls were."""
    rows = [_calls(found), *_reaction(found), *_memory(found), *_processor(found), *_store(found)]
    table = ["| what | measured | aim |", "|---|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows)]
    return [f"{found.rounds} rounds, {found.work} sites and rounds, in {found.seconds:.0f} s", "", *table, "", *_by_kind(found)]


def _calls(found: Measured) -> tuple[str, str, str]:
    total = sum(found.log.calls.values())
    return "API calls a site and round, whole life of a run", f"{total / found.work:.2f}", f"≤ {MOST_CALLS:.0f}"


def _reaction(found: Measured) -> list[tuple[str, str, str]]:
    reactions = audit.reactions(found.log, found.reported)
    seconds = [one.seconds for one in reactions]
    median, last, most = (percentile(seconds, share) for share in (0.5, 0.99, 1.0))
    kinds = {kind: [one.seconds for one in reactions if one.kind == kind] for kind in sorted({one.kind for one in reactions})}
    told = ", ".join(f"{kind} {percentile(some, 0.99):.2f} ({len(some)})" for kind, some in kinds.items())
    late = sum(one > MOST_SECONDS for one in seconds)
    return [
        (f"seconds from a Job's end to the write that shows it, median ({len(seconds)} Jobs)", f"{median:.2f}", ""),
        ("… 99 of 100", f"{last:.2f}", f"≤ {MOST_SECONDS:.0f}"),
        ("… 99 of 100, by the Job's kind (Jobs)", told, ""),
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
        ("operator's processor seconds a site and round", f"{own / found.work:.3f}", ""),
        ("… of its aggregation processes", f"{workers / found.work:.3f}", ""),
        ("… of what is around it", others, ""),
        (f"all processors of the machine at work, share of the {found.seconds:.0f} s", f"{busy:.0%}", ""),
    ]


def _store(found: Measured) -> list[tuple[str, str, str]]:
    total, turns = sum(found.store.calls.values()), found.store.turns
    told = ", ".join(f"{name} {count / max(1, turns):.1f}" for name, count in found.store.calls.most_common(4))
    return [
        ("turns of runs a site and round", f"{turns / found.work:.2f}", ""),
        ("S3 requests a turn, those of aggregations included", f"{total / max(1, turns):.1f} ({told})", ""),
    ]


def _by_kind(found: Measured) -> list[str]:
    rows = [f"| {name} | {count} | {count / found.work:.3f} |" for name, count in found.log.calls.most_common()]
    refused = ", ".join(f"{name} ({count})" for name, count in found.log.refused.most_common()) or "none"
    return [
        "| call | times | a site and round |",
        "|---|---:|---:|",
        *rows,
        "",
        f"Watches opened: {found.log.watches}. Answered by an error: {refused}.",
    ]
