"""What happened to a run since the last reconcile, each thing once: state in, state and increments out. Pure.

A reconcile observes a state, not what has changed, and it may be repeated; so `Counted` remembers how far each kind of thing was counted.
What had happened before this process saw the run first was counted by the operator before it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from fedpipe_operator import names
from fedpipe_operator.api import ConditionStatus, ConditionType, FineTuneStatus, Reason
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.metrics.attempts import Ended, reads_profiles
from fedpipe_operator.rounds import Observed, Run
from fedpipe_operator.rounds.observed import CommitSummary
from fedpipe_operator.rounds.replanning import cause_of
from fedpipe_trainer.contract import FailureReason

ENDS: Final = {ConditionType.COMPLETE: "complete", ConditionType.FAILED: "failed"}
END_REASONS: Final = (
    ("complete", Reason.ROUNDS_COMPLETED),
    ("complete", Reason.TARGET_REACHED),
    ("complete", Reason.PATIENCE_EXHAUSTED),
    ("failed", Reason.NO_SITES),
    ("failed", Reason.TOO_FEW_SITES),
    ("failed", Reason.QUORUM_OUT_OF_REACH),
    ("failed", Reason.RULE_OUT_OF_REACH),
    ("failed", Reason.TOO_FEW_LABELS),
    ("failed", Reason.PLANNING_FAILED),
    ("failed", Reason.AGGREGATION_FAILED),
    ("failed", Reason.EXPORT_FAILED),
)
"""How a run can end."""
MOST_SECONDS: Final = 7 * 86400.0
"""Of an aggregation."""
MOST_BYTES: Final = 10**15
"""Read by one. Commits lie in the runs' buckets, and whoever may write there must not make the sums of all runs infinite."""
_Place = tuple[int, int]
_NONE: Final[_Place] = (-1, -1)


class Increment(NamedTuple):
    """By how much a counter grows: its name in the catalogue without the prefix, and the values of its labels in the catalogue's order."""

    name: str
    labels: tuple[str, ...]
    amount: float = 1.0


class Aggregated(NamedTuple):
    """An aggregation that was committed."""

    method: str
    round: int
    seconds: float
    bytes_read: int


@dataclass(frozen=True)
class Counted:
    """How far the events of one run were counted."""

    attempts: Mapping[tuple[TaskKind, str], _Place] = field(default_factory=dict)
    """By task and site: round and attempt of the last one that ended."""
    refused: Mapping[str, _Place] = field(default_factory=dict)
    """By site: round and attempt of the last update that was refused."""
    plan: int = 0
    """The last round whose plan was counted."""
    commit: int = 0
    """The last round whose commit was counted."""
    is_over: bool = False
    profiles_since: float = 0.0
    """Unix seconds: profiles whose jobs started earlier were counted by an operator before this one. They are read for a plan only, so
    that those of a run with a plan were not there to be seen when this process saw it first."""


@dataclass(frozen=True)
class News:
    """What is new of a run."""

    ended: tuple[Ended, ...] = ()
    increments: tuple[Increment, ...] = ()
    aggregated: tuple[Aggregated, ...] = ()


def is_new(status: FineTuneStatus) -> bool:
    """Whether no operator has reconciled the run before: then everything that is found has just happened."""
    return not any(one.type == ConditionType.PROGRESSING for one in status.conditions)


def count(before: Counted | None, run: Run, observed: Observed, *, ended: Iterable[Ended], now: float) -> tuple[Counted, News]:
    """What is new of a run, and how far it is counted now.

    Args:
        before: None if this process sees the run for the first time.
        run: as it was when the reconcile began.
        observed: by the reconcile.
        ended: the attempts of it that have ended.
        now: Unix seconds.
    """
    is_joined = before is None and not is_new(run.resource.status)
    known = before or Counted(profiles_since=now if is_joined and not reads_profiles(run, observed) else 0.0)
    new = tuple(_only_new(ended, known))
    refused = _refused(known.refused, observed)
    commits = tuple(one for round_, one in sorted(observed.commits.items()) if round_ > known.commit)
    after = replace(
        known,
        attempts=dict(known.attempts) | {(one.kind, one.site): one.place for one in new},
        refused=dict(known.refused) | {site: place for site, place, _ in refused},
        plan=max(known.plan, observed.plan.round if observed.plan else 0),
        commit=max(known.commit, *observed.commits, 0),
    )
    if is_joined:
        return after, News()
    namespace = run.resource.metadata.namespace
    increments = (
        *(increment for one in new for increment in _of_attempt(namespace, one)),
        *(Increment("updates_refused_total", (namespace, reason)) for _, _, reason in refused),
        *_replans(namespace, observed, known.plan),
    )
    method = run.spec.aggregation.method.value
    return after, News(new, increments, tuple(_aggregated(method, one) for one in commits))


