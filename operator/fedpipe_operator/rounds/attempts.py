"""`rounds.attempts`: the state of one task at one site, from its results and its jobs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from fedpipe_operator.admission import RefusalReason, Refused
from fedpipe_operator.backend import ACTIVE_STATES, JobState, JobStatus, TaskKind
from fedpipe_operator.formatting import seconds_text
from fedpipe_operator.rounds.deadlines import Span
from fedpipe_operator.rounds.kinds import KINDS
from fedpipe_operator.rounds.observed import Observed, Run, job_of
from fedpipe_trainer.contract import ExitCode, Failure, FailureReason, Outcome, Result

DEADLINE_EXCEEDED: Final = "DeadlineExceeded: "
"""What the reason of work that was not done within `rounds.deadline` begins with."""
_NEARLY_ALL: Final = 0.9
"""The share of a stage's time from which on an attempt had its whole time: the jobs of many sites do not start in the same second."""
_RAISE_DEADLINE: Final = "raise rounds.deadline"
_NOT_ADMITTED: Final = "QueueDeadlineExceeded: "
_RAISE_QUEUE_DEADLINE: Final = "raise rounds.queueDeadline, or the quota of the queue or the pool"
_MORE_MEMORY: Final = "give the site more memory in spec.capacity.memory, or the run a smaller base model or a lower task.maxLength"


@dataclass(frozen=True)
class Work:
    """A task that is attempted until it is done or dropped."""

    kind: TaskKind
    site: str = ""
    round: int = 0


@dataclass(frozen=True)
class Pending:
    """This attempt should be started."""

    attempt: int
    out_of_memory: int = 0
    """How many earlier attempts ran out of memory."""


@dataclass(frozen=True)
class Active:
    """This attempt is waiting or running."""

    attempt: int
    job: str
    waits_for: str = ""
    """Why it does not run yet, if that is known."""
    phase: str = ""
    """What it was doing when it last reported, if it did: `load`, `train`, …"""
    is_running: bool = False
    """Whether its pod has started."""
    since: float = 0.0
    """Unix seconds: when its job was started or, where that is known, began to run."""
    out_of_memory: int = 0
    """How many earlier attempts ran out of memory."""


@dataclass(frozen=True)
class Done:
    """This attempt has a result."""

    attempt: int


@dataclass(frozen=True)
class Dropped:
    """There will be no result."""

    why: str
    out_of_memory: int = 0
    """How many attempts ran out of memory, even if the last one ended for another reason."""
    is_expired: bool = False
    """Whether the stage ended before it was done."""
    is_late: bool = False
    """Whether it was at work at the deadline, and waited for nothing."""
    was_tried: bool = False
    """Whether it had nearly all of the stage, at work or waiting for a node or a queue: it would end the same with as much time again."""
    job: str = ""
    """The job whose time is over, if there is one."""
    is_held: bool = False
    """Whether that waits for a queue or an autoscaler."""


WorkState = Pending | Active | Done | Dropped


@dataclass(frozen=True)
class _Failed:
    """An attempt without a result."""

    why: str
    final: bool
    counts: bool
    """False if the attempt was interrupted from outside."""
    out_of_memory: bool = False
    """Whether it ran out of memory. Where the kernel killed it at its limit, a smaller micro-batch may fit."""


def work_state(  # noqa: PLR0913 -- what the state depends on
    work: Work, run: Run, observed: Observed, *, results: Mapping[int, Result], expired: Span | None, outdated: Collection[int] = ()
) -> WorkState:
    """The state of this task: that of the first attempt that is done, active or not yet started; `outdated` ones do not count.

    `expired` is its stage, if that has ended: what is not done then is dropped.
    Interruptions (a drained node, Ctrl-C) do not count towards `rounds.attempts`; a final failure ends the task at once.
    """
    spent = out_of_memory = 0
    for attempt in (one for one in count() if one not in outdated):
        job_of_attempt = job_of(run, work.kind, site=work.site, round_=work.round, attempt=attempt)
        name = job_of_attempt.name
        refused = observed.refused.get(KINDS[work.kind].result_key(job_of_attempt))
        outcome = _outcome(attempt, name, results.get(attempt), observed.jobs.get(name), refused)
        if isinstance(outcome, Pending | Active):
            outcome = replace(outcome, out_of_memory=out_of_memory)
        if not isinstance(outcome, _Failed):
            return outcome if isinstance(outcome, Done) or expired is None else _expired(run, outcome, out_of_memory, expired)
        spent += outcome.counts
        out_of_memory += outcome.out_of_memory
        if outcome.final or spent >= run.spec.rounds.attempts:
            return Dropped(outcome.why, out_of_memory)
    raise AssertionError  # count() does not end


