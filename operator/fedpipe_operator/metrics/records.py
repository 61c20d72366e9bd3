"""What the metrics keep of runs between two scrapes. The only state of the metrics beside Prometheus' own; thread-safe."""

import threading
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

from fedpipe_operator.backend import TaskKind
from fedpipe_operator.metrics.attempts import ended_attempts
from fedpipe_operator.metrics.counter_series import bounded
from fedpipe_operator.metrics.counting import Aggregated, Counted, Increment, count, count_end
from fedpipe_operator.metrics.run_record import LINGER_SECONDS, RunRecord, next_record, with_use, without_sites
from fedpipe_operator.rounds import Decision, Observed, Run, is_over


@dataclass(frozen=True)
class _Known:
    counted: Counted
    record: RunRecord


@dataclass(frozen=True)
class Snapshot:
    """The records and totals at one moment."""

    records: Mapping[str, RunRecord]
    """By the run's uid."""
    totals: Mapping[str, Mapping[tuple[str, ...], float]]


@dataclass
class Records:
    """The records of all runs, and the counters that are not of a single run."""

    clock: Callable[[], float]
    """Unix seconds."""
    _known: dict[str, _Known] = field(default_factory=dict)
    """By uid."""
    _totals: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)
    _reasons: dict[str, set[str]] = field(default_factory=dict)
    """Those of attempts, by namespace."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run_reconciled(self, run: Run, observed: Observed, decision: Decision) -> tuple[Aggregated, ...]:
        """Bring the run's record up to date; the aggregations that are new."""
        now, meta = self.clock(), run.resource.metadata
        ended = ended_attempts(run, observed, decision, now)
        ended_at = now if is_over(run.resource.model_copy(update={"status": decision.status})) else None
        with self._lock:
            known = self._known.get(meta.uid)
            counted, news = count(known.counted if known else None, run, observed, ended=ended, now=now)
            counted, end = count_end(counted, decision.status, meta.namespace)
            record = next_record(known.record if known else None, run, observed, status=decision.status, now_ended=ended_at)
            self._known[meta.uid] = _Known(counted, with_use(record, news.ended) if news.ended else record)
            self._add((*news.increments, *end))
            self._drop_old(now)
        return news.aggregated

    def run_ended(self, run: Run) -> None:
        """The run is over; its end is counted if this process saw it at work."""
        now, meta = self.clock(), run.resource.metadata
        with self._lock:
            known = self._known.get(meta.uid)
            if known is not None:
                counted, end = count_end(known.counted, run.resource.status, meta.namespace)
                record = replace(known.record, stage=None, ended_at=known.record.ended_at or now)
                self._known[meta.uid] = _Known(counted, record)
                self._add(end)
            self._drop_old(now)

    def run_deleted(self, uid: str) -> None:
        """The run's object is gone."""
        with self._lock:
            self._known.pop(uid, None)

    def site_deleted(self, namespace: str, site: str) -> None:
        """The site's object is gone; another one of its name begins at 0."""
        with self._lock:
            attempts = self._totals.get("attempts_total", {})
            for labels in [labels for labels in attempts if labels[:2] == (namespace, site)]:
                del attempts[labels]

    def snapshot(self) -> Snapshot:
        """What a scrape shows; values that no thread changes."""
        with self._lock:
            self._drop_old(self.clock())
            totals = {name: dict(values) for name, values in self._totals.items()}
            return Snapshot({uid: one.record for uid, one in self._known.items()}, totals)

    def _add(self, increments: tuple[Increment, ...]) -> None:
        for increment in increments:
            reasons = self._reasons.setdefault(increment.labels[0], set())
            name, labels, amount = bounded(increment, reasons)
            if name == "attempts_total":
                reasons.add(labels[-1])
            values = self._totals.setdefault(name, {})
            values[labels] = values.get(labels, 0.0) + amount

    def _drop_old(self, now: float) -> None:
        """Of runs that have been over for a while, drop what is large: their plans, which nothing else holds any more."""
        for uid, one in self._known.items():
            ended_at = one.record.ended_at
            if one.record.plan is not None and ended_at is not None and now >= ended_at + LINGER_SECONDS:
                self._known[uid] = replace(one, record=without_sites(one.record))


def aggregates_in_job(observed: Observed, round_: int, jobs: Container[str]) -> bool:
    """Whether a Job of Kubernetes aggregated this round, not a process of the operator."""
    return any(
        status.job.kind is TaskKind.AGGREGATE and status.job.round == round_ and name in jobs for name, status in observed.jobs.items()
    )
