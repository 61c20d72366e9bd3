"""Whose turn it is: which waiting job is started where, and which idle process must make room. Pure.

At most `max_concurrent` sites are at work at once, in the order their jobs came, and no more than there are processors
for: two sites that share one take more than twice as long. A process outlives its task, as its
libraries and its base model cost seconds to load; but idle ones hold memory, so a few are kept and no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedpipe_operator.backend import Job, Limits, TaskKind
from fedpipe_operator.local.children import Child

IDLE_KEPT = 2
"""Idle processes kept beside those at work: three sites on one machine never wait for a start."""


@dataclass(frozen=True)
class Give:
    """Let the idle process at `place` do the job."""

    job: str
    place: str


@dataclass(frozen=True)
class Spawn:
    """Start a process at `place` for the job."""

    job: str
    place: str


@dataclass(frozen=True)
class MakeRoom:
    """End the idle process at `place`."""

    place: str


Turn = Give | Spawn | MakeRoom
Waiting = tuple[Job, Limits]


def place_of(job: Job) -> str:
    """Where a job is done: at its site; what is no site's has a place of its own (no site's name has a colon)."""
    return job.site or f"{job.kind}:{job.name}"


@dataclass(frozen=True)
class Room:
    """How much may be at work at once."""

    max_concurrent: int
    processors: int


def next_turn(waiting: Sequence[Waiting], children: Mapping[str, Child], room: Room) -> Turn | None:
    """The next thing to do, or None while all that wait must go on waiting."""
    for job, limits in waiting:
        turn = _turn(job, limits, children, room)
        if turn is not None:
            return turn
    return None


def _turn(job: Job, limits: Limits, children: Mapping[str, Child], room: Room) -> Turn | None:
    place = place_of(job)
    if job.site and not _may_work(limits, [child for child in children.values() if _works_for_a_site(child)], room):
        return None
    child = children.get(place)
    if child is None:
        return Spawn(job.name, place) if _has_room(job, children, room) else _room(children)
    if not child.is_idle:
        return None
    return Give(job.name, place) if child.limits == limits else MakeRoom(place)


def _may_work(limits: Limits, at_work: Sequence[Child], room: Room) -> bool:
    """Whether one more site may be at work; one that claims more processors than there are works alone."""
    taken = sum(_processors(child.limits) for child in at_work)
    return not at_work or (len(at_work) < room.max_concurrent and taken + _processors(limits) <= room.processors)


def _processors(limits: Limits) -> int:
    """What a site needs, as it claims; at least one."""
    return limits.cpus or 1


def _works_for_a_site(child: Child) -> bool:
    return ":" not in child.place and not child.is_idle


def _has_room(job: Job, children: Mapping[str, Child], room: Room) -> bool:
    """An export holds the whole model in 32 bits: it shares the machine with no idle process."""
    if job.kind is TaskKind.EXPORT:
        return not any(child.is_idle or child.kill_at is not None for child in children.values())
    return not job.site or len(children) < room.max_concurrent + IDLE_KEPT


def _room(children: Mapping[str, Child]) -> MakeRoom | None:
    """End the idle process that is oldest, one at a time; none while one is ending already."""
    if any(child.kill_at is not None for child in children.values()):
        return None
    return next((MakeRoom(place) for place, child in children.items() if child.is_idle), None)
