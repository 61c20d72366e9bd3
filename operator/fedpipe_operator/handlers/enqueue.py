"""Which event enqueues which key: `TABLE`. Pure: events and what is known in, keys out."""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Final, Literal, NamedTuple, Protocol

from fedpipe_operator.handlers.workqueue import BATCH_SECONDS

SETTLE_SECONDS: Final = 3.0
"""Where many objects change together, one reconcile serves all of the changes."""
RESYNC_AFTER_LIST_SECONDS: Final = 5.0


class Key(NamedTuple):
    """What is reconciled. The cache check is a key too; it has neither namespace nor name."""

    kind: Literal["run", "site", "cache"]
    namespace: str
    name: str


CACHE: Final = Key("cache", "", "")


class Event(Enum):
    """What happened; `changes` has filtered out what no key depends on."""

    RUN_CHANGED = auto()
    """A run was listed, created, or changed by somebody else than the operator."""
    RUN_DELETED = auto()
    RUN_STARTED = auto()
    """A run was reconciled for the first time."""
    RUN_FINISHED = auto()
    """A run became complete or failed."""
    AGGREGATION_ENDED = auto()
    """An aggregation in a process of the operator ended."""
    JOB_CHANGED = auto()
    """A Job ended, was suspended by a queue, or is deleted before its end."""
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


class Target(Enum):
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

    target: Target
    after: float = BATCH_SECONDS
    """Seconds."""
    reset_backoff: bool = False


TABLE: Final[Mapping[Event, tuple[Enqueue, ...]]] = {
    # A person may have corrected what failed: the back-off ends.
    Event.RUN_CHANGED: (Enqueue(Target.RUN, reset_backoff=True),),
    Event.RUN_DELETED: (Enqueue(Target.SITES_OF_NAMESPACE, SETTLE_SECONDS),),
    Event.RUN_STARTED: (Enqueue(Target.SITES_OF_RUN, SETTLE_SECONDS),),
    Event.RUN_FINISHED: (Enqueue(Target.SITES_OF_RUN, SETTLE_SECONDS),),
    Event.AGGREGATION_ENDED: (Enqueue(Target.RUN),),
    Event.JOB_CHANGED: (Enqueue(Target.RUN),),
    Event.JOB_SLOT_FREED: (Enqueue(Target.RUNS_WAITING_FOR_SITE),),
    Event.SITE_CHANGED: (Enqueue(Target.SITE), Enqueue(Target.RUNS_OF_NAMESPACE, SETTLE_SECONDS)),
    Event.SITE_DELETED: (Enqueue(Target.RUNS_OF_NAMESPACE, SETTLE_SECONDS),),
    Event.SITE_MEASURED: (Enqueue(Target.SITE),),
    Event.NODE_CHANGED: (Enqueue(Target.ALL_SITES, SETTLE_SECONDS),),
    Event.OBJECTS_LISTED: (Enqueue(Target.CACHE, RESYNC_AFTER_LIST_SECONDS),),
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
    target: Target, subject: Subject, known: Known, waiting: Iterable[Key]
) -> list[Key]:
    """The keys to enqueue.

    Args:
        target: of the table.
        subject: the object of the event.
        known: which objects there are.
        waiting: the runs that wait for a job slot of the subject's site.
    """
    namespace = subject.namespace
    match target:
        case Target.RUN:
            return [Key("run", namespace, subject.run)]
        case Target.SITE:
            return [Key("site", namespace, subject.site)]
        case Target.SITES_OF_RUN:
            return [Key("site", namespace, site) for site in subject.sites]
        case Target.RUNS_OF_NAMESPACE:
            return list(known.run_keys(namespace))
        case Target.SITES_OF_NAMESPACE:
            return list(known.site_keys(namespace))
        case Target.ALL_SITES:
            return list(known.site_keys(None))
        case Target.RUNS_WAITING_FOR_SITE:
            return list(waiting)
        case Target.CACHE:
            return [CACHE]
