"""A stand-in for the API server and the Job controller: objects in a dict, Jobs that end when a test ends them.

What the real ones enforce is tested on a real cluster (tests/e2e); here the operator's reconciles are.
"""

import copy
import json
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from crds import default_status
from stand_in_runs import a_run
from trainer_results import Trainer, good_trainer, perform

from fedpipe_operator import worker
from fedpipe_operator.api.meta import LABEL_SITE
from fedpipe_operator.backend import JobState
from fedpipe_operator.cluster import KubeJob, RunReconciler, RunView, kube_job
from fedpipe_operator.cluster.api import JOBS, PODS, RUNS, SECRETS, Kind, Plain
from fedpipe_operator.cluster.backend import Cluster
from fedpipe_operator.cluster.credentials import StoreConnection
from fedpipe_operator.cluster.expectations import Expectations
from fedpipe_operator.cluster.status_writer import ClusterStatusWriter
from fedpipe_operator.cluster.workers import Workers, _Launch
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.observer import Observer
from fedpipe_operator.rounds import Run
from fedpipe_operator.settings import Settings
from fedpipe_operator.sites import Node
from fedpipe_operator.store import Credentials, DirectoryStore
from fedpipe_operator.store.address import DirectoryAddress
from fedpipe_operator.tracking.write import Work
from fedpipe_trainer.contract import ExitCode, parse_task

SETTINGS = Settings(trainer_image="trainer:1", operator_image="operator:1")
_RECONCILES: Final = 300
"""In which a run of the tests comes to everything that it comes to at all."""


def stamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class StandInApi:
    """Objects by plural, namespace and name; every call is noted."""

    clock: Any
    objects: dict[tuple[str, str, str], Plain] = field(default_factory=dict)
    noted: list[str] = field(default_factory=list)
    trouble: dict[str, FedPipeError] = field(default_factory=dict)
    """What a call raises, by `verb plural`, or by `verb plural name` for one object."""
    failing: dict[str, FedPipeError] = field(default_factory=dict)
    """What the creation of a site's Jobs raises."""
    refused: set[str] = field(default_factory=set)
    """Sites whose Jobs a policy denies."""
    unknown_fields: set[str] = field(default_factory=set)
    """Of a status, as an API server with older CRDs knows it: they are dropped without an error."""
    version: int = 0

    def get(self, kind: Kind, namespace: str, name: str) -> Plain | None:
        self._note("get", kind, name)
        return copy.deepcopy(self.objects.get((kind.plural, namespace, name)))

    def find(
        self,
        kind: Kind,
        namespace: str,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        may_be_old: bool = False,
    ) -> list[Plain]:
        self._note("list", kind, "")
        del fields, may_be_old
        return [one for one in self.all(kind, namespace) if (labels or {}).items() <= one["metadata"].get("labels", {}).items()]

    def create(self, kind: Kind, namespace: str, body: Plain) -> Plain | None:
        self._note("create", kind, body["metadata"].get("name", ""))
        site = body["metadata"].get("labels", {}).get(LABEL_SITE)
        if kind is JOBS and site in self.failing:
            raise self.failing[site]
        if site in self.refused:
            raise UserError("ApiRefused", "a policy denied the request")
        name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{self.version}"
        if (kind.plural, namespace, name) in self.objects:
            return None
        return self._put(kind, namespace, name, body)

    def apply(self, kind: Kind, namespace: str, body: Plain) -> None:
        self._note("apply", kind, body["metadata"]["name"])
        self._put(kind, namespace, body["metadata"]["name"], body)

    def merge(self, kind: Kind, namespace: str, name: str, body: Plain) -> Plain | None:
        self._note("merge", kind, name)
        known = self.objects.get((kind.plural, namespace, name))
        return None if known is None else self._put(kind, namespace, name, _merged(known, body))

    def replace_status(self, kind: Kind, namespace: str, name: str, status: Plain) -> Plain | None:
        self._note("status", kind, name)
        known = self.objects.get((kind.plural, namespace, name))
        kept = {field: value for field, value in status.items() if field not in self.unknown_fields}
        return None if known is None else self._put(kind, namespace, name, known | {"status": kept})

    def merge_status_of_job(self, name: str, status: Plain) -> None:
        """What the Job controller says of a Job."""
        known = self.objects[JOBS.plural, "default", name]
        self._put(JOBS, "default", name, known | {"status": known.get("status", {}) | status})

    def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, foreground: bool = False) -> None:
        del foreground
        self._note("delete", kind, name)
        known = self.objects.get((kind.plural, namespace, name))
        if known is not None and known["metadata"]["uid"] == uid:
            del self.objects[kind.plural, namespace, name]

    def delete_all(self, kind: Kind, namespace: str, labels: Mapping[str, str], *, foreground: bool = False) -> None:
        self._note("deletecollection", kind, "foreground" if foreground else "")
        for one in self.all(kind, namespace):
            if labels.items() <= one["metadata"].get("labels", {}).items():
                del self.objects[kind.plural, namespace, one["metadata"]["name"]]

    def all(self, kind: Kind, namespace: str = "default") -> list[Plain]:
        """The objects of the namespace; of every namespace if it is empty."""
        return [copy.deepcopy(one) for (plural, of, _), one in self.objects.items() if plural == kind.plural and namespace in ("", of)]

    def _put(self, kind: Kind, namespace: str, name: str, body: Plain) -> Plain:
        self.version += 1
        known = self.objects.get((kind.plural, namespace, name), {}).get("metadata", {})
        made = {"creationTimestamp": stamp(self.clock()), "uid": f"uid-of-{kind.plural}-{name}", "generation": 1}
        meta = made | known | body["metadata"] | {"name": name, "namespace": namespace, "resourceVersion": str(self.version)}
        self.objects[kind.plural, namespace, name] = copy.deepcopy(body | {"metadata": meta})
        return copy.deepcopy(self.objects[kind.plural, namespace, name])

    def _note(self, verb: str, kind: Kind, name: str) -> None:
        self.noted.append(f"{verb} {kind.plural} {name}".strip())
        for call in (f"{verb} {kind.plural}", f"{verb} {kind.plural} {name}"):
            if (error := self.trouble.get(call)) is not None:
                raise error


