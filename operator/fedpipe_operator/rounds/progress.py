"""How far a run is (`status.progress`): stage, percentage, and what is left by the seconds of the rounds so far. Pure.

A run is counted in rounds: the profiles before the first plan count as one, the evaluation of the last adapter and the export as a
quarter each. A round that is under way counts by the share of its steps that its sites have done. So the percentage does not depend on
forecasts, and grows as long as rounds advance. Seconds are those of a round times what is left: of a round as the median of those that
were committed or, before there is one, as the forecast of the round's slowest plan.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from statistics import fmean, median
from typing import Final

from fedpipe_operator.api import FineTuneSpec, FineTuneStatus, ProgressStatus, Reason, Stage, parse_duration
from fedpipe_operator.backend import JobStatus, TaskKind
from fedpipe_operator.rounds.attempts import Active, Done, Dropped, WorkState
from fedpipe_operator.rounds.conditions import rfc3339
from fedpipe_operator.rounds.observed import Observed
from fedpipe_operator.rounds.stages import End, Step
from fedpipe_operator.rounds.work_states import StageContext, done_of

WRITE_SECONDS: Final = 60.0
"""Where nothing else of the status changes, its progress is written no oftener."""
_PROFILES: Final = 1.0
_EVALUATION: Final = 0.25
_EXPORT: Final = 0.25
"""In rounds, as are the two above."""
_TRAINING_SHARE: Final = 0.9
"""Of a round; the rest is its aggregation."""
_MOST_OF_A_TASK: Final = 0.95
"""Of a task that has done all of its steps and has not reported its result."""
_MOST_BEFORE_THE_END: Final = 99
_MOST_SECONDS: Final = 10**9
_STAGES: Final[Mapping[Reason, Stage]] = {
    Reason.PROFILING: Stage.PROFILING,
    Reason.PLANNING: Stage.PLANNING,
    Reason.ROUND_PLANNED: Stage.PLANNING,
    Reason.TRYING_EXPORT: Stage.PLANNING,
    Reason.TRAINING: Stage.TRAINING,
    Reason.AGGREGATING: Stage.AGGREGATING,
    Reason.EVALUATING: Stage.EVALUATING,
    Reason.EXPORTING: Stage.EXPORTING,
    Reason.SUSPENDED_BY_SPEC: Stage.SUSPENDED,
}
"""By reason of a step; those of a run that waits for sites are not here."""
_STANDING: Final = (Stage.WAITING, Stage.SUSPENDED, Stage.FAILED)


def progress_of(context: StageContext, step: Step, updates: tuple[int, int]) -> ProgressStatus:
    """The progress after this step; `updates` are those that the round received and asked for."""
    stage = _stage(step)
    done, total = rounds_done(context, step), rounds_in_all(context)
    sites = (len(done_of(step.work)), len(step.work)) if step.work else updates
    return ProgressStatus(
        stage=stage,
        percentage=_percentage(context, stage, done, total),
        estimated_remaining_seconds=_remaining_seconds(context, stage, max(0.0, total - done)),
        sites_done=sites[0],
        sites_total=sites[1],
        last_updated_time=rfc3339(context.now),
    )


def settled(before: FineTuneStatus, after: FineTuneStatus, now: float) -> FineTuneStatus:
    """The status to write: the one before, where only its progress has changed, and less than a minute ago or by seconds alone."""
    known, found = before.progress, after.progress
    if known is None or found is None or after.model_copy(update={"progress": known}) != before:
        return after
    is_same = found.model_copy(update={"estimated_remaining_seconds": None, "last_updated_time": ""}) == known.model_copy(
        update={"estimated_remaining_seconds": None, "last_updated_time": ""}
    )
    return before if is_same or now - _unix(known.last_updated_time) < WRITE_SECONDS else after


def rounds_in_all(context: StageContext) -> float:
    """What the whole run counts, in rounds."""
    export = context.run.spec.export
    return _PROFILES + context.run.spec.rounds.count + _EVALUATION + (_EXPORT if export.adapter or export.merged else 0.0)


def rounds_done(context: StageContext, step: Step) -> float:
    """What is done of that after this step."""
    stage, observed, count = _stage(step), context.observed, context.run.spec.rounds.count
    share = fmean(_share_done(state, observed.jobs) for state in step.work.values()) if step.work else 0.0
    if stage is Stage.COMPLETE:
        return rounds_in_all(context)
    if stage in {Stage.EVALUATING, Stage.EXPORTING}:
        return _PROFILES + count + _EVALUATION * (share if stage is Stage.EVALUATING else 1.0)
    if not observed.plans:
        return _PROFILES * (share if stage is Stage.PROFILING else stage is Stage.PLANNING)
    under_way = {Stage.TRAINING: _TRAINING_SHARE * share, Stage.AGGREGATING: _TRAINING_SHARE}.get(stage, 0.0)
    return _PROFILES + min(count, observed.last_round + under_way)


def _stage(step: Step) -> Stage:
    if step.end is not None:
        return Stage.COMPLETE if step.end is End.COMPLETE else Stage.FAILED
    return _STAGES.get(step.reason, Stage.WAITING)


def _share_done(state: WorkState, jobs: Mapping[str, JobStatus]) -> float:
    """How much of its task a site has done, from 0 to 1; one that is dropped is not waited for."""
    if isinstance(state, Done | Dropped):
        return 1.0
    job = jobs.get(state.job) if isinstance(state, Active) else None
    if job is None or job.progress is None or job.progress.steps <= 0 or job.progress.phase != _phase_of(job.job.kind):
        return 0.0
    return _MOST_OF_A_TASK * min(1.0, max(0.0, job.progress.step / job.progress.steps))


def _phase_of(kind: TaskKind) -> str:
    """The phase that a task's steps count: a training evaluates before, and loads the base."""
    return kind.value


