"""The actions that `decide` may ask for. Each is safe to apply twice: names are fixed and creation is create-if-absent."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.rounds.records import ExpiredProfiles, RoundEvaluation, RoundPlan, UpdateRef, Verdict


@dataclass(frozen=True)
class StartProfile:
    """Measure a site."""

    site: str
    attempt: int


@dataclass(frozen=True)
class StartPlanning:
    """Plan a round of many sites outside of the reconcile: its plan is written to the store, where `CommitPlan` would write it."""

    round: int
    attempt: int
    profiles: dict[str, int]
    """By site with a profile: the attempt that made it."""
    failed: dict[str, str]
    """By site without a profile: the reason."""
    given_up: tuple[str, ...]
    """Of these sites, those whose profile had the whole time of its stage and missed the deadline."""
    now: float
    """Unix seconds: the plan's start."""


@dataclass(frozen=True)
class CommitPlan:
    """Write a round's plan: the round begins."""

    plan: RoundPlan


@dataclass(frozen=True)
class CommitExpiredProfiles:
    """Write which profiles missed the deadline before a round that cannot be planned: their jobs can end."""

    round: int
    profiles: ExpiredProfiles


@dataclass(frozen=True)
class StartTraining:
    """Train one round at a site, after an evaluation of the adapter that it starts from, if that is still needed."""

    site: str
    round: int
    attempt: int
    micro_batch: int | None = None
    """Samples per micro-batch, fewer than the plan's after an attempt that ran out of memory; None: the plan's."""
    evaluates: bool = False
    """Whether it first evaluates the last round's global adapter (in round 1 the base)."""


@dataclass(frozen=True)
class StartAggregation:
    """Aggregate these updates and commit the round."""

    round: int
    attempt: int
    updates: tuple[UpdateRef, ...]
    absent: dict[str, str]
    """By site without an update: the reason. Refused updates have a verdict instead."""
    refused: Mapping[str, Verdict] = field(default_factory=dict)
    """By site whose update was refused at first sight; the gate's verdicts come with the aggregation."""
    out_of_memory: Mapping[str, int] = field(default_factory=dict)
    """Of these sites, those of which an attempt ran out of memory, with the samples of the smallest pass that did."""
    late: tuple[str, ...] = ()
    """Of these sites, those that had begun to work on the round, and were not done at the deadline."""


@dataclass(frozen=True)
class StartEvaluation:
    """Evaluate the last round's global adapter at a site: no training follows that could do it."""

    site: str
    round: int
    attempt: int


@dataclass(frozen=True)
class CommitEvaluation:
    """Write the federated evaluation of a round's global adapter (round 0: of the base)."""

    evaluation: RoundEvaluation


@dataclass(frozen=True)
class StartDryExport:
    """Try the export on the untouched base."""

    attempt: int


@dataclass(frozen=True)
class StartExport:
    """Export this round's global adapter."""

    round: int
    attempt: int


@dataclass(frozen=True)
class AbortUploads:
    """End what is left of uploads in parts of these keys: no attempt goes on with them, and a store keeps their parts."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Discard:
    """End a job whose result is not wanted any more."""

    job: str


Action = (
    AbortUploads
    | StartProfile
    | StartPlanning
    | CommitPlan
    | CommitExpiredProfiles
    | StartTraining
    | StartAggregation
    | StartEvaluation
    | CommitEvaluation
    | StartDryExport
    | StartExport
    | Discard
)


@dataclass(frozen=True)
class Event:
    """Something that happened once and that a person may want to know."""

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
    """Unix seconds: when to reconcile even if no event comes; None when the run is over or suspended."""
