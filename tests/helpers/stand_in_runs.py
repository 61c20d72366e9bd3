"""Whole runs with stand-ins for the trainers: runs and sites as a test wants them, a job backend, and a world around both.

`StandInBackend` takes the place of processes and Jobs: it "does" a task by writing, through the task's own URLs, what a
trainer would write. Everything else around it is real: decide, tasks, the directory store, the aggregation.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer_results import Trainer, evaluation_within, good_trainer, perform

from fedpipe_operator.aggregation.worker import AggregationTask, aggregate
from fedpipe_operator.api import EdgeSite, FederatedFineTune, FineTuneStatus
from fedpipe_operator.backend import Job, JobResources, JobState, JobStatus
from fedpipe_operator.local.session import Session
from fedpipe_operator.reconcile.planning import PlanningTask, plan_round_of
from fedpipe_operator.reconcile.progress import ProgressReader
from fedpipe_operator.reconcile.reconciler import Reconciler
from fedpipe_operator.reconcile.tasks import TaskInputs
from fedpipe_operator.rounds import Event, Run
from fedpipe_operator.store import DirectoryStore
from fedpipe_operator.store.address import DirectoryAddress
from fedpipe_trainer.contract import Data, ExitCode, Model, TrainTask, parse_task


def a_site(name: str, **spec: Any) -> EdgeSite:
    """A site with 8 GiB. Its policy is the loosest: so a test decides by the quorum how many updates a round needs."""
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "volume": {"persistentVolumeClaim": {"claimName": name}}}
    body = {"data": data, "capacity": {"memory": "8Gi"}, "modelClaims": ["models"]}
    body |= {"policy": {"minSites": 1, "localBaseline": True, "maxShownRows": 20}}
    document = {"metadata": {"name": name}, "spec": body | spec}
    return EdgeSite.model_validate(document)


def a_run(fleet: int | list[EdgeSite] = 3, /, **spec: Any) -> Run:
    """A classification run over this many sites (or these); `spec` replaces whole fields of the spec."""
    body = {
        "model": {"source": "pvc://models/toy"},
        "task": {"type": "SequenceClassification", "labels": ["a", "b", "c"], "maxLength": 16},
        "rounds": {"count": 2, "deadline": "10m"},
        "planning": {"bits": [16], "ranks": [4], "batchSizes": [2]},
        "store": {"bucket": "fedpipe"},
    }
    document = {"metadata": {"name": "toy", "uid": "uid-1"}, "spec": {**body, **spec}}
    sites = [a_site(f"site-{letter}") for letter in "abcdefgh"[:fleet]] if isinstance(fleet, int) else fleet
    return Run(FederatedFineTune.model_validate(document), tuple(sorted(sites, key=lambda site: site.name)))


@dataclass
class StandInBackend:
    """A job backend: `trainer` does one job at each `work()`; nothing happens by itself."""

    folder: Path
    trainer: Trainer = good_trainer
    clock: Callable[[], float] = lambda: 0.0
    jobs: dict[str, JobStatus] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)

    def start(self, job: Job, task_json: str, resources: JobResources) -> None:
        """Queue the job, unless it is there."""
        del resources
        if job.name not in self.jobs:
            self.started.append(job.name)
            self.tasks[job.name] = task_json
            self.jobs[job.name] = JobStatus(job, JobState.RUNNING, self.clock())

    def observe(self) -> dict[str, JobStatus]:
        """All jobs."""
        return dict(self.jobs)

    def discard(self, name: str) -> None:
        """Forget a job."""
        self.discarded.append(name)
        self.jobs.pop(name, None)

    def wait(self, timeout: float) -> bool:
        """Nothing changes by waiting."""
        del timeout
        return False

    def close(self) -> None:
        """There is nothing to close."""

    def active_jobs(self) -> list[str]:
        """Jobs that have not ended, in order of name."""
        return sorted(name for name, seen in self.jobs.items() if seen.state is JobState.RUNNING)

    def evaluate(self, name: str) -> None:
        """Do the evaluation that a training begins with; the job goes on."""
        task = parse_task(self.tasks[name])
        assert isinstance(task, TrainTask)
        evaluation = evaluation_within(task)
        assert evaluation is not None, f"{name} evaluates nothing"
        perform(self.trainer, evaluation, self.folder)

    def work(self, name: str) -> None:
        """Do one job to its end."""
        seen, text = self.jobs[name], self.tasks[name]
        if seen.job.kind == "aggregate":
            task = AggregationTask.model_validate_json(text)
            assert isinstance(task.store, DirectoryAddress)
            aggregate(task, DirectoryStore(Path(task.store.root)), self.clock)
            self.jobs[name] = replace(seen, state=JobState.SUCCEEDED, exit_code=0)
            return
        if seen.job.kind == "plan":
            planning = PlanningTask.model_validate_json(text)
            assert isinstance(planning.store, DirectoryAddress)
            plan_round_of(planning, DirectoryStore(Path(planning.store.root)))
            self.jobs[name] = replace(seen, state=JobState.SUCCEEDED, exit_code=0)
            return
        result = perform(self.trainer, parse_task(text), self.folder)
        if result is None:
            self.kill(name)
            return
        code = result.failure.reason.exit_code if result.failure else ExitCode.OK
        state = JobState.FAILED if result.failure else JobState.SUCCEEDED
        self.jobs[name] = replace(seen, state=state, exit_code=int(code))

    def kill(self, name: str) -> None:
        """End one job as a killed process ends: without a result."""
        message = "the process was killed"
        self.jobs[name] = replace(self.jobs[name], state=JobState.FAILED, exit_code=137, reason="Killed", message=message)


@dataclass
class StandInPlacement:
    """Places that only the stand-in trainer visits."""

    def inputs(self, run: Run, site: str) -> TaskInputs:
        """The same model and data for everyone."""
        del run, site
        return TaskInputs(Model(source="file:///toy"), Data(train="/train", validation="/validation"))

    def resources(self, run: Run, site: str) -> JobResources:
        """No limits."""
        del run, site
        return JobResources()


@dataclass
class World:
    """A run, its store in a folder, its job backend, and a clock that only `now` moves."""

    run: Run
    folder: Path
    trainer: Trainer = good_trainer
    now: float = 1000.0
    reads_progress: bool = False
    """Whether trainers write their progress to the store, as on a cluster."""
    events: list[Event] = field(default_factory=list)
    backend: StandInBackend = field(init=False)
    store: DirectoryStore = field(init=False)
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.store = DirectoryStore(self.folder / "store")
        self.backend = StandInBackend(self.folder, self.trainer, lambda: self.now)
        self.restart()

    def restart(self) -> None:
        """A new operator: nothing is remembered but the store, the jobs and the object."""
        address = DirectoryAddress(root=str(self.folder / "store"))
        self.reconciler = Reconciler(
            backend=self.backend,
            store=self.store,
            address=address,
            placement=StandInPlacement(),
            status_writer=self,
            resumed_at=self.now,
            clock=lambda: self.now,
            progress=ProgressReader() if self.reads_progress else None,
        )

    def write_status(self, run: Run, status: FineTuneStatus) -> None:
        """Keep the status on the object."""
        self.run = replace(run, resource=run.resource.model_copy(update={"status": status}))

    def record_event(self, run: Run, event: Event) -> None:
        """Keep the event."""
        del run
        self.events.append(event)

    def reconcile(self) -> Any:
        """One reconcile."""
        return self.reconciler.reconcile(self.run).decision

    def work_until(self, word: str) -> list[str]:
        """Reconcile and work until jobs with this word in their names wait to be done; these are left, and named."""
        for _ in range(500):
            if any(word in name for name in self.backend.active_jobs()):
                return self.backend.active_jobs()
            self.reconcile()
            for name in self.backend.active_jobs():
                if word not in name:
                    self.backend.work(name)
        raise AssertionError(f"no job named {word} was started: {self.conditions()}")

    def settle(self) -> None:
        """Reconcile and work until nothing more happens."""
        for _ in range(500):
            decision = self.reconcile()
            active_jobs = self.backend.active_jobs()
            if active_jobs:
                self.backend.work(active_jobs[0])
            elif not decision.actions:
                return
        raise AssertionError(f"the run does not settle: {self.conditions()}")

    def settle_with_restarts(self, seed: int = 0) -> None:
        """The same with a new operator at every reconcile, and the jobs in an order of their own, until the run is complete."""
        for reconcile in range(500):
            self.restart()
            self.reconcile()
            active_jobs = self.backend.active_jobs()
            if active_jobs:
                self.backend.work(active_jobs[(reconcile * 7 + seed) % len(active_jobs)])
            if "Complete" in self.conditions():
                return
        raise AssertionError(f"the run does not settle: {self.conditions()}")

    def conditions(self) -> dict[str, str]:
        """Reason by type, of the conditions that are true."""
        return {str(one.type): str(one.reason) for one in self.run.resource.status.conditions if one.status == "True"}

    def message(self, kind: str) -> str:
        """The message of this condition."""
        return next(one.message for one in self.run.resource.status.conditions if one.type == kind)

    def final_adapter(self) -> bytes:
        """The bytes of the last round's global adapter."""
        keys = [key for key in self.store.list("rounds") if "/global/adapter-" in key]
        data = self.store.read(max(keys))
        assert data is not None
        return data


@dataclass
class Machine:
    """A folder with a run's store, and the backend that the run's session and those of its local-only baselines share."""

    folder: Path
    run: Run = field(default_factory=a_run)
    trainer: Callable[[Any, Path], Any] = good_trainer

    def __post_init__(self) -> None:
        self.backend = StandInBackend(self.folder, self.trainer, time.time)

    def session(self, **status_writer: Any) -> Session:
        """The run taken up, as a new process does."""
        return Session(
            self.run, self.backend, StandInPlacement(), DirectoryAddress(root=str(self.folder / "store")), resumed_at=0.0, **status_writer
        )

    def drive(self, sessions: Mapping[str, Session]) -> None:
        """Reconcile all of them, and work, until each is over."""
        for _ in range(500):
            for session in sessions.values():
                session.reconcile()
            for name in self.backend.active_jobs():
                self.backend.work(name)
            if all(session.is_finished for session in sessions.values()):
                return
        raise AssertionError([session.run.resource.status for session in sessions.values()])

    def finished(self) -> Session:
        """The run, driven to its end."""
        session = self.session()
        self.drive({"run": session})
        return session
