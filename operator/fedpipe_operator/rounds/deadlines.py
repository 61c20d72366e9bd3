"""`rounds.deadline` and `rounds.queueDeadline`: how long a stage waits for each of its sites. Pure.

A stage ends for a site `rounds.deadline` after the stage's first job, or after a queue or an autoscaler last let the site's own job run.
What the queue took is bounded apart, by `rounds.queueDeadline`. So a stage is over for every site at the latest both together after its
first job, however often a queue takes back what it gave. All of it follows from what is observed of the jobs: nothing is remembered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fedpipe_operator.api import parse_duration
from fedpipe_operator.backend import ACTIVE_STATES, JobStatus, TaskKind
from fedpipe_operator.rounds.observed import Observed, Run

FIRST_RENEWAL_SECONDS: Final = 450.0
"""A job that waits in a queue gets its task, and so its URLs, anew after this time: half of what they live longer than its stage."""
RENEWAL_SECONDS: Final = 900.0
"""And again so often. URLs that are made for a job in a queue live so much longer, so that the job may begin at any time in between; and
a key pair that expires is replaced so long before that, so that they are valid whenever it begins."""


class Span(NamedTuple):
    """From when to when a stage lasts for a site, Unix seconds."""

    began_at: float
    ends_at: float
    in_queue_since: float | None = None
    """Since when the site's job waits for a queue or an autoscaler, if it does."""


@dataclass(frozen=True)
class Stage:
    """The work of one kind in one round, since its first job."""

    began_at: float
    """Unix seconds."""
    deadline: float
    """Seconds that each site has."""
    queue_deadline: float
    """Seconds that a queue may take beside them."""
    jobs: Mapping[str, Sequence[JobStatus]]
    """By site; those of the whole run under ""."""

    def of_site(self, site: str) -> Span:
        """The stage as it is for this site: it ends later if a queue held one of the site's jobs."""
        jobs, last = self.jobs.get(site, ()), self.began_at + self.queue_deadline + self.deadline
        held = [one.in_queue_since for one in jobs if one.state in ACTIVE_STATES and one.in_queue_since is not None]
        if held:
            since = max(self.began_at, *held)
            return Span(self.began_at, min(since + self.queue_deadline, last), since)
        begins_at = max([self.began_at, *(one.admitted_at for one in jobs if one.admitted_at is not None)])
        return Span(begins_at, min(begins_at + self.deadline, last))

    def expired(self, site: str, now: float) -> Span | None:
        """The same, if its end has passed."""
        span = self.of_site(site)
        return span if now >= span.ends_at else None


def stage_of(run: Run, observed: Observed, kind: TaskKind, round_: int) -> Stage | None:
    """The stage; None before its first job.

    It begins with that, or when the run was last resumed. Sites that join, or have changed, are profiled before the next plan: they have a
    whole deadline, counted from the end of the last round.
    """
    jobs: dict[str, list[JobStatus]] = {}
    for one in observed.jobs.values():
        if one.job.kind == kind and one.job.round == round_:
            jobs.setdefault(one.job.site, []).append(one)
    if not jobs:
        return None
    since = observed.last_round_ended_at if kind is TaskKind.PROFILE else 0.0
    first = min(one.started_at for of_site in jobs.values() for one in of_site)
    rounds = run.spec.rounds
    return Stage(max(observed.resumed_at, since, first), parse_duration(rounds.deadline), parse_duration(rounds.queue_deadline), jobs)


def next_end(run: Run, observed: Observed) -> float | None:
    """When the first stage of an active job ends for its site, Unix seconds; None if no job is active."""
    active = [one.job for one in observed.jobs.values() if one.state in ACTIVE_STATES]
    stages = {of: stage_of(run, observed, *of) for of in {(job.kind, job.round) for job in active}}
    ends = (stage.of_site(job.site).ends_at for job in active if (stage := stages[job.kind, job.round]) is not None)
    return min(ends, default=None)


def needs_new_urls(status: JobStatus, now: float) -> bool:
    """Whether the URLs of this job's task would expire while it waits in a queue, or too soon after it."""
    if status.in_queue_since is None or status.state not in ACTIVE_STATES:
        return False
    if status.renewed_at is None:
        return now >= status.started_at + FIRST_RENEWAL_SECONDS
    return now >= status.renewed_at + RENEWAL_SECONDS
