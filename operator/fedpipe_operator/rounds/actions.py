"""What `decide` may ask for. Every action is safe to take twice: names are fixed and creation is create-if-absent."""

from dataclasses import dataclass

from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.rounds.records import RoundEvaluation, RoundPlan, UpdateRef


@dataclass(frozen=True)
class StartProfile:
    """Measure a site."""

    site: str
    attempt: int


@dataclass(frozen=True)
class CommitPlan:
    """Write a round's plan: the round begins."""

    plan: RoundPlan


@dataclass(frozen=True)
class StartTraining:
    """Train one round at a site."""

    site: str
    round: int
    attempt: int
    micro_batch: int | None = None
    """Samples at once, less than the plan's batch after an attempt that took too much memory; None: the whole batch."""


@dataclass(frozen=True)
class StartAggregation:
    """Aggregate these updates and commit the round."""

    round: int
    attempt: int
    updates: tuple[UpdateRef, ...]
    absent: dict[str, str]
    """Why no update came, by site; of refused ones the gate's verdict tells."""


@dataclass(frozen=True)
class StartEvaluation:
    """Measure a round's global adapter (round 0: the base) at a site."""

    site: str
    round: int
    attempt: int


@dataclass(frozen=True)
class CommitEvaluation:
    """Write a round's federated evaluation: the round is over."""

    evaluation: RoundEvaluation


@dataclass(frozen=True)
class StartExport:
    """Export this round's global adapter."""

    round: int
    attempt: int


@dataclass(frozen=True)
class Discard:
    """End a job whose result is no longer wanted."""

    job: str


Action = StartProfile | CommitPlan | StartTraining | StartAggregation | StartEvaluation | CommitEvaluation | StartExport | Discard


@dataclass(frozen=True)
class Event:
    """Something a person may want to know happened, once."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Decision:
    """The next step of a run."""

    status: FineTuneStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_at: float | None = None
    """Unix seconds: when to look even if nothing is heard; None when the run is over or paused."""
