"""One reconcile of a run: observe, decide, apply, write the status once, record events. The same on a cluster and on one machine."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, assert_never

from fedpipe_operator import names
from fedpipe_operator.admission import AdmittedUpdate, hash_of
from fedpipe_operator.aggregation.gate import max_adapter_bytes
from fedpipe_operator.aggregation.worker import AggregationTask
from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.backend import Job, JobBackend, JobResources, TaskKind
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.reconcile import export_tasks, tasks
from fedpipe_operator.reconcile.observe import ObjectCache, observe
from fedpipe_operator.reconcile.planning import planning_task
from fedpipe_operator.reconcile.progress import ProgressReader
from fedpipe_operator.rounds import (
    AbortUploads,
    Action,
    CommitEvaluation,
    CommitExpiredProfiles,
    CommitPlan,
    Decision,
    Discard,
    Event,
    Observed,
    Run,
    StartAggregation,
    StartDryExport,
    StartEvaluation,
    StartExport,
    StartPlanning,
    StartProfile,
    StartTraining,
    decide,
    is_over,
    job_of,
)
from fedpipe_operator.rounds.conditions import Observation
from fedpipe_operator.rounds.export_files import DRY_EXPORT_ROUND, covering_export
from fedpipe_operator.rounds.loss_estimates import loss_estimates
from fedpipe_operator.rounds.policies import with_planned_rule
from fedpipe_operator.rounds.records import RoundEvaluation, RoundPlan
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import StoreAddress
from fedpipe_trainer.contract import Artifact, Wire


class StatusWriter(Protocol):
    """Keeps a run's status and records its events."""

    def write_status(self, run: Run, status: FineTuneStatus) -> None:
        """Replace the run's status."""
        ...

    def record_event(self, run: Run, event: Event) -> None:
        """Record that this happened."""
        ...


class Placement(Protocol):
    """Where trainers find model and data, and what they may use: mounts on a cluster, folders on one machine."""

    def inputs(self, run: Run, site: str) -> tasks.TaskInputs:
        """Where a trainer of this site finds model and data; site "" needs the model only."""
        ...

    def resources(self, run: Run, site: str) -> JobResources:
        """What a job of this site may use."""
        ...


class ReconcileResult(NamedTuple):
    """What a reconcile observed and decided."""

    observed: Observed
    decision: Decision


