"""Which event enqueues which key: `TABLE`. Pure: triggers and what is known in, keys out.

`watches` and `nodes` receive the events of watched objects, the reconcilers and the worker processes report the others.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Final, Literal, NamedTuple, Protocol

from fedpipe_operator.handlers.workqueue import BATCH_SECONDS

SETTLE_SECONDS: Final = 3.0
"""Where many objects change together, or a change is followed by another, one reconcile serves all of the changes."""
RESYNC_AFTER_LIST_SECONDS: Final = 5.0


class Key(NamedTuple):
    """What is reconciled. The cache check is a key too; it has neither namespace nor name."""

    kind: Literal["run", "site", "cache"]
    namespace: str
    name: str


CACHE: Final = Key("cache", "", "")


class Trigger(Enum):
    """What happened; `changes` has filtered out what no key depends on."""

    RUN_CHANGED = auto()
    """A run was listed, created, or changed by somebody else than the operator."""
    RUN_DELETED = auto()
    RUN_STARTED = auto()
    """A run was reconciled for the first time."""
    RUN_FINISHED = auto()
    """A run became complete or failed."""
    WORKER_ENDED = auto()
    """A process of the operator that planned or aggregated ended."""
    JOB_CHANGED = auto()
    """A Job ended, was suspended by a queue, or is deleted before its end."""
    JOB_UNREADY = auto()
    """A Job's pod is no longer ready, and neither has ended: its task may have, beside a container that goes on."""
    JOB_SLOT_FREED = auto()
    """A Job no longer occupies one of its site's job slots."""
    SITE_CHANGED = auto()
    """A site was listed or created, or its spec or labels changed."""
    SITE_DELETED = auto()
    SITE_MEASURED = auto()
    """A profile measured other figures than the last one."""
    NODE_CHANGED = auto()
    """A node appeared, changed or went; heartbeats do not count."""
    OBJECTS_LISTED = auto()
    """A watch began with a list: the first one, or after an interruption in which deletions may have been missed."""


class Scope(Enum):
    """Which keys, seen from the object of the event."""

    RUN = auto()
    SITE = auto()
    SITES_OF_RUN = auto()
    RUNS_OF_NAMESPACE = auto()
    SITES_OF_NAMESPACE = auto()
    ALL_SITES = auto()
    RUNS_WAITING_FOR_SITE = auto()
    CACHE = auto()


class Enqueue(NamedTuple):
    """One entry of the table."""

    scope: Scope
    after: float = BATCH_SECONDS
    """Seconds."""
    reset_backoff: bool = False


TABLE: Final[Mapping[Trigger, tuple[Enqueue, ...]]] = {
    # A person may have corrected what failed: the back-off ends.
    Trigger.RUN_CHANGED: (Enqueue(Scope.RUN, reset_backoff=True),),
    Trigger.RUN_DELETED: (Enqueue(Scope.SITES_OF_NAMESPACE, SETTLE_SECONDS),),
    Trigger.RUN_STARTED: (Enqueue(Scope.SITES_OF_RUN, SETTLE_SECONDS),),
    Trigger.RUN_FINISHED: (Enqueue(Scope.SITES_OF_RUN, SETTLE_SECONDS),),
    Trigger.WORKER_ENDED: (Enqueue(Scope.RUN),),
    Trigger.JOB_CHANGED: (Enqueue(Scope.RUN),),
    # Most such pods end in a moment: then the Job's end comes first.
    Trigger.JOB_UNREADY: (Enqueue(Scope.RUN, SETTLE_SECONDS),),
    Trigger.JOB_SLOT_FREED: (Enqueue(Scope.RUNS_WAITING_FOR_SITE),),
    Trigger.SITE_CHANGED: (Enqueue(Scope.SITE), Enqueue(Scope.RUNS_OF_NAMESPACE, SETTLE_SECONDS)),
    Trigger.SITE_DELETED: (Enqueue(Scope.RUNS_OF_NAMESPACE, SETTLE_SECONDS),),
    Trigger.SITE_MEASURED: (Enqueue(Scope.SITE),),
    Trigger.NODE_CHANGED: (Enqueue(Scope.ALL_SITES, SETTLE_SECONDS),),
    Trigger.OBJECTS_LISTED: (Enqueue(Scope.CACHE, RESYNC_AFTER_LIST_SECONDS),),
}


class Subject(NamedTuple):
    """The object of an event: as much of it as finding the keys takes."""

    namespace: str = ""
    run: str = ""
    site: str = ""
    sites: tuple[str, ...] = ()
    """Those of the run."""


class Known(Protocol):
    """Which objects there are."""

    def run_keys(self, namespace: str) -> Iterable[Key]:
        """The runs of a namespace."""
        ...

    def site_keys(self, namespace: str | None) -> Iterable[Key]:
        """The sites of a namespace; None: of all."""
        ...


def keys(  # noqa: PLR0911 -- one return per target
    scope: Scope, subject: Subject, known: Known, waiting: Iterable[Key]
) -> list[Key]:
    """The keys to enqueue.

    Args:
        scope: of the table.
        subject: the object of the event.
        known: which objects there are.
        waiting: the runs that wait for a job slot of the subject's site.
    """
    namespace = subject.namespace
    match scope:
        case Scope.RUN:
            return [Key("run", namespace, subject.run)]
        case Scope.SITE:
            return [Key("site", namespace, subject.site)]
        case Scope.SITES_OF_RUN:
            return [Key("site", namespace, site) for site in subject.sites]
        case Scope.RUNS_OF_NAMESPACE:
            return list(known.run_keys(namespace))
        case Scope.SITES_OF_NAMESPACE:
            return list(known.site_keys(namespace))
        case Scope.ALL_SITES:
            return list(known.site_keys(None))
        case Scope.RUNS_WAITING_FOR_SITE:
            return list(waiting)
        case Scope.CACHE:
            return [CACHE]
