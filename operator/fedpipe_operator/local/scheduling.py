"""Scheduling: which waiting job starts in which process, and which idle process is evicted. Pure.

At most `max_concurrent` sites run at the same time, in the order in which their jobs were started, and they claim no more
processors than there are: two sites that share one take more than twice as long. A process outlives its task, because loading
its libraries and its base model takes seconds. Idle processes hold memory, so only a few are kept.

A process slot is what at most one process occupies at a time: a site, or a job that belongs to no site.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedpipe_operator.backend import Job, JobResources, TaskKind
from fedpipe_operator.local.children import Child

EXTRA_PROCESSES = 2
"""Processes that may exist beyond `max_concurrent`, idle: with two, three sites on one machine never wait for a process to start."""


@dataclass(frozen=True)
class Assign:
    """Assign the job to the idle process in `slot`."""

    job: str
    slot: str


@dataclass(frozen=True)
class Spawn:
    """Start a process in `slot` for the job."""

    job: str
    slot: str


@dataclass(frozen=True)
class Evict:
    """End the idle process in `slot`."""

    slot: str


Decision = Assign | Spawn | Evict
WaitingJob = tuple[Job, JobResources]


def slot_of(job: Job) -> str:
    """The process slot of a job: its site, or a slot for this job alone (the name of a site has no colon)."""
    return job.site or f"{job.kind}:{job.name}"


@dataclass(frozen=True)
class MachineLimits:
    """How many sites, and how many claimed processors, may be active at the same time."""

    max_concurrent: int
    processors: int


def next_decision(waiting: Sequence[WaitingJob], children: Mapping[str, Child], machine: MachineLimits) -> Decision | None:
    """The next scheduling decision, or None if every waiting job must keep waiting. `children` are by slot, oldest first."""
    for job, resources in waiting:
        decision = _decide(job, resources, children, machine)
        if decision is not None:
            return decision
    return None


def _decide(job: Job, resources: JobResources, children: Mapping[str, Child], machine: MachineLimits) -> Decision | None:
    slot = slot_of(job)
    if job.site and not _fits(resources, [child for child in children.values() if _is_active_site(child)], machine):
        return None
    child = children.get(slot)
    if child is None:
        return Spawn(job.name, slot) if _may_spawn(job, children, machine) else _evict_oldest_idle(children)
    if not child.is_idle:
        return None
    return Assign(job.name, slot) if child.resources.limits == resources.limits else Evict(slot)


def _fits(resources: JobResources, active: Sequence[Child], machine: MachineLimits) -> bool:
    """Whether one more site may be active. A site that claims more processors than there are runs only when no other does."""
    claimed = sum(_processors(child.resources) for child in active)
    return not active or (len(active) < machine.max_concurrent and claimed + _processors(resources) <= machine.processors)


def _processors(resources: JobResources) -> int:
    """The processors that a site claims; at least one."""
    return resources.cpus or 1


def _is_active_site(child: Child) -> bool:
    return ":" not in child.slot and not child.is_idle


def _may_spawn(job: Job, children: Mapping[str, Child], machine: MachineLimits) -> bool:
    """An export comes last: idle processes, each with a base in memory, are not needed any more, so it starts when none is left."""
    if job.kind is TaskKind.EXPORT:
        return not any(child.is_idle or child.kill_at is not None for child in children.values())
    return not job.site or len(children) < machine.max_concurrent + EXTRA_PROCESSES


def _evict_oldest_idle(children: Mapping[str, Child]) -> Evict | None:
    """Evict one process at a time: None while another is still ending."""
    if any(child.kill_at is not None for child in children.values()):
        return None
    return next((Evict(slot) for slot, child in children.items() if child.is_idle), None)
