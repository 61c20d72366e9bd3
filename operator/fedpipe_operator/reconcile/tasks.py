"""Converts an action of a decision to the task that a trainer gets. Pure: placement and presigned URLs are arguments.

A task has a URL for each object that it may read or write and for no other: a trainer has no other access to the store.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypedDict

from fedpipe_operator import conversion, names
from fedpipe_operator.admission import MAX_RESULT_BYTES, max_update_bytes
from fedpipe_operator.aggregation.gate import max_adapter_bytes
from fedpipe_operator.api import CausalLMTask, FineTuneSpec, PlanningMode, Seq2SeqLMTask, parse_duration
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.planning import range_test, rate_of
from fedpipe_operator.reconcile.pieces import update_upload
from fedpipe_operator.rounds import Observed, Run, StartEvaluation, StartProfile, StartTraining
from fedpipe_operator.rounds.consent import least_contributors
from fedpipe_operator.rounds.deadlines import RENEWAL_SECONDS, stage_of
from fedpipe_operator.rounds.export_files import PARTS_FROM_BYTES
from fedpipe_operator.rounds.observed import CommitSummary, PlanSummary
from fedpipe_operator.rounds.policies import with_planned_rule
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.sites import basis_of
from fedpipe_trainer.contract import (
    MAX_PROGRESS_BYTES,
    Artifact,
    Data,
    DataPolicy,
    EvaluateTask,
    Evaluation,
    FileUpload,
    GlobalAdapter,
    Hyperparameters,
    Model,
    PartsUpload,
    PostForm,
    ProfileTask,
    TrainEvaluation,
    TrainTask,
    Upload,
)
from fedpipe_trainer.contract.task import PROBE_BYTES

_TENSORS_OF_A_PARAMETER: Final = 4
_BYTES_OF_A_LOSS: Final = 32
_BYTES_OF_A_STATE: Final = 2**16
"""Of a checkpoint, beside these: counts, and the states of random generators."""
_MAX_VALIDITY_SECONDS: Final = 7 * 24 * 3600
"""The longest validity of a presigned S3 URL."""
_LEAST_SECONDS: Final = 1.0
_SLACK_SECONDS: Final = 900
"""Margin for clock skew, and for a Job that is ended some minutes after its stage (`manifests.jobs`) and then uploads its checkpoint."""


def url_seconds(stage_seconds: float) -> int:
    """How long a task's URLs are valid: until its stage ends, plus a margin."""
    return min(_MAX_VALIDITY_SECONDS, math.ceil(stage_seconds) + _SLACK_SECONDS)


class Urls(Protocol):
    """The part of a store that makes presigned URLs."""

    def url_to_read(self, key: str, seconds: int) -> str:
        """A URL that reads this object and nothing else."""
        ...

    def url_to_write(self, key: str, seconds: int) -> str:
        """A URL that writes this object and nothing else."""
        ...


class Forms(Protocol):
    """The part of a store that makes presigned forms, and uploads in parts."""

    def form_to_write(self, key: str, seconds: int, at_most: int) -> PostForm | None:
        """A form that writes this object, of at most so many bytes, and nothing else; None if the store has none."""
        ...

    def parts_to_write(self, key: str, seconds: int, size: int, part_bytes: int) -> PartsUpload | None:
        """An upload in parts of this object and nothing else, begun or gone on with; None if the store has none."""
        ...


@dataclass(frozen=True)
class TaskInputs:
    """The model and the data of a site's trainer."""

    model: Model
    data: Data | None = None
    """None for an export, which needs no data."""


