"""Look, decide, act, write the status once, then tell: the loop's one turn, the same on a cluster and on one machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod
from typing import NamedTuple, Protocol

from fedpipe_operator import names
from fedpipe_operator.aggregation.worker import AggregationTask
from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.backend import Job, JobBackend, Limits
from fedpipe_operator.reconcile import tasks
from fedpipe_operator.reconcile.observe import ObjectCache, observe
from fedpipe_operator.rounds import (
    Action,
    CommitEvaluation,
    CommitPlan,
    Decision,
    Discard,
    Event,
    Observed,
    Run,
    StartAggregation,
    StartEvaluation,
    StartExport,
    StartProfile,
    StartTraining,
    decide,
    job_of,
)
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import StoreAddress
from fedpipe_trainer.contract import TrainResult, TrainTask, Wire


class StatusWriter(Protocol):
    """Where a run's status is kept and its events are told."""

    def write_status(self, run: Run, status: FineTuneStatus) -> None:
        """Replace the run's status."""
        ...

    def record_event(self, run: Run, event: Event) -> None:
        """Tell people that this happened."""
        ...


class Placement(Protocol):
    """Where things are: differs between a cluster (mounts) and one machine (folders)."""

    def inputs(self, run: Run, site: str) -> tasks.TaskInputs:
        """Where a trainer of this site finds model and data; site "" needs the model alone."""
        ...

    def limits(self, run: Run, site: str) -> Limits:
        """What a job of this site may use."""
        ...


class ReconcileResult(NamedTuple):
    """What a turn saw, and what it led to."""

    observed: Observed
    decision: Decision


@dataclass
class Reconciler:
    """One run's way through the doors. It keeps nothing that the store and the jobs do not also say."""

    backend: JobBackend
    store: Store
    address: StoreAddress
    placement: Placement
    status_writer: StatusWriter
    resumed_at: float
    clock: Callable[[], float] = time.time
    cache: ObjectCache = field(default_factory=ObjectCache)
    busy: Mapping[str, str] = field(default_factory=dict)
    """Sites that other runs use up, as `Observed.busy` has it."""

    def turn(self, run: Run) -> ReconcileResult:
        """Look, decide, act, write status, tell: one turn."""
        observed = replace(observe(run, self.backend.observe(), self.store, self.cache, self.resumed_at), busy=self.busy)
        decision = decide(run, observed, self.clock())
        for action in decision.actions:
            self._take(action, run, observed)
        if decision.status != run.resource.status:
            self.status_writer.write_status(run, decision.status)
        for event in decision.events:
            self.status_writer.record_event(run, event)
        return ReconcileResult(observed, decision)

    @singledispatchmethod
    def _take(self, action: Action, run: Run, observed: Observed) -> None:
        """Take one action. Each is safe to take twice."""
        raise NotImplementedError(f"no way to take {action}")

    @_take.register
    def _(self, action: StartProfile, run: Run, observed: Observed) -> None:
        del observed
        task = tasks.profile_task(self._task_context(run), action, self.placement.inputs(run, action.site))
        self._start(run, job_of(run, "profile", site=action.site, attempt=action.attempt), task)

    @_take.register
    def _(self, action: CommitPlan, run: Run, observed: Observed) -> None:
        del run, observed
        self.store.create(names.round_plan(action.plan.round), action.plan.to_json().encode())

    @_take.register
    def _(self, action: StartTraining, run: Run, observed: Observed) -> None:
        previous = observed.commits.get(action.round - 1)
        inputs = self.placement.inputs(run, action.site)
        task = tasks.training_task(self._task_context(run), action, inputs, plan=observed.plans[action.round], previous=previous)
        self._start(run, job_of(run, "train", site=action.site, round_=action.round, attempt=action.attempt), task)

    @_take.register
    def _(self, action: StartAggregation, run: Run, observed: Observed) -> None:
        task = AggregationTask(
            store=self.address,
            run=run.ref,
            round=action.round,
            method=run.spec.aggregation.method,
            max_rank=max(run.spec.planning.ranks),
            max_norm=run.spec.aggregation.max_norm,
            updates=action.updates,
            absent=action.absent,
            update_bytes=sum(_size(observed.updates[update.site][update.attempt]) for update in action.updates),
        )
        self._start(run, job_of(run, "aggregate", round_=action.round, attempt=action.attempt), task)

    @_take.register
    def _(self, action: StartEvaluation, run: Run, observed: Observed) -> None:
        plan, commit = _of_round(observed, action.round)
        task = tasks.evaluation_task(self._task_context(run), action, self.placement.inputs(run, action.site), plan=plan, commit=commit)
        self._start(run, job_of(run, "evaluate", site=action.site, round_=action.round, attempt=action.attempt), task)

    @_take.register
    def _(self, action: CommitEvaluation, run: Run, observed: Observed) -> None:
        del run, observed
        self.store.create(names.round_evaluation(action.evaluation.round), action.evaluation.to_json().encode())

    @_take.register
    def _(self, action: StartExport, run: Run, observed: Observed) -> None:
        commit = observed.commits[action.round]
        task = tasks.export_task(
            self._task_context(run), action, self.placement.inputs(run, ""), plan=observed.plans[action.round], commit=commit
        )
        self._start(run, job_of(run, "export", attempt=action.attempt), task)

    @_take.register
    def _(self, action: Discard, run: Run, observed: Observed) -> None:
        del run, observed
        self.backend.discard(action.job)

    def _task_context(self, run: Run) -> tasks.TaskContext:
        return tasks.TaskContext(run, self.store)

    def _start(self, run: Run, job: Job, task: Wire) -> None:
        limits = self.placement.limits(run, job.site)
        if isinstance(task, TrainTask):
            limits = replace(limits, expected_bytes=task.plan.forecast.memory_bytes)
        self.backend.start(job, task.to_json(), limits)


def _size(update: TrainResult) -> int:
    return update.adapter.size if update.adapter else 0


def _of_round(observed: Observed, round_: int) -> tuple[RoundPlan, RoundCommit | None]:
    """A round's plan and commit; round 0, the base, goes by round 1's plan and has no commit."""
    return observed.plans[max(round_, 1)], observed.commits.get(round_)
