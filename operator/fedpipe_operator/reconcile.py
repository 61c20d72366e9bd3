"""Look, decide, act, write the status once, then tell: the loop's one turn, the same on a cluster and on one machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod
from typing import NamedTuple, Protocol

from fedpipe_operator import names, tasks
from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.doors import Door, Job, Limits
from fedpipe_operator.observe import Memory, observe
from fedpipe_operator.records import RoundManifest, RoundPlan
from fedpipe_operator.rounds import (
    Action,
    CommitEvaluation,
    CommitPlan,
    Decision,
    Discard,
    Event,
    Run,
    Seen,
    StartAggregation,
    StartEvaluation,
    StartExport,
    StartProfile,
    StartTraining,
    decide,
    job_of,
)
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import StoreAddress
from fedpipe_operator.worker import AggregationTask
from fedpipe_trainer.contract import TrainTask, UpdateManifest, Wire


class Voice(Protocol):
    """Where a run's status is kept and its events are told."""

    def write_status(self, run: Run, status: FineTuneStatus) -> None:
        """Replace the run's status."""
        ...

    def tell(self, run: Run, event: Event) -> None:
        """Tell people that this happened."""
        ...


class Map(Protocol):
    """Where things are: differs between a cluster (mounts) and one machine (folders)."""

    def place(self, run: Run, site: str) -> tasks.Place:
        """Where a trainer of this site finds model and data; site "" needs the model alone."""
        ...

    def limits(self, run: Run, site: str) -> Limits:
        """What a job of this site may use."""
        ...


class Turn(NamedTuple):
    """What a turn saw, and what it led to."""

    seen: Seen
    decision: Decision


@dataclass
class Reconciler:
    """One run's way through the doors. It keeps nothing that the store and the jobs do not also say."""

    door: Door
    store: Store
    address: StoreAddress
    map: Map
    voice: Voice
    resumed_at: float
    clock: Callable[[], float] = time.time
    memory: Memory = field(default_factory=Memory)
    busy: Mapping[str, str] = field(default_factory=dict)
    """Sites that other runs use up, as `Seen.busy` has it."""

    def turn(self, run: Run) -> Turn:
        """Look, decide, act, write status, tell: one turn."""
        seen = replace(observe(run, self.door.observe(), self.store, self.memory, self.resumed_at), busy=self.busy)
        decision = decide(run, seen, self.clock())
        for action in decision.actions:
            self._take(action, run, seen)
        if decision.status != run.resource.status:
            self.voice.write_status(run, decision.status)
        for event in decision.events:
            self.voice.tell(run, event)
        return Turn(seen, decision)

    @singledispatchmethod
    def _take(self, action: Action, run: Run, seen: Seen) -> None:
        """Take one action. Each is safe to take twice."""
        raise NotImplementedError(f"no way to take {action}")

    @_take.register
    def _(self, action: StartProfile, run: Run, seen: Seen) -> None:
        del seen
        task = tasks.profile_task(self._desk(run), action, self.map.place(run, action.site))
        self._start(run, job_of(run, "profile", site=action.site, attempt=action.attempt), task)

    @_take.register
    def _(self, action: CommitPlan, run: Run, seen: Seen) -> None:
        del run, seen
        self.store.create(names.round_plan(action.plan.round), action.plan.to_json().encode())

    @_take.register
    def _(self, action: StartTraining, run: Run, seen: Seen) -> None:
        previous = seen.commits.get(action.round - 1)
        place = self.map.place(run, action.site)
        task = tasks.training_task(self._desk(run), action, place, plan=seen.plans[action.round], previous=previous)
        self._start(run, job_of(run, "train", site=action.site, round_=action.round, attempt=action.attempt), task)

    @_take.register
    def _(self, action: StartAggregation, run: Run, seen: Seen) -> None:
        task = AggregationTask(
            store=self.address,
            run=run.ref,
            round=action.round,
            method=run.spec.aggregation.method,
            max_rank=max(run.spec.planning.ranks),
            max_norm=run.spec.aggregation.max_norm,
            updates=action.updates,
            absent=action.absent,
            update_bytes=sum(_size(seen.updates[update.site][update.attempt]) for update in action.updates),
        )
        self._start(run, job_of(run, "aggregate", round_=action.round, attempt=action.attempt), task)

    @_take.register
    def _(self, action: StartEvaluation, run: Run, seen: Seen) -> None:
        plan, commit = _of_round(seen, action.round)
        task = tasks.evaluation_task(self._desk(run), action, self.map.place(run, action.site), plan=plan, commit=commit)
        self._start(run, job_of(run, "evaluate", site=action.site, round_=action.round, attempt=action.attempt), task)

    @_take.register
    def _(self, action: CommitEvaluation, run: Run, seen: Seen) -> None:
        del run, seen
        self.store.create(names.round_evaluation(action.evaluation.round), action.evaluation.to_json().encode())

    @_take.register
    def _(self, action: StartExport, run: Run, seen: Seen) -> None:
        commit = seen.commits[action.round]
        task = tasks.export_task(self._desk(run), action, self.map.place(run, ""), plan=seen.plans[action.round], commit=commit)
        self._start(run, job_of(run, "export", attempt=action.attempt), task)

    @_take.register
    def _(self, action: Discard, run: Run, seen: Seen) -> None:
        del run, seen
        self.door.discard(action.job)

    def _desk(self, run: Run) -> tasks.Desk:
        return tasks.Desk(run, self.store)

    def _start(self, run: Run, job: Job, task: Wire) -> None:
        limits = self.map.limits(run, job.site)
        if isinstance(task, TrainTask):
            limits = replace(limits, expected_bytes=task.plan.forecast.memory_bytes)
        self.door.start(job, task.to_json(), limits)


def _size(update: UpdateManifest) -> int:
    return update.adapter.size if update.adapter else 0


def _of_round(seen: Seen, round_: int) -> tuple[RoundPlan, RoundManifest | None]:
    """A round's plan and commit; round 0, the base, goes by round 1's plan and has no commit."""
    return seen.plans[max(round_, 1)], seen.commits.get(round_)