def _expired(run: Run, outcome: Pending | Active, out_of_memory: int, stage: Span) -> Dropped:
    """What was not done at the end of its stage. It may have begun in the middle of it: a site that joined, a slot that became free."""
    if stage.in_queue_since is not None:
        return _not_admitted(run, outcome, out_of_memory)
    deadline = run.spec.rounds.deadline
    if isinstance(outcome, Pending):
        return Dropped(
            f"{DEADLINE_EXCEEDED}not started by the end of the stage's {deadline}; {_RAISE_DEADLINE}", out_of_memory, is_expired=True
        )
    found = ""
    if outcome.waits_for or outcome.phase:
        found = f"; it waited for {outcome.waits_for}" if outcome.waits_for else f"; it was in its phase {outcome.phase}"
    seconds = stage.ends_at - max(stage.began_at, outcome.since)
    had_all = seconds >= _NEARLY_ALL * (stage.ends_at - stage.began_at)
    time = f"within {deadline}" if had_all else f"in the {seconds_text(max(0.0, seconds))} that were left of the stage's {deadline}"
    why = f"{DEADLINE_EXCEEDED}not done {time}{found}; {_RAISE_DEADLINE}"
    return Dropped(
        why,
        out_of_memory,
        is_expired=True,
        is_late=outcome.is_running,
        was_tried=had_all and (outcome.is_running or bool(outcome.waits_for)),
        job=outcome.job,
    )


def _not_admitted(run: Run, outcome: Pending | Active, out_of_memory: int) -> Dropped:
    """What a queue or an autoscaler did not let begin. Its site is not late: it had no time of its own."""
    found = f"; it waited for {outcome.waits_for}" if isinstance(outcome, Active) and outcome.waits_for else ""
    why = f"{_NOT_ADMITTED}not begun within {run.spec.rounds.queue_deadline}{found}; {_RAISE_QUEUE_DEADLINE}"
    job = outcome.job if isinstance(outcome, Active) else ""
    return Dropped(why, out_of_memory, is_expired=True, was_tried=True, job=job, is_held=bool(job))


def _outcome(
    attempt: int, name: str, result: Result | None, job: JobStatus | None, refused: Refused | None
) -> Pending | Active | Done | _Failed:
    """A result says more than its job, so it comes first. One that is refused costs its site the task: the next would be the same."""
    if refused is not None:
        return _Failed(str(refused), final=refused.reason is not RefusalReason.UNREADABLE, counts=True)
    if result is not None and result.outcome is Outcome.COMPLETED:
        return Done(attempt)
    if result is not None and result.failure is not None and not _is_replaced(result.failure, job):
        failure = result.failure
        final = failure.reason.exit_code.is_final
        return _Failed(
            f"{failure.reason}: {failure.message}",
            final,
            failure.reason is not FailureReason.TERMINATED,
            failure.reason is FailureReason.OUT_OF_MEMORY,
        )
    if job is None:
        return Pending(attempt)
    if job.state in ACTIVE_STATES:
        waits_for = job.message if job.state is JobState.PENDING else ""
        phase = job.progress.phase if job.progress else ""
        since = job.started_at if job.running_since is None else job.running_since
        return Active(attempt, name, waits_for, phase, is_running=job.state is JobState.RUNNING, since=since)
    return _without_result(job)


def _is_replaced(failure: Failure, job: JobStatus | None) -> bool:
    """Whether another pod replaces one that its node evicted, or that a queue preempted: the same attempt goes on."""
    return failure.reason is FailureReason.TERMINATED and job is not None and job.state in ACTIVE_STATES


def _without_result(job: JobStatus) -> _Failed:
    """A job that ended without a result in the store."""
    if job.state is JobState.SUCCEEDED:
        return _Failed("NoResult: the job succeeded but its result is not in the store", final=False, counts=True)
    final = job.is_final or any(job.exit_code == code and code.is_final for code in ExitCode)
    out_of_memory = job.reason == FailureReason.OUT_OF_MEMORY
    why = f"{job.reason}: {job.message}"
    if why.startswith(DEADLINE_EXCEEDED):
        why = f"{why}; {_RAISE_DEADLINE}"
    if out_of_memory and job.job.site:
        why = f"{why}; {_MORE_MEMORY}"
    return _Failed(why, final, job.exit_code != ExitCode.TERMINATED, out_of_memory)