@dataclass
class StandInStores:
    """Folders in the place of buckets."""

    folder: Path
    trouble: FedPipeError | None = None
    credentials: Credentials = field(default_factory=lambda: Credentials("a", "b"))

    def of(self, run: Run) -> StoreConnection:
        if self.trouble is not None:
            raise self.trouble
        root = self.folder / run.resource.metadata.uid
        return StoreConnection(DirectoryStore(root), DirectoryAddress(root=str(root)), self.credentials)

    def tracking(self, run: Run) -> Work:
        opened = self.of(run)
        return Work(run, opened.store, "s3://fedpipe/runs")

    def forget(self, uid: str) -> None:
        """Folders stay as they are."""


@dataclass
class WorkersInThreads(Workers):
    """They do the same work in threads of this process: it takes longer to start one than to plan or aggregate a toy."""

    def _execute(self, key: tuple[str, str], launch: _Launch) -> None:
        with self._lock:
            if key not in self._statuses:
                return
            self._statuses[key] = replace(self._statuses[key], state=JobState.RUNNING, message="")
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
            file.write(launch.task_json)
            file.flush()
            try:
                code, message = worker.perform(Path(file.name))
            except Exception:  # noqa: BLE001 -- as a process that ends with a traceback
                code, message = ExitCode.BAD_TASK, traceback.format_exc()
        self._end(key, code, message)