@dataclass(frozen=True)
class TaskContext:
    """What every task of a run is built from."""

    run: Run
    urls: Urls
    observed: Observed = field(default_factory=Observed)
    """Its jobs tell when the stage of a task began."""
    now: float = 0.0
    """Unix seconds."""
    stage_seconds: float = 0.0
    """Until the stage of the task ends: its URLs expire soon after that. Set by `in_stage`."""
    spare_seconds: float = 0.0
    """How much longer its URLs are valid, because it waits in a queue. Set by `in_stage`."""
    forms: Forms | None = None
    """None: everything is written by URL."""
    writes_progress: bool = False
    """Whether trainers write their progress to the store; otherwise their standard output tells it."""

    @property
    def spec(self) -> FineTuneSpec:
        """The run's spec."""
        return self.run.spec

    def in_stage(self, kind: TaskKind, round_: int = 0, *, site: str = "") -> "TaskContext":
        """The context of a task of this stage, which began with the first of its jobs: what comes after its end is not waited for.

        A job that waits in a queue has a whole deadline from when that lets it run. Seconds and not a time of day, since a site's clock
        may differ; a pod that waits for a node of a pool without an autoscaler has fewer than it knows of.
        """
        stage = stage_of(self.run, self.observed, kind, round_)
        if stage is None:
            return replace(self, stage_seconds=parse_duration(self.spec.rounds.deadline))
        span = stage.of_site(site)
        if span.in_queue_since is not None:
            return replace(self, stage_seconds=stage.deadline, spare_seconds=RENEWAL_SECONDS)
        return replace(self, stage_seconds=max(_LEAST_SECONDS, span.ends_at - self.now))

    @property
    def _url_seconds(self) -> int:
        return url_seconds(self.stage_seconds + self.spare_seconds)

    def read(self, key: str) -> str:
        """A URL that reads this key."""
        return self.urls.url_to_read(key, self._url_seconds)

    def write(self, key: str) -> str:
        """A URL that writes this key, with as many bytes as it may be."""
        return self.urls.url_to_write(key, self._url_seconds)

    def bounded_write(self, key: str, at_most: int) -> Upload:
        """How this key is written, with at most so many bytes where the store can bind that."""
        form = self.forms.form_to_write(key, self._url_seconds, at_most) if self.forms else None
        return self.write(key) if form is None else form

    def write_file(self, key: str, size: int, part_bytes: int) -> FileUpload:
        """How a file of at most `size` bytes is written: in parts if it is large, and the store has them."""
        if size < PARTS_FROM_BYTES or self.forms is None:
            return self.write(key)
        return self.forms.parts_to_write(key, self._url_seconds, size, part_bytes) or self.write(key)

    def outputs(self, result: str, at_most: int = MAX_RESULT_BYTES) -> "_Outputs":
        """How a task writes its result, under this key, and its progress."""
        progress = self.bounded_write(names.progress_beside(result), MAX_PROGRESS_BYTES) if self.writes_progress else None
        return _Outputs(result=self.bounded_write(result, at_most), progress=progress)


class _Outputs(TypedDict):
    result: Upload
    progress: Upload | None


def profile_task(context: TaskContext, action: StartProfile, inputs: TaskInputs, first: PlanSummary | None = None) -> ProfileTask:
    """The task that profiles a site; one that joins after round 1 was planned uses the commit of that plan."""
    context = context.in_stage(TaskKind.PROFILE, site=action.site)
    planning, probe = context.spec.planning, names.profile_probe(action.site, action.attempt)
    site = next((one for one in context.run.sites if one.name == action.site), None)
    return ProfileTask(
        run=context.run.ref,
        site=action.site,
        attempt=action.attempt,
        model=inputs.model.model_copy(update={"commit": first.model_commit}) if first else inputs.model,
        deadline_seconds=context.stage_seconds,
        **context.outputs(names.profile_result(action.site, action.attempt)),
        objective=conversion.objective(context.spec.task),
        data=_data(inputs),
        **_consent(context, action.site, contributors=least_contributors(context.run, action.site)),
        bits=planning.bits,
        # Only mode Auto takes fewer bits for want of memory alone.
        all_bits=planning.mode is not PlanningMode.AUTO or bool(planning.plans),
        target_modules=planning.target_modules,
        max_new_tokens=_max_new_tokens(context.spec),
        processes=_processes(context, action.site),
        batch_sizes=_batches_to_profile(planning.batch_sizes),
        rank=planning.max_rank,
        importance=conversion.importance(planning.importance),
        range_test=None if first else range_test(context.spec),  # the rate is chosen with the first plan
        seed=context.spec.training.seed,
        reuse=site is not None and site.spec.cache is not None,
        probe_write=context.bounded_write(probe, PROBE_BYTES),
        probe_read=context.read(probe),
        basis=basis_of(site) if site else None,
    )


