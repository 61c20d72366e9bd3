"""Which attempts of a run have ended, and how: read off the results that were admitted or refused, and off the jobs. Pure.

What is observed of an attempt stays observable until its round is over, so the same attempt is found by many reconciles: `counting` counts
it once.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from fedpipe_operator.backend import ACTIVE_STATES, Job, JobState, JobStatus, TaskKind
from fedpipe_operator.rounds import Decision, Discard, Observed, Run, deadlines
from fedpipe_operator.rounds.export_files import DRY_EXPORT_ROUND
from fedpipe_operator.rounds.kinds import KINDS
from fedpipe_trainer.contract import FailureReason, Outcome
from fedpipe_trainer.contract.result import DryExportResult, EvaluateResult, ExportResult, ProfileResult, TrainResult

COMPLETED: Final = "Completed"
_NO_RESULT: Final = "NoResult"
_DEADLINE: Final = "DeadlineExceeded"
_QUEUE_DEADLINE: Final = "QueueDeadlineExceeded"

TaskResult = ProfileResult | TrainResult | EvaluateResult | DryExportResult | ExportResult


class Ended(NamedTuple):
    """An attempt that has ended."""

    kind: TaskKind
    site: str
    """Empty for what concerns the whole run."""
    round: int
    attempt: int
    reason: str
    result: TaskResult | None = None
    started_at: float | None = None
    """Unix seconds of its job's start; None if its job is gone."""

    @property
    def place(self) -> tuple[int, int]:
        """Its place among the attempts of its site at its kind of task: a later one begins after its end."""
        return self.round, self.attempt


def ended_attempts(run: Run, observed: Observed, decision: Decision, now: float) -> list[Ended]:
    """The attempts at the run's current tasks that have ended, in the order of their rounds and attempts.

    A training that evaluates first is one attempt. An attempt that is ended because its result is no longer wanted (the run is suspended
    or over) is none; one that is ended at its stage's deadline is.
    """
    results = dict(_results(observed))
    jobs = {_identity_of(status.job): status for status in observed.jobs.values() if _is_current(status.job, run, observed)}
    found = [_of_result(key, result, jobs.get(key)) for key, result in results.items()]
    found += [_of_job(status, observed) for key, status in jobs.items() if key not in results]
    found += _at_the_deadline(run, observed, decision, now)
    started = {key: status.started_at for key, status in jobs.items()}
    ended = (one._replace(started_at=started.get(one[:4])) for one in found if one is not None)
    return sorted(ended, key=lambda one: one.place)


_Identity = tuple[TaskKind, str, int, int]


def _identity_of(job: Job) -> _Identity:
    return job.kind, job.site, job.round, job.attempt


def _results(observed: Observed) -> Iterator[tuple[_Identity, TaskResult]]:
    """What trainers sent. An evaluation counts where it was a job of its own, not a part of a training."""
    own = {_identity_of(one.job) for one in observed.jobs.values() if one.job.kind is TaskKind.EVALUATE}
    by_kind: tuple[tuple[TaskKind, int, Mapping[str, Mapping[int, TaskResult]]], ...] = (
        (TaskKind.PROFILE, 0, observed.profiles),
        (TaskKind.TRAIN, observed.round, observed.updates),
        (TaskKind.EVALUATE, observed.last_round, observed.site_evaluations),
        (TaskKind.DRY_EXPORT, DRY_EXPORT_ROUND, {"": observed.dry_exports}),
        (TaskKind.EXPORT, 0, {"": observed.exports}),
    )
    for kind, round_, sites in by_kind:
        for site, attempts in sites.items():
            for attempt, result in attempts.items():
                key = (kind, site, round_, attempt)
                if kind is not TaskKind.EVALUATE or key in own:
                    yield key, result


def _is_current(job: Job, run: Run, observed: Observed) -> bool:
    """Whether what is known of this job's result was read: an earlier round's results are not any more."""
    match job.kind:
        case TaskKind.PROFILE:
            return reads_profiles(run, observed)
        case TaskKind.TRAIN:
            return job.round == observed.round
        case TaskKind.EVALUATE:
            return job.round == observed.last_round and job.round not in observed.evaluations
        case TaskKind.DRY_EXPORT | TaskKind.EXPORT:
            return True
        case _:
            return job.round in {observed.round, observed.last_round}


def reads_profiles(run: Run, observed: Observed) -> bool:
    """Whether profiles were read: only the next plan needs them."""
    return observed.round not in observed.plans and observed.round <= run.spec.rounds.count


def _of_result(key: _Identity, result: TaskResult, job: JobStatus | None) -> Ended | None:
    if result.outcome is Outcome.COMPLETED:
        return Ended(*key, COMPLETED, result)
    reason = result.failure.reason if result.failure else FailureReason.UNEXPECTED
    # Another pod replaces one that its node evicted: the same attempt goes on.
    if reason is FailureReason.TERMINATED and job is not None and job.state in ACTIVE_STATES:
        return None
    return Ended(*key, str(reason), result)


def _of_job(status: JobStatus, observed: Observed) -> Ended | None:
    """The end of a job without an admitted result; None while it has not ended."""
    key = _identity_of(status.job)
    if _has_written(status.job, observed):
        return Ended(*key, COMPLETED)
    refused = observed.refused.get(KINDS[status.job.kind].result_key(status.job))
    if refused is not None:
        return Ended(*key, str(refused.reason))
    if status.state in ACTIVE_STATES:
        return None
    return Ended(*key, _NO_RESULT if status.state is JobState.SUCCEEDED else status.reason)


def _has_written(job: Job, observed: Observed) -> bool:
    """Whether what this job of the operator's own makes is in the store."""
    made: Mapping[TaskKind, Mapping[int, object]] = {TaskKind.PLAN: observed.plans, TaskKind.AGGREGATE: observed.commits}
    return job.round in made.get(job.kind, {})


def _at_the_deadline(run: Run, observed: Observed, decision: Decision, now: float) -> list[Ended]:
    """The attempts that this decision ends because the time of their stage is over."""
    discarded = [observed.jobs[one.job] for one in decision.actions if isinstance(one, Discard) and one.job in observed.jobs]
    return [
        Ended(*_identity_of(one.job), _DEADLINE if one.in_queue_since is None else _QUEUE_DEADLINE)
        for one in discarded
        if (stage := deadlines.stage_of(run, observed, one.job.kind, one.job.round)) is not None and stage.expired(one.job.site, now)
    ]