def count_end(before: Counted | None, status: FineTuneStatus, namespace: str) -> tuple[Counted, tuple[Increment, ...]]:
    """The end of a run that this process has seen at work, once."""
    known = Counted(is_over=True) if before is None else before
    end = next((one for one in status.conditions if one.type in ENDS and one.status is ConditionStatus.TRUE), None)
    if end is None or known.is_over:
        return known, ()
    result = ENDS[ConditionType(end.type)]
    return replace(known, is_over=True), (Increment("runs_finished_total", (namespace, result, end.reason)),)


def _only_new(ended: Iterable[Ended], counted: Counted) -> Iterable[Ended]:
    """Those that were not counted, each once; `ended` is in the order of their places."""
    last = dict(counted.attempts)
    for one in ended:
        is_old = one.kind is TaskKind.PROFILE and (one.started_at or 0.0) < counted.profiles_since
        if not is_old and one.place > last.get((one.kind, one.site), _NONE):
            last[one.kind, one.site] = one.place
            yield one


def _of_attempt(namespace: str, ended: Ended) -> list[Increment]:
    found = [Increment("attempts_total", (namespace, ended.site, str(ended.kind), ended.reason))]
    if ended.reason == FailureReason.OUT_OF_MEMORY:
        found.append(Increment("out_of_memory_total", (namespace, str(ended.kind))))
    return found


def _refused(counted: Mapping[str, _Place], observed: Observed) -> list[tuple[str, _Place, str]]:
    """Site, place and reason of each update that was refused since: at first sight, by the gate, or as the commit says."""
    found = [*_refused_at_first_sight(observed), *_refused_by_the_gate(observed)]
    found = [one for one in sorted(found) if one[1] > counted.get(one[0], _NONE)]
    known = {site: place for site, place, _ in found}
    # The gate's verdicts are read until the commit, which may come before the next reconcile: it does not say of which attempt.
    late = (
        (site, (round_, 0), verdict.reason)
        for round_, commit in observed.commits.items()
        for site, verdict in commit.refused.items()
        if round_ > max(counted.get(site, _NONE), known.get(site, _NONE))[0]
    )
    return found + sorted(late)


def _refused_at_first_sight(observed: Observed) -> Iterable[tuple[str, _Place, str]]:
    folder = f"{names.round_folder(observed.round)}/updates/"
    for key, refused in observed.refused.items():
        if key.startswith(folder):
            site, attempt = key.removeprefix(folder).split("/")[:2]
            yield site, (observed.round, int(attempt)), str(refused.reason)


def _refused_by_the_gate(observed: Observed) -> Iterable[tuple[str, _Place, str]]:
    for site, verdicts in observed.verdicts.items():
        for attempt, verdict in verdicts.items():
            if not verdict.accepted:
                yield site, (observed.round, attempt), verdict.reason


def _aggregated(method: str, commit: CommitSummary) -> Aggregated:
    """The commit's aggregation, in numbers that can be added to those of other runs."""
    seconds = min(MOST_SECONDS, max(0.0, commit.seconds)) if math.isfinite(commit.seconds) else 0.0
    return Aggregated(method, commit.round, seconds, min(MOST_BYTES, max(0, commit.bytes_read)))


def _replans(namespace: str, observed: Observed, counted: int) -> list[Increment]:
    """Plans of the newest round that were changed for something, by what for."""
    plan = observed.plan
    if plan is None or plan.round <= counted:
        return []
    causes = Counter(cause for one in plan.plans.values() if (cause := cause_of(one)) is not None)
    return [Increment("replans_total", (namespace, str(cause)), amount) for cause, amount in sorted(causes.items())]