@dataclass
class Reconciler:
    """Reconciles one run. It keeps nothing that the store and the jobs do not hold as well."""

    backend: JobBackend
    store: Store
    address: StoreAddress
    placement: Placement
    status_writer: StatusWriter
    resumed_at: float
    clock: Callable[[], float] = time.time
    cache: ObjectCache = field(default_factory=ObjectCache)
    busy: Mapping[str, str] = field(default_factory=dict)
    """Sites whose job slots other runs occupy, as `Observed.busy` has it."""
    progress: ProgressReader | None = None
    """None: the backend knows the progress of its jobs."""
    tracked: Observation | None = None
    """As `Observed.tracked` has it."""
    problems: Sequence[FedPipeError] = ()
    """What the backend could not do with single jobs, as it grows while the others go on."""

    def reconcile(self, run: Run) -> ReconcileResult:
        """Take the run one step further, as far as that is possible now.

        Raises:
            FedPipeError: what observing or an action raises, or the first of `problems`, after everything else; but not in the reconcile
                that ends the run, which needs none of those jobs.
        """
        seen = observe(run, self.backend.observe(), self.store, self.cache, self.resumed_at)
        observed = replace(seen, busy=self.busy, tracked=self.tracked)
        now = self.clock()
        if self.progress is not None:
            observed = self.progress.add(run, observed, self.store, now)
        decision = decide(run, observed, now)
        for action in decision.actions:
            self._apply(action, run, observed, now)
        if self.problems and not is_over(run.resource.model_copy(update={"status": decision.status})):
            raise self.problems[0]
        if decision.status != run.resource.status:
            self.status_writer.write_status(run, decision.status)
        for event in decision.events:
            self.status_writer.record_event(run, event)
        return ReconcileResult(observed, decision)

    def _apply(self, action: Action, run: Run, observed: Observed, now: float) -> None:  # noqa: C901 -- a case for each action
        """Apply one action. Each is safe to apply twice: names are fixed, and creation is create-if-absent."""
        context = tasks.TaskContext(run, self.store, observed, now, forms=self.store, writes_progress=self.progress is not None)
        match action:
            case StartProfile(site, attempt):
                profile = tasks.profile_task(context, action, self.placement.inputs(run, site), observed.plans.get(1))
                self._start(run, job_of(run, TaskKind.PROFILE, site=site, attempt=attempt), profile)
            case StartPlanning(round_, attempt):
                self._start(run, job_of(run, TaskKind.PLAN, round_=round_, attempt=attempt), planning_task(run, action, self.address))
            case CommitPlan() | CommitExpiredProfiles() | CommitEvaluation():
                key, record = self._record(run, action, observed)
                self.store.create(key, record.to_json().encode())
            case StartTraining(site, round_, attempt):
                inputs, previous = self.placement.inputs(run, site), observed.commits.get(round_ - 1)
                train = tasks.training_task(context, action, inputs, plan=_newest_plan(observed), previous=previous)
                job = job_of(run, TaskKind.TRAIN, site=site, round_=round_, attempt=attempt)
                self._start(run, job, train, JobResources(expected_bytes=train.plan.forecast.memory_bytes))
            case StartAggregation(round_, attempt):
                job = job_of(run, TaskKind.AGGREGATE, round_=round_, attempt=attempt)
                self._start(run, job, self._aggregation(run, action, observed), JobResources(update_bytes=_update_bytes(action, observed)))
            case StartEvaluation(site, round_, attempt):
                inputs, commit = self.placement.inputs(run, site), observed.commits[round_]
                evaluate = tasks.evaluation_task(context, action, inputs, plan=_newest_plan(observed), commit=commit)
                self._start(run, job_of(run, TaskKind.EVALUATE, site=site, round_=round_, attempt=attempt), evaluate)
            case StartDryExport() | StartExport():
                self._start_export(action, context, run, observed)
            case AbortUploads(keys):
                for key in keys:
                    self.store.abort_uploads(key)
            case Discard(job_name):
                self.backend.discard(job_name)
            case _:
                assert_never(action)

    def _start_export(self, action: StartDryExport | StartExport, context: tasks.TaskContext, run: Run, observed: Observed) -> None:
        inputs = self.placement.inputs(run, "")
        match action:
            case StartDryExport(attempt):
                dry = export_tasks.dry_export_task(context, action, inputs, plan=observed.plans[1])
                self._start(run, job_of(run, TaskKind.DRY_EXPORT, round_=DRY_EXPORT_ROUND, attempt=attempt), dry)
            case StartExport(round_, attempt):
                plan, commit = observed.plans[round_], observed.commits[round_]
                found = covering_export(run.spec, observed.dry_exports)
                export = export_tasks.export_task(context, action, inputs, plan=plan, commit=commit, found=found)
                self._start(run, job_of(run, TaskKind.EXPORT, attempt=attempt), export)

    def _record(self, run: Run, action: CommitPlan | CommitExpiredProfiles | CommitEvaluation, observed: Observed) -> tuple[str, Wire]:
        """What this action writes into the store, and its key."""
        match action:
            case CommitPlan(plan):
                return names.round_plan(plan.round), plan
            case CommitExpiredProfiles(round_, profiles):
                return names.expired_profiles(round_), profiles
            case CommitEvaluation(evaluation):
                return names.round_evaluation(evaluation.round), self._with_estimates(run, evaluation, observed)

    def _with_estimates(self, run: Run, evaluation: RoundEvaluation, observed: Observed) -> RoundEvaluation:
        """The evaluation with what each site's update did to the loss, which takes the whole evaluation before it."""
        commit = observed.commits.get(evaluation.round)
        before = self.cache.read_once(self.store, names.round_evaluation(evaluation.round - 1), RoundEvaluation) if commit else None
        if commit is None or before is None:
            return evaluation
        estimates = loss_estimates(commit.contributions, before, evaluation, run.spec.aggregation.max_site_weight)
        return evaluation.model_copy(update={"first_order_estimates": estimates})

    def _aggregation(self, run: Run, action: StartAggregation, observed: Observed) -> AggregationTask:
        plan = _newest_plan(observed)
        spec = with_planned_rule(run.spec, plan).aggregation
        return AggregationTask(
            store=self.address,
            run=run.ref,
            round=action.round,
            method=spec.method,
            rule=spec.rule,
            malicious_sites=spec.malicious_sites,
            normalization=spec.normalization,
            max_site_weight=spec.max_site_weight,
            clipping=spec.clipping,
            clip_multiple=spec.clip_multiple,
            optimizer=spec.optimizer,
            warmup_steps=tasks.hyperparameters_of(plan, run.spec).warmup_steps,
            max_rank=run.spec.planning.max_rank,
            max_norm=spec.max_norm,
            updates=action.updates,
            absent=action.absent,
            refused=dict(action.refused),
            out_of_memory=dict(action.out_of_memory),
            late=action.late,
            previous=_previous_adapter(action, observed),
            plan_sha256=hash_of(plan),
        )

    def _start(self, run: Run, job: Job, task: Wire, expected: JobResources = JobResources()) -> None:  # noqa: B008 -- frozen
        """Start a job within its site's limits; `expected` holds what is known of this task beside them."""
        resources = self.placement.resources(run, job.site)
        resources = replace(resources, expected_bytes=expected.expected_bytes, update_bytes=expected.update_bytes)
        self.backend.start(job, task.to_json(), resources)


def _newest_plan(observed: Observed) -> RoundPlan:
    assert observed.plan is not None  # noqa: S101 -- sites train and evaluate after the plan only
    return observed.plan


def _update_bytes(action: StartAggregation, observed: Observed) -> int:
    """What the aggregation copies, as results and commit state it: what has another size is refused before it is copied."""
    plan, previous = _newest_plan(observed), _previous_adapter(action, observed)
    updates = (observed.updates[update.site][update.attempt] for update in action.updates)
    return sum(_adapter_bytes(update, plan) for update in updates) + (previous.size if previous else 0)


def _adapter_bytes(update: AdmittedUpdate, plan: RoundPlan) -> int:
    """Of one that travels encoded, as many as it is decoded to. 0: it is refused."""
    size, most = update.adapter.size if update.adapter else 0, max_adapter_bytes(plan, update.site)
    if size > most:
        return 0
    return size if plan.codec is None else most


def _previous_adapter(action: StartAggregation, observed: Observed) -> Artifact | None:
    commit = observed.commits.get(action.round - 1)
    return commit.adapter if commit else None