def _processes(context: TaskContext, site: str) -> int:
    """Among which the steps of a site's tasks are divided: one for each device of a pod."""
    accelerator = next((one.spec.capacity.accelerator for one in context.run.sites if one.name == site), None)
    return accelerator.devices if accelerator else 1


def _max_new_tokens(spec: FineTuneSpec) -> int:
    """Tokens that an evaluation generates after a prompt, at most."""
    generates = spec.evaluation.generations and isinstance(spec.task, CausalLMTask | Seq2SeqLMTask)
    return spec.evaluation.max_new_tokens if generates else 0


def training_task(
    context: TaskContext, action: StartTraining, inputs: TaskInputs, *, plan: RoundPlan, previous: CommitSummary | None
) -> TrainTask:
    """The task that trains one round from the previous round's global adapter, and first evaluates that adapter if it is asked to."""
    site, round_, attempt = action.site, action.round, action.attempt
    context = context.in_stage(TaskKind.TRAIN, round_, site=site)
    adapter_bytes = max_adapter_bytes(plan, site)
    return TrainTask(
        run=context.run.ref,
        site=site,
        round=round_,
        attempt=attempt,
        model=as_planned(inputs.model, plan),
        deadline_seconds=context.stage_seconds,
        **context.outputs(names.update_result(round_, site, attempt), max_update_bytes(plan.plans[site])),
        objective=conversion.objective(context.spec.task, plan.labels),
        data=_data(inputs),
        **_consent(context, site, contributors=_contributors(context, plan, site)),
        plan=plan.plans[site],
        micro_batch=action.micro_batch,
        processes=_processes(context, site),
        hyperparameters=hyperparameters_of(plan, context.spec),
        global_adapter=global_adapter_of(context, previous.read_by_sites) if previous else None,
        evaluation=_evaluation_before(context, action, plan) if action.evaluates else None,
        adapter=update_upload(
            context.bounded_write,
            names.update_adapter(round_, site, attempt),
            names.update_pieces(round_, site, attempt),
            at_most=adapter_bytes,
            updates=len(plan.plans) * context.spec.rounds.count,
        ),
        codec=plan.codec,
        checkpoint_read=context.read(names.checkpoint(round_, site)),
        checkpoint_write=context.bounded_write(names.checkpoint(round_, site), _checkpoint_bytes(adapter_bytes, plan.plans[site].steps)),
    )


def hyperparameters_of(plan: RoundPlan, spec: FineTuneSpec) -> Hyperparameters:
    """What all trainings of a round use beside their plans: of a round that an earlier version of the operator planned, the spec's."""
    rate = rate_of(plan.learning_rate, spec.training) * plan.learning_rate_share
    return plan.training or conversion.hyperparameters(spec.training, rate)


def _evaluation_before(context: TaskContext, action: StartTraining, plan: RoundPlan) -> TrainEvaluation:
    """The evaluation of the adapter that a training starts from; its result has the key of an evaluation task's.

    Its batches are the training's micro-batches, so that it needs no more memory than the training.
    """
    round_ = action.round - 1
    return TrainEvaluation(
        round=round_,
        evaluation=_evaluation(context, action.site),
        batch_size=action.micro_batch or plan.plans[action.site].micro_batch,
        result=context.bounded_write(names.evaluation_result(round_, action.site, action.attempt), MAX_RESULT_BYTES),
    )


