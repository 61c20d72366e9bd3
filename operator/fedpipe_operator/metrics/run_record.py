"""What the metrics of one run are made of at a scrape: a small value that each reconcile brings up to date. Pure.

It keeps what a reconcile does not observe for long: of a site's last training, whose result is read until its round is committed, a few
numbers; and refers to the plan, which the operator holds anyway.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.api import Condition, ConditionStatus, ConditionType, FineTuneStatus, Reason, measured_metrics
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.metrics.attempts import Ended
from fedpipe_operator.rounds import Observed, Run, deadlines
from fedpipe_operator.rounds.export_files import DRY_EXPORT_ROUND
from fedpipe_operator.rounds.observed import EvaluationSummary
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.sites import Efficiency, efficiency_of
from fedpipe_trainer.contract import Outcome

LINGER_SECONDS: Final = 300.0
"""For so long after a run's end the figures of its sites are shown, so that a scrape sees those of the last round."""
PHASES: Final = ("load", "train", "evaluate", "transfer")
"""Of a training. What else a site may call a phase is not shown: it would be a label's value that a site chooses."""
_STAGES: Final = {
    Reason.PROFILING: TaskKind.PROFILE,
    Reason.PLANNING: TaskKind.PLAN,
    Reason.TRAINING: TaskKind.TRAIN,
    Reason.AGGREGATING: TaskKind.AGGREGATE,
    Reason.EVALUATING: TaskKind.EVALUATE,
    Reason.TRYING_EXPORT: TaskKind.DRY_EXPORT,
    Reason.EXPORTING: TaskKind.EXPORT,
}


class Stage(NamedTuple):
    """The stage under way."""

    name: str
    started_at: float
    """Unix seconds."""
    deadline_seconds: float


class Training(NamedTuple):
    """What a site's last training measured; None: not measured, or no finite number."""

    round: int
    attempt: int
    peak_memory_bytes: int
    seconds: float
    by_phase: tuple[float | None, ...]
    """Seconds, in the order of `PHASES`."""
    loss: float | None
    efficiency: Efficiency


class Used(NamedTuple):
    """What a site's attempts at tasks of the run used, since the operator started."""

    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    joules: float | None = None
    """None: no training measured it."""


@dataclass(frozen=True)
class RunRecord:
    """The figures of one run that its object does not have."""

    namespace: str
    run: str
    plan: RoundPlan | None = None
    stage: Stage | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """Of the last evaluation, the loss among them."""
    truncated_energy: float | None = None
    trainings: Mapping[str, Training] = field(default_factory=dict)
    """By site."""
    used: Mapping[str, Used] = field(default_factory=dict)
    """By site."""
    failed_rounds: Mapping[str, int] = field(default_factory=dict)
    """By site of the plan that failed in the last round that it was selected for; others failed in none."""
    sites: tuple[str, ...] = ()
    """Of the plan, those first whose figures are wanted most: what failed, then what is planned to take longest."""
    last_round: int = 0
    ended_at: float | None = None
    """Unix seconds: when this process saw that the run is over."""


def next_record(before: RunRecord | None, run: Run, observed: Observed, *, status: FineTuneStatus, now_ended: float | None) -> RunRecord:
    """The record after a reconcile.

    Args:
        before: None if there is none.
        run: the run.
        observed: by the reconcile.
        status: that it wrote.
        now_ended: Unix seconds if the run is over, else None.
    """
    meta = run.resource.metadata
    known = before or RunRecord(meta.namespace, meta.name)
    last = observed.commits.get(observed.last_round)
    evaluation = observed.evaluations.get(max(observed.evaluations, default=-1))
    record = replace(
        known,
        plan=observed.plan,
        stage=stage_of(run, observed, status.conditions),
        figures={} if evaluation is None else _figures(run, evaluation),
        truncated_energy=known.truncated_energy if last is None else last.truncated_energy,
        trainings=_trainings(known.trainings, observed),
        last_round=observed.last_round,
        ended_at=known.ended_at or now_ended,
    )
    is_same = known.plan is observed.plan and known.last_round == observed.last_round and before is not None
    return record if is_same else _with_sites(record, observed)


def with_use(record: RunRecord, ended: Iterable[Ended]) -> RunRecord:
    """The record with what these attempts used, which must not be in it yet."""
    used = dict(record.used)
    for one in ended:
        if one.result is not None and one.site:
            used[one.site] = _added(used.get(one.site, Used()), one)
    return replace(record, used=used)


