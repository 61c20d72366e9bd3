"""`FederatedFineTune`: a base model, a task, the sites, the rounds and the store. One object is one run."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fedpipe_operator.api.aggregation import AggregationMethod, AggregationSpec
from fedpipe_operator.api.codec import CodecSpec
from fedpipe_operator.api.meta import API_VERSION, ApiModel, Condition, LabelMap, Metadata, Name, SecretReference, Sentence
from fedpipe_operator.api.progress import ProgressStatus
from fedpipe_operator.api.quantities import Duration
from fedpipe_operator.api.tracking import TrackingSpec
from fedpipe_operator.api.training import (
    Bits,
    EvaluationSpec,
    PreferenceTask,
    Problem,
    SequenceClassificationTask,
    TaskSpec,
    TextFormat,
    TrainingSpec,
)

MetricName = Literal[
    "accuracy",
    "macroF1",
    "microF1",
    "mse",
    "pearson",
    "spearman",
    "loss",
    "perplexity",
    "bleu",
    "rougeL",
    "slotErrorRate",
    "exactMatch",
    "tokenF1",
    "preferenceAccuracy",
    "rewardMargin",
]
LOWER_IS_BETTER = frozenset({"mse", "loss", "perplexity", "slotErrorRate"})
_HEAD_METRICS: Final[dict[Problem, tuple[MetricName, ...]]] = {
    Problem.SINGLE_LABEL: ("accuracy", "macroF1", "loss"),
    Problem.MULTI_LABEL: ("microF1", "macroF1", "loss"),
    Problem.REGRESSION: ("mse", "pearson", "spearman", "loss"),
}
"""The first is that by which rounds are compared."""
GENERATION_METRICS: Final[tuple[MetricName, ...]] = ("loss", "perplexity", "bleu", "rougeL", "slotErrorRate")
QUESTION_METRICS: Final[tuple[MetricName, ...]] = ("tokenF1", "exactMatch", "loss", "perplexity")
PREFERENCE_METRICS: Final[tuple[MetricName, ...]] = ("preferenceAccuracy", "rewardMargin", "loss")
PRE_TRAINING_METRICS: Final[tuple[MetricName, ...]] = ("loss", "perplexity")

SOURCE_PATTERN = r"^(file:///.+|hf://[^/@]+/[^/@]+@[^/@]+|s3://[^/]+/.+|pvc://[a-z0-9][-a-z0-9.]*(/[^/.][^/]*)+)$"
BUCKET_PATTERN = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
PREFIX_PATTERN = r"^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$"
ENDPOINT_PATTERN = r"^https?://[^/]+$"
CLAIM_SCHEME: Final = "pvc://"
CONTROLLER: Final = "fedpipe.io/operator"
"""The controller of a run that names no other in `managedBy`."""
UID_PATTERN: Final = r"^[0-9a-z]([-0-9a-z]*[0-9a-z])?$"
MANAGED_BY_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9/._~%!$&'()*+,;=:@-]+$"


def measured_metrics(task: TaskSpec) -> tuple[MetricName, ...]:
    """The metrics that an evaluation of this task has. Of plain text nothing is generated that could be compared."""
    if isinstance(task, SequenceClassificationTask):
        return _HEAD_METRICS[task.problem]
    if isinstance(task, PreferenceTask):
        return PREFERENCE_METRICS
    by_format = {TextFormat.TEXT: PRE_TRAINING_METRICS, TextFormat.QUESTION_ANSWERING: QUESTION_METRICS}
    return by_format.get(task.format, GENERATION_METRICS)


class AttnImplementation(StrEnum):
    """How attention is computed, as transformers names it."""

    EAGER = "eager"
    """Each score is a value of its own: batch × heads × length² of them in memory."""
    SDPA = "sdpa"
    """By torch's fused kernels."""


