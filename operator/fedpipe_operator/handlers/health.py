"""Whether this process is alive, and whether it is ready, decided from what was measured. Pure: each problem is a sentence.

Liveness fails only where a new process would do better: an API server or a store that does not answer is no such reason. Readiness
says whether an upgrade may take the other replicas away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

HUNG_SECONDS: Final = 1800.0
"""A reconcile that takes longer hangs. All its calls of a store end within 600 s together (`store.connections.deadline`), whatever the
store does. Planning and aggregation are processes of their own. What is left are calls of the API server: 35 s for one that gets no
answer, which ends the reconcile; and some 4,000, of a third of a second, to start a round of 1,000 sites."""
SILENT_SECONDS: Final = 720.0
"""A watch ends after 300 s by the server's time limit, after 330 s by ours, and is requested again. Where that fails, kopf repeats it
after 21 s at most, and each request ends within 60 s: a watch that was not requested for twice as long hangs."""
STALE_SECONDS: Final = 15.0
"""A replica that has not read or renewed the Lease for so long does not know whether it stands by correctly."""


@dataclass(frozen=True)
class WatchAge:
    """One watch: of a kind of objects in a namespace, or in all."""

    name: str
    requested: float | None
    """Seconds since it, or the list before it, was last requested, whatever became of that; None: it never was."""
    is_established: bool
    """Whether the API server ever granted it, which is asked for after all objects were listed."""


@dataclass(frozen=True)
class Vitals:
    """What is known of this process at one moment."""

    queues_ended: bool = False
    elector_ended: bool = False
    in_progress: Mapping[str, float] = field(default_factory=dict)
    """Seconds that each reconcile under way has taken, by its key."""
    watches: Sequence[WatchAge] = ()
    is_watching: bool = False
    """Whether the watches were started: before, the process waits for the API server."""
    is_leader: bool = False
    lease_age: float | None = None
    """Seconds since the Lease was last read or renewed; None: it never was."""
    lease_problem: str = ""


def liveness_problems(vitals: Vitals) -> list[str]:
    """Why this process should be replaced by a new one; empty if it is alive."""
    problems = ["the work queues have ended"] if vitals.queues_ended else []
    if vitals.elector_ended:
        problems.append("the thread that renews the Lease has ended")
    problems += [
        f"the reconcile of {key} has taken {seconds:.0f} s: it hangs"
        for key, seconds in sorted(vitals.in_progress.items())
        if seconds > HUNG_SECONDS
    ]
    return problems + [
        f"the watch of {watch.name} was last requested {watch.requested:.0f} s ago, and had to be renewed after 330 s"
        for watch in vitals.watches
        if watch.requested is not None and watch.requested > SILENT_SECONDS
    ]


def readiness_problems(vitals: Vitals) -> list[str]:
    """Why this process is not ready; empty if it leads, or can take over at once."""
    problems = liveness_problems(vitals)
    if not vitals.is_watching:
        return [*problems, "the API server has not answered yet"]
    problems += [f"the watch of {watch.name} is not established yet" for watch in vitals.watches if not watch.is_established]
    if not vitals.is_leader and (vitals.lease_age is None or vitals.lease_age > STALE_SECONDS):
        known = "does not know who holds the Lease" if vitals.lease_age is None else f"last read the Lease {vitals.lease_age:.0f} s ago"
        problems.append(f"this replica does not lead, and {known}{f': {vitals.lease_problem}' if vitals.lease_problem else ''}")
    return problems