@dataclass
class KubeWorld:
    """Runs on a stand-in cluster: the operator's reconciles, and trainers that do the tasks of the Secrets."""

    folder: Path
    run: Run = field(default_factory=a_run)
    trainer: Trainer = good_trainer
    now: float = 1_000_000.0
    settings: Settings = SETTINGS
    nodes: tuple[Node, ...] | None = None
    observer: Observer = field(default_factory=Observer)
    ended: threading.Event = field(default_factory=threading.Event)
    failures: dict[str, int] = field(default_factory=dict)
    """Failed reconciles in a row, by run."""
    workers: type[Workers] = WorkersInThreads
    """The real ones have processes."""

    def __post_init__(self) -> None:
        self.api = StandInApi(self.clock)
        self.stores = StandInStores(self.folder / "stores")
        self.add(self.run)
        self.restart()

    def clock(self) -> float:
        return self.now

    def add(self, run: Run) -> None:
        """Apply the run's object."""
        plain = run.resource.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"status"})
        self.api._put(RUNS, run.resource.metadata.namespace, run.name, plain | {"status": default_status("FederatedFineTune")})

    def restart(self) -> None:
        """A new operator: nothing is remembered."""
        workers = self.workers(self.clock, on_end=lambda _uid: self.ended.set())
        cluster = Cluster(self.api, self.settings, Expectations(self.clock), workers, self.clock)  # type: ignore[arg-type]
        status_writer = ClusterStatusWriter(self.api, self.clock)  # type: ignore[arg-type]
        self.runs = RunReconciler(cluster, self.stores, status_writer, observer=self.observer)  # type: ignore[arg-type]

    def body(self, run: str = "toy") -> Plain:
        """The run's object as it is now."""
        return copy.deepcopy(self.api.objects[RUNS.plural, "default", run])

    def view(self, run: str = "toy") -> RunView:
        """What the watch would say."""
        body = self.body(run)
        jobs = self.jobs()
        return RunView(
            body=body,
            sites=self.run.sites,
            jobs={job.job.name: job for job in jobs if job.run_uid == body["metadata"]["uid"]},
            at_sites={site.name: [job for job in jobs if job.job.site == site.name] for site in self.run.sites},
            nodes=self.nodes,
        )

    def reconcile(self, run: str = "toy") -> float | None:
        """One reconcile, as the work queue does it: failures in a row are counted, and errors come out."""
        failures = self.failures.get(run, 0)
        self.failures[run] = failures + 1
        requeue_at = self.runs.reconcile(self.view(run), failures)
        self.failures[run] = 0
        return requeue_at

    def jobs(self) -> list[KubeJob]:
        """The Jobs that the operator made."""
        return [job for one in self.api.all(JOBS) if (job := kube_job(one)) is not None]

    def active_jobs(self) -> list[str]:
        """Jobs that have not ended, by their names within the run."""
        return sorted(job.job.name for job in self.jobs() if job.is_active)

    def object_name(self, name: str) -> str:
        """The name in Kubernetes of the Job with this name in its run."""
        return next(job.name for job in self.jobs() if job.job.name == name)

    def task_of(self, name: str) -> Plain:
        """The task in the Secret of the Job with this name in its run."""
        task: Plain = json.loads(self.api.objects[SECRETS.plural, "default", self.object_name(name)]["stringData"]["task.json"])
        return task

    def work(self, name: str) -> None:
        """Have the Job's pod do its task, and the Job end as that did."""
        task = parse_task(json.dumps(self.task_of(name)))
        result = perform(self.trainer, task, self.folder)
        if result is None:
            self.end(name, "Failed", "BackoffLimitExceeded")
            return
        code = result.failure.reason.exit_code if result.failure else ExitCode.OK
        self.end(name, "Failed" if code else "Complete", "PodFailurePolicy" if code else "")

    def end(self, name: str, condition: str, reason: str = "", message: str = "") -> None:
        """Let the Job end."""
        conditions = {"type": condition, "status": "True", "reason": reason, "message": message}
        self.api.replace_status(JOBS, "default", self.object_name(name), {"conditions": [conditions]})

    def pod(self, job: str, status: Plain) -> None:
        """Let the Job have a pod with this status."""
        labels = {"batch.kubernetes.io/job-name": self.object_name(job)}
        self.api._put(PODS, "default", f"{job}-pod", {"metadata": {"labels": labels}, "status": status})

    def work_until(self, word: str) -> None:
        """Reconcile and work until Jobs with this word in their names wait to be done; these are left."""
        for _ in range(_RECONCILES):
            if any(word in name for name in self.active_jobs()):
                return
            self.reconcile()
            for name in self.active_jobs():
                if word not in name:
                    self.work(name)
            self.await_workers()
        raise self._stuck(word)

    def work_until_started(self, process: str) -> None:
        """Reconcile and work until this process of the operator is started; it is not waited for."""
        for _ in range(_RECONCILES):
            if process in self.runs.cluster.workers.statuses(self.run.resource.metadata.uid):
                return
            self.reconcile()
            for name in self.active_jobs():
                self.work(name)
        raise self._stuck(process)

    def settle(self, run: str = "toy") -> None:
        """Reconcile and work until the run is over."""
        for _ in range(_RECONCILES):
            try:
                self.reconcile(run)
            except TransientError:
                continue
            if self.conditions(run).get("Ready") or self.conditions(run).get("Failed"):
                return
            active_jobs = [name for name in self.active_jobs() if name.startswith(run)]
            if active_jobs:
                self.work(active_jobs[0])
            else:
                self.await_workers()
        raise self._stuck(run)

    def _stuck(self, name: str) -> AssertionError:
        """What a run that does not come to an end, or to a task, looks like."""
        statuses = {of: body.get("status") for (kind, _, of), body in self.api.objects.items() if kind == RUNS.plural}
        return AssertionError(f"it never came to {name}: {json.dumps(statuses, indent=1)}")

    def await_workers(self) -> None:
        """Wait for the aggregations that are under way."""
        while any(statuses.exit_code is None for statuses in self.runs.cluster.workers.statuses(self.run.resource.metadata.uid).values()):
            assert self.ended.wait(60)
            self.ended.clear()

    def conditions(self, run: str = "toy") -> dict[str, str]:
        """Reason by type, of the conditions that are true."""
        conditions = self.body(run).get("status", {}).get("conditions", [])
        return {one["type"]: one["reason"] for one in conditions if one["status"] == "True"}

    def condition(self, kind: str, run: str = "toy") -> Plain:
        """The condition of this type."""
        found: Plain = next(one for one in self.body(run)["status"]["conditions"] if one["type"] == kind)
        return found

    def events(self) -> list[tuple[str, str]]:
        """Reason and message of every event."""
        return [(one["reason"], one["message"]) for (plural, _, _), one in self.api.objects.items() if plural == "events"]


def renamed(run: Run, name: str) -> Run:
    """The same run under another name."""
    metadata = run.resource.metadata.model_copy(update={"name": name, "uid": f"uid-{name}"})
    return replace(run, resource=run.resource.model_copy(update={"metadata": metadata}))


def _merged(base: Plain, change: Plain) -> Plain:
    """A JSON merge patch (RFC 7396)."""
    merged = dict(base)
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(base.get(name, {}), value) if isinstance(value, dict) and isinstance(base.get(name), dict) else value
    return merged