class ModelSpec(ApiModel):
    """The frozen base model."""

    source: Annotated[str, Field(pattern=SOURCE_PATTERN, max_length=1024)]
    """`hf://org/name@revision`, `s3://bucket/folder`, `pvc://claim/folder`, or `file:///folder` on the machine of the trainer."""
    attn_implementation: AttnImplementation | None = None
    """How the sites' trainers compute attention; left out: as transformers chooses for the architecture."""

    @property
    def claim(self) -> str | None:
        """The claim that holds the model; None for a model elsewhere."""
        return self.source.removeprefix(CLAIM_SCHEME).partition("/")[0] if self.source.startswith(CLAIM_SCHEME) else None


class Selector(ApiModel):
    """Selects the `EdgeSite`s of the namespace that carry all these labels. Empty: all of them."""

    match_labels: LabelMap = {}


class SitesSpec(ApiModel):
    """The sites of a round, and how many of their updates it needs."""

    selector: Selector = Selector()
    per_round: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Number of sites selected at random for each round; left out: all."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.8


class Target(ApiModel):
    """Stop as soon as a round's metric is this good."""

    metric: MetricName
    value: Annotated[float, Field(ge=0, le=1e9)]


class RoundsSpec(ApiModel):
    """The number of rounds, their time limits, and when the run stops early."""

    count: Annotated[int, Field(ge=1, le=1000)] = 10
    deadline: Duration = "30m"
    """Time limit of profiling, of a round's training with the evaluation before it, of the last evaluation, and of the export."""
    queue_deadline: Duration = "24h"
    """Time limit of a wait for a queue or an autoscaler, which `deadline` does not count."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    """Attempts of one task at a site before the site is dropped."""
    target: Target | None = None
    patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Number of rounds without a better metric after which the run ends; left out: no limit."""


class PlanningMode(StrEnum):
    """How the planner chooses the sites' plans."""

    AUTO = "Auto"
    """Each site gets the plan that lets it contribute most; all sites finish together."""
    UNIFORM = "Uniform"
    """The choice that most sites can run, with equal steps; sites that cannot are excluded. For comparison."""
    UNIFORM_WEAKEST = "UniformWeakest"
    """The choice that every site can run, with equal steps: the weakest site sets it. For comparison."""
    PROPORTIONAL = "Proportional"
    """As UniformWeakest, but each site takes as many steps as fit into the same time. For comparison."""
    MANUAL = "Manual"
    """The plans are those of `plans`."""


EQUAL_RANKS = (PlanningMode.UNIFORM, PlanningMode.UNIFORM_WEAKEST, PlanningMode.PROPORTIONAL, PlanningMode.MANUAL)
"""Modes in which all sites may have the same rank for every weight."""


class Importance(StrEnum):
    """How the sites score the importance of each weight."""

    GRADIENT = "Gradient"
    """The mean of |W · dL/dW|, from the gradients of a few batches before training."""
    SENSITIVITY = "Sensitivity"
    """The paper's SVD and sensitivity score, after a short warm-up; it takes longer."""
    NONE = "None"
    """Every weight counts the same."""


class Depth(StrEnum):
    """Which layers a site trains."""

    AUTO = "Auto"
    """A site may train only its top layers, where that buys more steps than it costs."""
    FULL = "Full"
    """All layers, where the weights get a rank."""


class ManualPlan(ApiModel):
    """A plan that is given instead of computed."""

    site: Name | None = None
    """The site; left out, in mode Manual only: every site without a plan of its own."""
    bits: Bits
    rank: Annotated[int, Field(ge=1, le=1024)]
    """Rank of every adapter."""
    steps: Annotated[int, Field(ge=1, le=1000000)]
    """Optimiser steps in a round."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Samples per optimiser step; left out: the largest of `batchSizes`."""
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Samples per forward and backward pass; left out: the whole batch."""
    layers: Annotated[int, Field(ge=1, le=10000)] | None = None
    """The number of top layers that are trained; left out: all."""
    gradient_checkpointing: bool = False
    cache_activations: bool = False
    """Whether the activations below the trained layers are computed once and then read from the site's cache."""

    @model_validator(mode="after")
    def _require_micro_batches_within_the_batch(self) -> "ManualPlan":
        if self.batch_size is not None and self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"microBatchSize {self.micro_batch_size} is larger than batchSize {self.batch_size}: lower it")
        return self


