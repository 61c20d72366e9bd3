"""The records that the operator writes into the store: a round's plan, verdicts on updates, the commit, the evaluation.

All are small JSON objects, written once and never changed; together they are the run's state.
"""

import math
from typing import Annotated, Final, NamedTuple

from pydantic import Field

from fedpipe_operator.admission import Refused
from fedpipe_operator.api import AggregationRule, Reason
from fedpipe_operator.api.aggregation import FEDAVG, ServerOptimizer
from fedpipe_operator.planning import Hyperparameter
from fedpipe_operator.sites import Correction, KeptActivations, Measurement, Resources
from fedpipe_trainer.contract import Artifact, Codec, Hyperparameters, Plan, Wire

STATUS_SITES: Final = 100
"""Sites, in order of name, that the status of a run shows; the store has all."""
LARGEST_PROGRESS: Final = 1e6
LARGEST_LOSS: Final = 1e6
_Progress = Annotated[float, Field(ge=-LARGEST_PROGRESS, le=LARGEST_PROGRESS, allow_inf_nan=False)]


class RoundPlan(Wire):
    """The start of a round: the selected sites, the plan of each, and what an update must look like."""

    round: Annotated[int, Field(ge=1)]
    started_at: float
    """Unix seconds. Each stage's deadline counts from the stage's first job, not from here."""
    fingerprint: str
    """Of the base model that every update must be made on."""
    model_commit: str | None = None
    """Of that model in its hub, as its branch or tag may move during the run; None for a model that does not come from a hub."""
    revision: str = ""
    """Of what the run learns, see `revision.learning_revision_of`: an object that continues the run must have the same. Empty: an earlier
    version of the operator planned the round."""
    labels: tuple[str, ...] = ()
    label_notes: tuple[str, ...] = ()
    """What is odd about the labels that the sites have, in words: those of one site alone, and the like."""
    weights: dict[str, tuple[int, int]]
    """(d_out, d_in) of every weight that may get an adapter."""
    head: dict[str, tuple[int, ...]] = {}
    """Shape of every tensor that is trained and averaged as a whole, by its key in the adapter file."""
    plans: dict[str, Plan]
    """By site, for the sites that can take part."""
    samples: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Training samples that each of these sites has, from its profile: the basis of its weight in the aggregation.

    Empty if an earlier version of the operator planned the round; the samples trained on count then.
    """
    validation_samples: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Validation samples likewise: of the rows that an evaluation drops, so many count. Empty likewise."""
    selected: tuple[str, ...]
    """The round's sites, out of `plans`."""
    evaluators: tuple[str, ...]
    """The sites that evaluate: the previous round's global adapter (in round 1 the base) before they train, and after the run's last
    round its own. Another round's adapter is evaluated by the sites of the round that follows it."""
    needed: Annotated[int, Field(ge=1)]
    """Updates that the round needs: the quorum, as many as `aggregation.rule` does, and as the policy of at least one site asks for."""
    min_sites: dict[str, Annotated[int, Field(ge=1)]] = {}
    """By selected site: how many updates, at least, an aggregate with its own must be made of, by its policy."""
    rule: AggregationRule | None = None
    """What the round is aggregated by, so that an edit of the spec breaks no promise that its trainings were given: of so many updates, and
    mixed with so many sites. None: an earlier version of the operator planned the round; the spec's counts then."""
    malicious_sites: Annotated[int, Field(ge=1)] = 1
    """How many the rule is to withstand."""
    excluded: dict[str, str] = {}
    """Sites that cannot take part, with the reason."""
    importance: dict[str, float] = {}
    """Importance of each weight, combined over the sites, of mean 1."""
    importance_note: str = ""
    """Where the importance comes from and how far it is trusted."""
    rank_lines: dict[str, tuple[str, ...]] = {}
    """By site, of those that the status shows: which weights have which rank, in words. For large models they take long to make."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """The run's. None: an earlier version of the operator planned the round; the spec's counts then."""
    learning_rate_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of it that the round's trainings use, by the run's schedule."""
    training: Hyperparameters | None = None
    """What all trainings of the round use beside their plans, so that an edit of the spec changes no round that has begun, and its updates
    are normalised by what they were made with. None: an earlier version of the operator planned the round; the spec's count then."""
    hyperparameters: tuple[Hyperparameter, ...] = ()
    """What the spec says, or what was chosen because it leaves it out, each with the reason."""
    corrections: dict[str, Correction] = {}
    """By site: how earlier rounds corrected the forecasts; sites without one are left out."""
    kept: dict[str, KeptActivations] = {}
    """By site: the activations that its cache held from earlier rounds."""
    profiles: dict[str, Annotated[int, Field(ge=0)]] = {}
    """By site with a profile: the attempt that made it. Empty: an earlier version of the operator planned the round."""
    profile_hashes: dict[str, str] = {}
    """By site: of that profile (`admission.hash_of`), so that a later one of the same attempt is told from it. Empty likewise."""
    given_up: dict[str, str] = {}
    """By site whose profile missed its deadline though it had its whole time: what it was tried with (`round_plan.trial_of`). With the
    same, it is not tried again."""
    codec: Codec | None = None
    """How the round's updates and its global adapter travel, so that an edit of the spec changes no round that has begun.
    None: as they are."""
    resources: dict[str, Resources] = {}
    """By site with a profile: what its plan is made for. Empty: an earlier version of the operator planned the round."""
    is_stalled: bool = False
    """Whether the run had stalled, then or earlier: every site trains as many layers as it can."""


