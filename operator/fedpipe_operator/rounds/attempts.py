"""`rounds.attempts`: where one piece of work at one site stands, from its results and its jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from fedpipe_operator.api import seconds
from fedpipe_operator.backend import ACTIVE_STATES, JobState, JobStatus
from fedpipe_operator.rounds.observed import Observed, Run, job_of
from fedpipe_trainer.contract import ExitCode, Failure, FailureReason, Manifest, Outcome


@dataclass(frozen=True)
class Work:
    """A piece of work that is tried until it is done or counted out."""

    kind: str
    site: str = ""
    round: int = 0


@dataclass(frozen=True)
class Pending:
    """This attempt should be started."""

    attempt: int
    out_of_memory: int = 0
    """How many attempts before it were ended for the memory they took."""


@dataclass(frozen=True)
class Active:
    """This attempt is waiting or at work."""

    attempt: int
    job: str
    waits_for: str = ""
    """Why it is not at work yet, where that is known."""


@dataclass(frozen=True)
class Done:
    """This attempt brought a result."""

    attempt: int


@dataclass(frozen=True)
class Dropped:
    """There will be no result, and why."""

    why: str


WorkState = Pending | Active | Done | Dropped


@dataclass(frozen=True)
class _Failed:
    """An attempt that brought nothing."""

    why: str
    final: bool
    counts: bool
    """False where the attempt was interrupted through no fault of its own."""
    for_memory: bool = False
    """Whether the kernel ended it for the memory it took: less at once may fit."""


def work_state(work: Work, run: Run, observed: Observed, *, results: Mapping[int, Manifest], expired: bool) -> WorkState:
    """Where this work stands: the first attempt that is done, at work or not yet made decides.

    Interruptions (a drained node, Ctrl-C) do not use up `rounds.attempts`; a final failure ends the work at once.
    """
    spent = out_of_memory = 0
    for attempt in count():
        name = job_of(run, work.kind, site=work.site, round_=work.round, attempt=attempt).name
        outcome = _outcome(attempt, name, results.get(attempt), observed.jobs.get(name))
        if isinstance(outcome, Pending):
            outcome = Pending(attempt, out_of_memory)
        if not isinstance(outcome, _Failed):
            return _too_late(run, outcome) if expired and not isinstance(outcome, Done) else outcome
        spent += outcome.counts
        out_of_memory += outcome.for_memory
        if outcome.final or spent >= run.spec.rounds.attempts:
            return Dropped(outcome.why)
    raise AssertionError  # count() does not end


def _too_late(run: Run, outcome: Pending | Active) -> Dropped:
    waited = outcome.waits_for if isinstance(outcome, Active) else ""
    return Dropped(f"DeadlineExceeded: not done within {run.spec.rounds.deadline}" + (f"; it waited for {waited}" if waited else ""))


def _outcome(attempt: int, name: str, result: Manifest | None, job: JobStatus | None) -> Pending | Active | Done | _Failed:
    """A result says more than a job does, so it is asked first."""
    if result is not None and result.outcome is Outcome.COMPLETED:
        return Done(attempt)
    if result is not None and result.failure is not None and not _is_replaced(result.failure, job):
        failure = result.failure
        final = failure.reason.exit_code.is_final
        return _Failed(f"{failure.reason}: {failure.message}", final, failure.reason is not FailureReason.TERMINATED)
    if job is None:
        return Pending(attempt)
    if job.state in ACTIVE_STATES:
        return Active(attempt, name, job.message if job.state is JobState.PENDING else "")
    return _dead(job)


def _is_replaced(failure: Failure, job: JobStatus | None) -> bool:
    """Whether another pod takes the place of one that its node let go of, or that a queue called back: the same attempt goes on."""
    return failure.reason is FailureReason.TERMINATED and job is not None and job.state in ACTIVE_STATES


def _dead(job: JobStatus) -> _Failed:
    """A job that ended and left no result behind."""
    if job.state is JobState.SUCCEEDED:
        return _Failed("NoResult: the job ended well but its result is not in the store", final=False, counts=True)
    final = job.is_final or any(job.exit_code == code and code.is_final for code in ExitCode)
    for_memory = job.reason == FailureReason.OUT_OF_MEMORY
    return _Failed(f"{job.reason}: {job.message}", final, job.exit_code != ExitCode.TERMINATED, for_memory)


def stage_expired(run: Run, observed: Observed, kind: str, round_: int, now: float) -> bool:
    """Whether `rounds.deadline` has passed, counted from the stage's first job or from when the run was taken up again.

    Sites are profiled once, but new ones may come: before each plan they have their time, counted from the end of the last round.
    """
    starts = [one.started_at for one in observed.jobs.values() if one.job.kind == kind and one.job.round == round_]
    since = observed.last_round_ended_at if kind == "profile" else 0.0
    return bool(starts) and now >= max(observed.resumed_at, since, min(starts)) + seconds(run.spec.rounds.deadline)