class PlanningSpec(ApiModel):
    """The options that the planner may choose from."""

    mode: PlanningMode = PlanningMode.AUTO
    bits: Annotated[tuple[Bits, ...], Field(min_length=1, max_length=4)] = (4, 8, 16)
    ranks: Annotated[tuple[Annotated[int, Field(ge=0, le=1024)], ...], Field(min_length=1, max_length=16)] = (0, 4, 8, 16, 32)
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=16)] = (1, 2, 4, 8, 16)
    """The largest is the batch of an optimiser step. Passes may be of fewer samples, and in mode Auto the steps of slow sites as well."""
    target_modules: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(max_length=64)] = ()
    """Modules whose names end in one of these get adapters, or `all-linear`: all linear layers but the output and the head; left out: the
    attention projections of the architecture."""
    modules_to_save: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(max_length=64)] = ()
    """Modules whose names end in one of these are trained whole beside the adapters, as PEFT's `modules_to_save`: embeddings, norms, an
    output layer. All sites send them in every round, so they must fit into the memory and the link of each."""
    importance: Importance = Importance.GRADIENT
    depth: Depth = Depth.AUTO
    exploration: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """The share of the adapters' budget that rotates over all weights, whatever their importance."""
    plans: Annotated[tuple[ManualPlan, ...], Field(max_length=100)] = ()
    """Plans that are given. In mode Manual every site needs one; in the other modes they replace those of their sites."""

    @property
    def max_rank(self) -> int:
        """The largest rank of the run, and so of the global adapter: of `ranks` and of the given plans, which are obeyed."""
        return max(*self.ranks, *(plan.rank for plan in self.plans), 0)

    @model_validator(mode="after")
    def _require_plans_in_manual_mode(self) -> "PlanningSpec":
        if self.mode is PlanningMode.MANUAL and not self.plans:
            raise ValueError("mode Manual takes the sites' plans from plans, which is empty: add one (without a site it is for every site)")
        return self

    @model_validator(mode="after")
    def _require_sites_of_plans_outside_manual_mode(self) -> "PlanningSpec":
        if self.mode is not PlanningMode.MANUAL and any(plan.site is None for plan in self.plans):
            raise ValueError("plans has one without a site, which mode Manual alone gives to the others: set mode: Manual, or name a site")
        return self

    @model_validator(mode="after")
    def _require_one_plan_a_site(self) -> "PlanningSpec":
        sites = [plan.site for plan in self.plans]
        if twice := sorted({str(site) if site else "every other site" for site in sites if sites.count(site) > 1}):
            raise ValueError(f"plans has more than one plan for {', '.join(twice)}: keep one")
        return self

    @model_validator(mode="after")
    def _require_a_rank_above_0(self) -> "PlanningSpec":
        if not any(self.ranks):
            raise ValueError("ranks are all 0, so nothing would be trained: add a rank above 0")
        return self


class StoreSpec(ApiModel):
    """The S3-compatible store.

    The Secret holds `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; of a pair that expires also `AWS_SESSION_TOKEN` and
    `AWS_CREDENTIAL_EXPIRATION`, the time at which it does.
    """

    bucket: Annotated[str, Field(pattern=BUCKET_PATTERN, max_length=63)]
    prefix: Annotated[str, Field(pattern=PREFIX_PATTERN, max_length=512)] = "fedpipe"
    endpoint: Annotated[str, Field(pattern=ENDPOINT_PATTERN, max_length=1024)] | None = None
    """URL of the S3 endpoint; left out: that of AWS."""
    trainer_endpoint: Annotated[str, Field(pattern=ENDPOINT_PATTERN, max_length=1024)] | None = None
    """URL by which trainers reach the same store, if their nodes reach it by another than the operator; left out: `endpoint`."""
    region: Annotated[str, Field(min_length=1, max_length=64)] = "us-east-1"
    credentials_secret_ref: SecretReference | None = None