class OutOfReach(Wire):
    """In place of a plan: too few sites can take part, or they have too few labels in common; the message says why, and what to do."""

    reason: Reason = Reason.QUORUM_OUT_OF_REACH
    message: str


class ExpiredProfile(Wire):
    """A profile that missed its deadline."""

    why: str
    trial: str
    """What it was tried with (`round_plan.trial_of`)."""
    was_tried: bool
    """Whether it had its whole time."""


class ExpiredProfiles(Wire):
    """Those of a round that cannot be planned, written before the last round is evaluated.

    Their jobs, which occupy slots of the sites that evaluate, end then, and nothing else says that they were tried.
    """

    at: float
    """Unix seconds. A run that was resumed since tries them again."""
    sites: dict[str, ExpiredProfile]


class UpdateRef(Wire):
    """Which update of a site an aggregation reads."""

    site: str
    attempt: int
    sha256: str = ""
    """Of its result as the operator saw it first (`admission.hash_of`): a later one is refused. Empty: an earlier version began this."""


class Verdict(Wire):
    """The gate's verdict on one update: accepted, or refused for a named reason."""

    accepted: bool
    reason: str = ""
    """One CamelCase word if refused: HashMismatch, UnknownKey, MissingKey, WrongShape, NotFinite, WrongBase, …"""
    message: str = ""


def verdict_of(refused: Refused) -> Verdict:
    """What a round's records say of a refusal."""
    return Verdict(accepted=False, reason=refused.reason, message=refused.message)


class Contribution(Wire):
    """One update that was aggregated."""

    site: str
    attempt: int
    sha256: str
    samples: int
    """Training samples that the site has."""
    trained_samples: int = 0
    """Samples trained on in the round: several passes count several times."""
    steps: int = 0
    """Optimiser steps, which `aggregation.normalization` divides by."""
    share: float
    """Its weight p_k in the average over the round's updates: by samples, normalised by steps, at most `aggregation.maxSiteWeight`.

    0: the aggregation's rule left it out.
    """
    clipped: Annotated[int, Field(ge=0)] = 0
    """Weights and head tensors whose increment was longer than `aggregation.clipMultiple` allows, and was shortened."""
    smallest_clip: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """The smallest factor by which one was shortened; 1: none."""
    dropped_rows: Annotated[int, Field(ge=0)] = 0
    """Training rows that the site left out because the run does not have their label."""
    norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Frobenius norm of its increment, over all weights with an adapter: how far the site moved."""
    measured: Measurement | None = None
    """What the round needed at the site, for the next plan."""
    alignment: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    """Cosine between its increment and the round's, over the weights that it trained; None where one of them is zero."""
    progress: _Progress | None = None
    """Its part of the round's progress along the aggregate: see `aggregation.progress`. The parts add up to 1; below 0: against it."""
    progress_without: _Progress | None = None
    """Not read: what earlier versions wrote of the round's progress if the others had taken the site's place."""


class OptimizerState(Wire):
    """What a round's commit has for the server's optimizer of the next, beside the global adapters (`aggregation.server_optimizers`)."""

    optimizer: ServerOptimizer = FEDAVG
    """Of this round: it may be another one in the next."""
    second_moments: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """The mean of squares by weight and by head tensor; of an adaptive optimizer only."""


NO_STATE: Final = OptimizerState()
"""After a round whose global adapter moved by the aggregated increment."""