def without_sites(record: RunRecord) -> RunRecord:
    """The record of a run whose sites are not shown any more: it holds no plan."""
    return replace(record, plan=None, sites=(), failed_rounds={}, trainings={}, used={}, stage=None)


def stage_of(run: Run, observed: Observed, conditions: Iterable[Condition]) -> Stage | None:
    """The stage under way; None between two of them, before its first job, and while the run is suspended or over."""
    progressing = next((one for one in conditions if one.type == ConditionType.PROGRESSING and one.status is ConditionStatus.TRUE), None)
    kind = next((kind for reason, kind in _STAGES.items() if progressing is not None and progressing.reason == reason), None)
    if progressing is None or kind is None:
        return None
    rounds = {TaskKind.PROFILE: 0, TaskKind.DRY_EXPORT: DRY_EXPORT_ROUND, TaskKind.EXPORT: 0, TaskKind.EVALUATE: observed.last_round}
    found = deadlines.stage_of(run, observed, kind, rounds.get(kind, observed.round))
    return None if found is None else Stage(progressing.reason, found.began_at, found.deadline)


def failed_rounds(observed: Observed) -> dict[str, int]:
    """By site: rounds in a row, up to the last committed one, in which it was selected and gave no update; 0 is left out.

    Of earlier rounds, as many count as the status's history has.
    """
    failing: dict[str, int] = {}
    ended: set[str] = set()
    for round_ in sorted(observed.commits, reverse=True):
        plan, commit = observed.plans.get(round_), observed.commits[round_]
        gave = {one.site for one in commit.contributions}
        for site in plan.selected if plan else ():
            if site in gave:
                ended.add(site)
            elif site not in ended:
                failing[site] = failing.get(site, 0) + 1
        if round_ - 1 not in observed.commits:
            break
    return failing


def _with_sites(record: RunRecord, observed: Observed) -> RunRecord:
    plans = record.plan.plans if record.plan else {}
    failed = failed_rounds(observed)
    order = sorted(plans, key=lambda site: (-failed.get(site, 0), -plans[site].forecast.seconds, site))
    return replace(record, failed_rounds=failed, sites=tuple(order))


def _trainings(known: Mapping[str, Training], observed: Observed) -> Mapping[str, Training]:
    newest = {site: one for site, attempts in observed.updates.items() if (one := _completed(attempts)) is not None}
    new = {site: one for site, one in newest.items() if not _is_of(known.get(site), one)}
    return dict(known) | {site: _training(one) for site, one in new.items()} if new else known


def _completed(attempts: Mapping[int, AdmittedUpdate]) -> AdmittedUpdate | None:
    return next((attempts[one] for one in sorted(attempts, reverse=True) if attempts[one].outcome is Outcome.COMPLETED), None)


def _is_of(known: Training | None, update: AdmittedUpdate) -> bool:
    return known is not None and (known.round, known.attempt) == (update.round, update.attempt)


def _training(update: AdmittedUpdate) -> Training:
    """The training's figures. Its loss is the mean over its steps, which every policy of a site allows to be told."""
    seconds = update.measured.seconds
    return Training(
        round=update.round,
        attempt=update.attempt,
        peak_memory_bytes=update.measured.peak_memory_bytes,
        seconds=sum(seconds.values()),
        by_phase=tuple(seconds.get(phase) for phase in PHASES),
        loss=_number(update.train_loss),
        efficiency=efficiency_of(update),
    )


def _added(used: Used, ended: Ended) -> Used:
    assert ended.result is not None  # noqa: S101 -- the caller asked
    measured, joules = ended.result.measured, getattr(ended.result, "energy_joules", None)
    return Used(
        used.uploaded_bytes + measured.uploaded_bytes,
        used.downloaded_bytes + measured.downloaded_bytes,
        used.joules if joules is None else (used.joules or 0.0) + joules,
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _figures(run: Run, evaluation: EvaluationSummary) -> dict[str, float]:
    """Of the metrics that the run's task has: who has the key pair of its bucket can write others, whose names would be labels' values."""
    metrics: dict[str, float | None] = {name: evaluation.metrics.get(name) for name in measured_metrics(run.spec.task)}
    return _finite(metrics | {"loss": evaluation.loss})


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