class DeletionPolicy(StrEnum):
    """What happens to a run's objects in the store when the run is deleted."""

    RETAIN = "Retain"
    """The objects are kept."""
    DELETE = "Delete"
    """The objects are deleted with the run, results included."""


class ExportSpec(ApiModel):
    """What the run exports after its last round."""

    adapter: bool = True
    merged: bool = True


class FineTuneSpec(ApiModel):
    """The specification of a run."""

    model: ModelSpec
    task: TaskSpec
    sites: SitesSpec = SitesSpec()
    rounds: RoundsSpec = RoundsSpec()
    planning: PlanningSpec = PlanningSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    aggregation: AggregationSpec = AggregationSpec()
    codec: CodecSpec = CodecSpec()
    store: StoreSpec | None = None
    """The store of the run's results. Left out: the operator's default one (the chart's `defaultStore`), if it has one."""
    continue_from: Annotated[str, Field(pattern=UID_PATTERN, max_length=63)] | None = None
    """UID of an earlier object of the same namespace and name: the run continues in that one's folder of the store, after its last
    committed round, as when its cluster was lost. Left out: the run begins in a folder of its own."""
    export: ExportSpec = ExportSpec()
    tracking: TrackingSpec = TrackingSpec()
    suspend: bool = False
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31536000)] | None = None
    managed_by: Annotated[str, Field(pattern=MANAGED_BY_PATTERN, max_length=63)] | None = None
    """The run's controller, `domain/name`. Left out, or `fedpipe.io/operator`: FedPipe's operator; it leaves a run of another alone."""

    @model_validator(mode="after")
    def _require_uniform_plans_for_fedit(self) -> "FineTuneSpec":
        if self.aggregation.method is AggregationMethod.FEDIT and self.planning.mode not in EQUAL_RANKS:
            modes = ", ".join(mode.value for mode in EQUAL_RANKS)
            raise ValueError(
                f"aggregation.method FedIT averages equal ranks only: set planning.mode to one of {modes}, or the method to Exact"
            )
        return self

    @model_validator(mode="after")
    def _require_enough_updates_for_the_rule(self) -> "FineTuneSpec":
        per_round, needed = self.sites.per_round, self.aggregation.least_updates
        if per_round is not None and needed > 1 and round(self.sites.quorum * per_round, 9) <= needed - 1:
            raise ValueError(
                f"aggregation.rule {self.aggregation.rule.value} needs {needed} updates to withstand {self.aggregation.malicious_sites} "
                "maliciousSites, and sites.perRound times sites.quorum is less: raise one of them, or lower aggregation.maliciousSites"
            )
        return self

    @model_validator(mode="after")
    def _require_a_measured_target(self) -> "FineTuneSpec":
        measured = measured_metrics(self.task)
        if self.rounds.target is not None and self.rounds.target.metric not in measured:
            raise ValueError(
                f"rounds.target.metric {self.rounds.target.metric} is not measured for {self.task.type}: use one of {', '.join(measured)}"
            )
        return self


class MetricStatus(ApiModel):
    """The newest value of the metric that the run is judged by."""

    name: MetricName
    value: float
    round: Annotated[int, Field(ge=0)]


class PlanStatus(ApiModel):
    """The plan of one site, with its reasons."""

    site: Name
    bits: Bits
    batch_size: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    rank: Annotated[int, Field(ge=0)]
    """The largest rank of the adapters."""
    adapters: Annotated[int, Field(ge=0)]
    """Weights that get an adapter."""
    layers: Annotated[int, Field(ge=0)] = 0
    """The number of top layers that are trained; the layers below need no backward pass."""
    model_layers: Annotated[int, Field(ge=0)] = 0
    """The number of layers of the base model; 0: not known."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 1
    """Samples per forward and backward pass."""
    gradient_checkpointing: bool = False
    cache_activations: bool = False
    forecast: Annotated[str, Field(max_length=256)] = ""
    """What the plan is predicted to need, in words: memory, seconds, and bytes up and down. The numbers follow."""
    memory: Annotated[int, Field(ge=0)]
    """Forecast of the peak memory, in bytes."""
    seconds: Annotated[float, Field(ge=0)]
    """Forecast of the seconds that one round's training takes, transfers included."""
    step_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Of them, those of the training steps."""
    upload: Annotated[int, Field(ge=0)] = 0
    """Forecast of the bytes of the site's update."""
    download: Annotated[int, Field(ge=0)] = 0
    """Forecast of the bytes of the global adapter that the site reads."""
    limited_by: Annotated[str, Field(max_length=32)] = ""
    """The constraint that binds: `Memory`, `Time`, `Bandwidth`, `Data` or `Spec`."""
    ranks: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=8)] = ()
    """Which weights have which rank: a line for the kinds of weight with the same ranks in the same layers."""
    why: Annotated[tuple[Sentence, ...], Field(max_length=12)] = ()