def _percentage(context: StageContext, stage: Stage, done: float, total: float) -> int:
    """It does not fall when a task has to be done again, nor when the run is suspended, but does when `rounds.count` is raised."""
    if stage is Stage.COMPLETE:
        return 100
    found = min(_MOST_BEFORE_THE_END, _percent(done, total))
    known = context.run.resource.status.progress
    before = min(_MOST_BEFORE_THE_END, known.percentage) if known else 0
    if stage in _STANDING:
        return max(found, before)
    at_most = min(_MOST_BEFORE_THE_END, _percent(math.floor(done + 1.0), total))
    return max(found, before) if before <= at_most else found


def _percent(done: float, total: float) -> int:
    return math.floor(100 * min(1.0, done / total) + 1e-9)


def _remaining_seconds(context: StageContext, stage: Stage, left: float) -> int | None:
    """None while nothing runs, and before there is a plan."""
    if stage is Stage.COMPLETE:
        return 0
    seconds = None if stage in _STANDING else seconds_of_a_round(context.run.spec, context.observed)
    return None if seconds is None else round(min(_MOST_SECONDS, seconds * left))


def seconds_of_a_round(spec: FineTuneSpec, observed: Observed) -> float | None:
    """As measured: the median of the committed rounds, so that a suspension counts little; else as the newest plan forecasts.

    A training ends with `rounds.deadline`, whatever a given plan says.
    """
    rounds = observed.commits.keys() & observed.plans.keys()
    measured = [max(0.0, observed.commits[one].finished_at - observed.plans[one].started_at) for one in rounds]
    if measured:
        return median(measured)
    if observed.plan is None:
        return None
    slowest = max((observed.plan.plans[site].forecast.seconds for site in observed.plan.selected), default=None)
    return None if slowest is None else min(slowest, parse_duration(spec.rounds.deadline))


def _unix(time: str) -> float:
    """0 for a text that is no time: somebody else wrote it."""
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