class RoundCommit(Wire):
    """The commit of a round, written after the global adapter. A round is aggregated if and only if this exists."""

    round: int
    method: str
    rule: str = "Mean"
    adapter: Artifact
    download: Artifact | None = None
    """The same as the sites read it, by `codec.downlink` of the round's plan. None: they read `adapter`."""
    ranks: dict[str, int]
    """Rank of the global adapter by weight."""
    head: dict[str, tuple[int, ...]] = {}
    contributions: tuple[Contribution, ...]
    refused: dict[str, Verdict] = {}
    """By site."""
    absent: dict[str, str] = {}
    """By site without an update: the reason."""
    out_of_memory: tuple[str, ...] = ()
    """The sites without an update of which an attempt ran out of memory, even if the last one ended for another reason."""
    too_large: dict[str, Annotated[int, Field(ge=1)]] = {}
    """By site of these: samples of the smallest pass that ran out of memory. Empty if an earlier version of the operator wrote this."""
    late: tuple[str, ...] = ()
    """The sites without an update that had begun to work on the round, and were not done at the deadline."""
    truncated_energy: dict[str, float] = {}
    """By weight: the share of the update's squared singular values that the truncation to the global rank lost."""
    learned: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """By weight: Frobenius norm of the round's increment, how much the federation learned there."""
    learned_by: dict[str, Annotated[dict[str, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]], Field(max_length=3)]] = {}
    """By weight: the sites, at most three, that moved it most along its increment, with their shares of the whole movement.

    Empty for a weight that no site changed, and in the commits of earlier versions.
    """
    optimizer: OptimizerState | None = None
    """None: the global adapter moved by the aggregated increment as it is."""
    seconds: float = 0.0
    finished_at: float = 0.0
    """Unix seconds: when the round ended."""
    bytes_read: int = 0


class SiteEvaluation(Wire):
    """One site's part of an evaluation."""

    samples: int
    """As many as count, and so are the targets: see `evaluation.aggregate_metrics`."""
    targets: int
    loss: float | None = None
    metrics: dict[str, float] = {}
    dropped_rows: Annotated[int, Field(ge=0)] = 0
    """Validation rows that the site left out because the run does not have their label."""


class LossEstimate(Wire):
    """A first-order estimate of what one site's update did to the validation loss of its round: see `rounds.loss_estimates`."""

    change: Annotated[float, Field(ge=-LARGEST_LOSS, le=LARGEST_LOSS, allow_inf_nan=False)]
    """Its part of the change of the loss, below 0: it lowered the loss. The parts of all sites add up to the measured change."""
    loss_without: Annotated[float, Field(ge=0, le=LARGEST_LOSS, allow_inf_nan=False)]
    """The loss after the round if the site's update had been zero, and those of the others had counted as they did."""


class SiteValues(NamedTuple):
    """What sites measured of one metric in an evaluation, finite values only."""

    sites: tuple[str, ...] = ()
    """Sorted."""
    values: tuple[float, ...] = ()
    """In the order of the sites."""
    weights: tuple[int, ...] = ()
    """In the mean over the sites, each above 0: targets for the loss, samples for other metrics."""


class RoundEvaluation(Wire):
    """The federated evaluation of a global adapter: the loss weighted by targets, other metrics by samples, both bounded.

    How they are bounded says `evaluation.aggregate_metrics`. Round 0 is the base.
    """

    round: int
    finished_at: float
    loss: float | None = None
    metrics: dict[str, float] = {}
    sites: dict[str, SiteEvaluation] = {}
    missing: dict[str, str] = {}
    """Sites without a result, with the reason."""
    needed: Annotated[int, Field(ge=0)] = 0
    """Sites that must have measured a metric for it to decide anything: the round's quorum."""
    late: tuple[str, ...] = ()
    """The sites that were at work on the next round at the deadline, when the evaluation was committed: their jobs ended with that."""
    first_order_estimates: dict[str, LossEstimate] = {}
    """By site whose update is in the round; empty where the loss before and after the round was not measured at the same site."""

    def by_site(self, metric: str) -> SiteValues:
        """What each site measured of this metric."""
        if metric == "loss":
            found = [(site, one.loss, one.targets) for site, one in sorted(self.sites.items())]
        else:
            found = [(site, one.metrics.get(metric), one.samples) for site, one in sorted(self.sites.items())]
        known = [(site, value, weight) for site, value, weight in found if value is not None and math.isfinite(value) and weight > 0]
        return SiteValues(*(tuple(column) for column in zip(*known, strict=True)))


class Comparison(Wire):
    """The same evaluation of the base, of each site's local-only baseline with the same budget, and of the federated adapter."""

    base: RoundEvaluation
    local_only: dict[str, RoundEvaluation]
    """By site: its local-only baseline."""
    federated: RoundEvaluation