class MeasuredStatus(ApiModel):
    """How well a site used its device, its energy and its network in its newest training that was aggregated. Absent: not measured."""

    site: Name
    round: Annotated[int, Field(ge=1)]
    """The round of that training."""
    tokens_per_second: Annotated[float, Field(ge=0)] | None = None
    """Of the training steps, without padding."""
    padded_tokens_per_second: Annotated[float, Field(ge=0)] | None = None
    """Of the training steps, with the padding that was computed beside them."""
    mfu: Annotated[float, Field(ge=0)] | None = None
    """Model FLOPs utilisation: the share of the device's peak FLOP/s that the tokens used, without padding."""
    tokens_per_joule: Annotated[float, Field(ge=0)] | None = None
    """Energy efficiency of the training steps, without padding."""
    energy_source: Literal["NVML", "RAPL"] | None = None
    """What counted the energy: `NVML` (the GPUs that the task used) or `RAPL` (the processor packages, with whatever else runs there)."""
    granularity: Annotated[float, Field(ge=0)] | None = None
    """Seconds of the training steps over those of all transfers of the task: below 1 the site waited for the network longer."""
    uploaded_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes that the task sent to the store."""
    downloaded_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes that the task read from it, with those of the base model where no cache keeps it."""
    bits_per_second: Annotated[int, Field(ge=0)] | None = None
    """Bits of both directions, over the seconds of all transfers of the task."""
    codecs: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=16)] = {}
    """Tensors of the update by the codec that they travelled with, with `spec.codec`. Another than the run's would have lost too much."""
    update_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Between the increment that was trained and what arrived of it, over all tensors, with `spec.codec`."""


class HyperparameterStatus(ApiModel):
    """A hyperparameter of the run, and why it has its value."""

    name: Annotated[str, Field(max_length=64)]
    """The field of the spec that sets it."""
    value: Annotated[str, Field(max_length=256)]
    reason: Sentence


class RoundStatus(ApiModel):
    """One finished round."""

    round: Annotated[int, Field(ge=1)]
    updates: Annotated[str, Field(max_length=32)]
    """Updates in the round's commit, of the sites that were asked for one: `2/3`."""
    metric: float | None = None
    loss: float | None = None
    evaluators: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """With `sites.perRound`, the sites that evaluated the round's adapter: those of the next round, or of the last round its own."""
    seconds: Annotated[float, Field(ge=0)]
    """Seconds from the round's plan to its commit, suspensions included."""
    uploaded_bytes: Annotated[int, Field(ge=0)]
    truncated_energy: Annotated[float, Field(ge=0)]
    """The largest share of squared singular values that the truncation to the global rank lost in any weight."""
    left_out: Annotated[dict[str, Sentence], Field(max_length=100)] = {}
    """Sites whose update did not arrive, was refused or was not selected by `aggregation.rule`, with the reason of each."""
    clipped: Annotated[dict[str, Sentence], Field(max_length=100)] = {}
    """Sites of whose update an increment was shortened (`aggregation.clipping`): of how many weights, and how far."""
    dropped_rows: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=100)] = {}
    """Training rows that sites left out because fewer than two sites have their label, and `task.labels` declares none."""
    missing_evaluations: Annotated[dict[str, Sentence], Field(max_length=100)] = {}
    """Sites that should have evaluated the round's adapter and did not, with the reason of each."""