def evaluation_task(
    context: TaskContext, action: StartEvaluation, inputs: TaskInputs, *, plan: RoundPlan, commit: CommitSummary
) -> EvaluateTask:
    """The task that evaluates the last round's global adapter at a site."""
    context = context.in_stage(TaskKind.EVALUATE, action.round, site=action.site)
    return EvaluateTask(
        run=context.run.ref,
        site=action.site,
        round=action.round,
        attempt=action.attempt,
        model=as_planned(inputs.model, plan),
        deadline_seconds=context.stage_seconds,
        **context.outputs(names.evaluation_result(action.round, action.site, action.attempt)),
        objective=conversion.objective(context.spec.task, plan.labels),
        data=_data(inputs),
        # A baseline's adapter is another site's: what this one sends is mixed with the other evaluations.
        **_consent(context, action.site, contributors=max(_contributors(context, plan, action.site), _evaluators(context, plan))),
        bits=plan.plans[action.site].bits,
        batch_size=plan.plans[action.site].micro_batch,
        evaluation=_evaluation(context, action.site),
        global_adapter=global_adapter_of(context, commit.read_by_sites),
        seed=hyperparameters_of(plan, context.spec).seed,
    )


def _checkpoint_bytes(adapter_bytes: int, steps: int) -> int:
    """Of a training's checkpoint, at most: each parameter with the two moments of AdamW and its number of steps, and each step's loss."""
    return _TENSORS_OF_A_PARAMETER * adapter_bytes + _BYTES_OF_A_LOSS * steps + _BYTES_OF_A_STATE


class _Consent(TypedDict):
    policy: DataPolicy
    run_labels: dict[str, str]
    contributors: int
    baseline_of: str


def _consent(context: TaskContext, site: str, *, contributors: int) -> _Consent:
    """What the data owner allows, by the site's spec, and what the task does with the data."""
    policy = next((conversion.policy(one.spec.policy) for one in context.run.sites if one.name == site), DataPolicy())
    labels = dict(context.run.resource.metadata.labels)
    return _Consent(policy=policy, run_labels=labels, contributors=contributors, baseline_of=context.run.baseline_of)


def _evaluation(context: TaskContext, site: str) -> Evaluation:
    """`spec.evaluation`, with no more rows to show than the site's policy allows."""
    evaluation = conversion.evaluation(context.spec.evaluation)
    allowed = next((one.spec.policy.max_shown_rows for one in context.run.sites if one.name == site), 0)
    return evaluation.model_copy(update={"samples": min(evaluation.samples, allowed)})


def _contributors(context: TaskContext, plan: RoundPlan, site: str) -> int:
    """How many updates, at least, an aggregate with this site's will be made of."""
    return max(with_planned_rule(context.spec, plan).aggregation.mixed(plan.needed), plan.min_sites.get(site, 1))


def _evaluators(context: TaskContext, plan: RoundPlan) -> int:
    """In a local-only baseline, the sites that evaluate it."""
    return len(plan.evaluators) if context.run.baseline_of else 1


def _data(inputs: TaskInputs) -> Data:
    if inputs.data is None:
        raise ValueError("this task reads a site's data, but its inputs have none")
    return inputs.data


def as_planned(model: Model, plan: RoundPlan | PlanSummary) -> Model:
    """The model with the fingerprint and the hub's commit of the base that the round plan requires."""
    return model.model_copy(update={"fingerprint": plan.fingerprint, "commit": plan.model_commit})


def global_adapter_of(context: TaskContext, adapter: Artifact) -> GlobalAdapter:
    """A round's global adapter, with a URL to read it."""
    return GlobalAdapter(url=context.read(adapter.name), sha256=adapter.sha256, size=adapter.size)


def _batches_to_profile(batch_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest, a middle and the largest batch size: the planner interpolates between them, and the largest may not fit."""
    ascending = sorted(set(batch_sizes))
    return tuple(sorted({ascending[0], ascending[len(ascending) // 2], ascending[-1]}))