class UpdatesStatus(ApiModel):
    """The updates of the round under way; between two rounds, those of the last committed round."""

    expected: Annotated[int, Field(ge=0)]
    """Sites that the round asks for an update."""
    needed: Annotated[int, Field(ge=0)]
    """Updates that the round needs, for `sites.quorum`, `aggregation.rule` and the sites' policies; the run fails when fewer can arrive."""
    received: Annotated[int, Field(ge=0)]
    """Updates that arrived in time and were not refused; until the round is committed, the gate may still refuse some of them."""
    refused: Annotated[int, Field(ge=0)]
    """Updates that the gate before the aggregation refused."""
    late: Annotated[int, Field(ge=0)]
    """Sites that the round went on without because their update did not arrive within `rounds.deadline`."""
    summary: Annotated[str, Field(max_length=32)]
    """`received/expected`, such as `2/3`: the column *Updates*."""


class StoreStatus(ApiModel):
    """Where a run's results are. The key pair that opens it is in the Secret, and nowhere in a status."""

    bucket: Annotated[str, Field(max_length=63)]
    prefix: Annotated[str, Field(max_length=1024)]
    """The folder of all of the run's objects in the bucket: `PREFIX/NAMESPACE/NAME/UID`."""
    endpoint: Annotated[str, Field(max_length=1024)] | None = None
    """URL of the S3 endpoint by which the operator reaches it; left out: that of AWS."""
    region: Annotated[str, Field(max_length=64)]
    credentials_secret_ref: SecretReference | None = None
    """The Secret of the run's namespace that holds the key pair."""


class FineTuneStatus(ApiModel):
    """The observed state of a run. Its size is bounded: the store has the complete records."""

    observed_generation: Annotated[int, Field(ge=-1)] = 0
    """The generation of the spec that this status describes; -1: the operator has not observed the object yet."""
    revision: Annotated[str, Field(max_length=64)] = ""
    """A hash of the fields that may not change during the run."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = ()
    progress: ProgressStatus | None = None
    round: Annotated[int, Field(ge=0)] = 0
    updates: UpdatesStatus | None = None
    metric: MetricStatus | None = None
    hyperparameters: Annotated[tuple[HyperparameterStatus, ...], Field(max_length=16)] = ()
    """Those that the spec may leave out: from the spec, or chosen, each with the reason."""
    plans: Annotated[tuple[PlanStatus, ...], Field(max_length=100)] = ()
    excluded: Annotated[dict[str, Sentence], Field(max_length=100)] = {}
    measured: Annotated[tuple[MeasuredStatus, ...], Field(max_length=100)] = ()
    history: Annotated[tuple[RoundStatus, ...], Field(max_length=10)] = ()
    store: StoreStatus | None = None
    """Where the run's results are, also if the spec leaves the store to the operator's default one."""
    export: Annotated[str, Field(max_length=1024)] = ""
    """The key of the exported results in the store."""


class FederatedFineTune(ApiModel):
    """One run."""

    api_version: Literal["fedpipe.io/v1alpha1"] = API_VERSION
    kind: Literal["FederatedFineTune"] = "FederatedFineTune"
    metadata: Metadata
    spec: FineTuneSpec
    status: FineTuneStatus = FineTuneStatus()

    @property
    def results_uid(self) -> str:
        """The UID in the name of its folder in the store and in its results: its own, or that of the object that it continues."""
        return self.spec.continue_from or self.metadata.uid


def primary_metric(spec: FineTuneSpec) -> MetricName:
    """The metric by which rounds are compared: that of `rounds.target`, else the first of a head, pairs or answers, else perplexity."""
    if spec.rounds.target is not None:
        return spec.rounds.target.metric
    task = spec.task
    if isinstance(task, SequenceClassificationTask | PreferenceTask):
        return measured_metrics(task)[0]
    answers = task.format is TextFormat.QUESTION_ANSWERING and spec.evaluation.generations
    return measured_metrics(task)[0] if answers else "perplexity"
