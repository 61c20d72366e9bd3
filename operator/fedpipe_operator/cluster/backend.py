"""`ClusterBackend`: a run's jobs as Kubernetes Jobs; plans of many sites and small aggregations as processes of the operator."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fedpipe_operator.api import EdgeSite, Reason, parse_duration
from fedpipe_operator.api.meta import ANNOTATION_EXIT_CODE, ANNOTATION_MESSAGE, ANNOTATION_REASON
from fedpipe_operator.backend import Job, JobResources, JobState, JobStatus, TaskKind
from fedpipe_operator.cluster.api import JOBS, SECRETS, Api
from fedpipe_operator.cluster.api_errors import REFUSED, UNAVAILABLE
from fedpipe_operator.cluster.expectations import Expectations
from fedpipe_operator.cluster.objects import KubeJob, is_owned_by, kube_job
from fedpipe_operator.cluster.pod_diagnostics import UNSCHEDULABLE, PodDiagnostics, PodWaiting
from fedpipe_operator.cluster.workers import Workers
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.manifests import aggregation_job, task_secret, trainer_job
from fedpipe_operator.memory_budget import MemoryBudget
from fedpipe_operator.reconcile.placement import site_of
from fedpipe_operator.rounds import Run
from fedpipe_operator.settings import Settings
from fedpipe_operator.sites import Node, PoolProblem, find_pool_problem

FINAL: Final = frozenset({"NoNode", "CapacityTooLarge", "VolumeMissing"})
"""Reasons why a pod cannot start that another attempt would meet again."""

_OF_THE_SITE: Final = frozenset({REFUSED, Reason.PRIORITY_CLASS_NOT_ALLOWED})

_FIRST_LOOK_SECONDS: Final = 15.0
"""A pod is not asked for before its Job has this age, or half of the grace if that is less: by then most are ready."""
_FAILING_SECONDS: Final = 60.0
"""What the calls that fail for single Jobs may take together in a reconcile, before it ends: a webhook may take ten for each."""
_LOG: Final = logging.getLogger(__name__)


class _UnansweredError(TransientError):
    """A Job was asked for, and no answer says whether it was made."""


class RefusedJob(NamedTuple):
    """A Job that the API server or the operator's own settings refuse for what its site adds: it costs the site, not the run."""

    status: JobStatus
    generation: int
    """Of the site when it was refused: an edit of the site may correct it."""


class _Wait(NamedTuple):
    """Since when a Job waits for a queue or an autoscaler, or when its last wait was over; Unix seconds."""

    since: float | None
    over_at: float | None


@dataclass
class Cluster:
    """What all runs of an operator share."""

    api: Api
    settings: Settings
    expectations: Expectations
    workers: Workers
    clock: Callable[[], float]
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    """For what is read from the runs' stores."""
    slot_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a site's free job slots are counted and one is taken."""


@dataclass
class ClusterBackend:
    """The `JobBackend` of one run for one reconcile: the cache was read before the reconcile began."""

    cluster: Cluster
    run: Run
    jobs: Mapping[str, KubeJob]
    """The run's own, by name."""
    at_sites: Mapping[str, Sequence[KubeJob]]
    """All runs' Jobs by site: those that the watch knows."""
    nodes: Sequence[Node] | None
    """None if the operator does not watch nodes."""
    diagnostics: PodDiagnostics
    refused: dict[str, RefusedJob]
    """By the Job's name; Jobs that are refused in this reconcile are added."""
    renewed: dict[str, float]
    """By the name of a Job that waits: when its task was last made anew, Unix seconds. Others are taken to have their first one."""
    environment: Mapping[str, str]
    """Variables in which a process of the operator finds the store's credentials."""
    problems: list[FedPipeError] = field(default_factory=list)
    """What could not be done with single Jobs in this reconcile, while the others went on. The next reconcile tries it again."""
    _failing_seconds: float = 0.0

    def observe(self) -> Mapping[str, JobStatus]:
        """Every Job of the run that the watch knows, those that were refused, and the processes in this pod."""
        generations = {site.name: site.metadata.generation for site in self.run.sites}
        refused = {name: one.status for name, one in self.refused.items() if generations.get(one.status.job.site) == one.generation}
        return refused | {name: self._status(job) for name, job in self.jobs.items()} | self.cluster.workers.statuses(self._uid)

    def start(self, job: Job, task_json: str, resources: JobResources) -> None:
        """Run the task, unless a job of this name exists or its site has no free job slot: then it is asked for again.

        One that waits in a queue keeps its place, and the pod that it will have mounts the new task. What the API server refuses for this
        Job alone is one of `problems`.
        """
        with self._for_one_job(job.name):
            self._start(job, task_json, resources)

    def _start(self, job: Job, task_json: str, resources: JobResources) -> None:
        if job.kind is TaskKind.PLAN or (job.kind is TaskKind.AGGREGATE and self._aggregates_here(resources)):
            deadline = parse_duration(self.run.spec.rounds.deadline)
            self.cluster.workers.start(self._namespace, self._uid, job, task_json, environment=self.environment, seconds=deadline)
            return
        if job.name in self.jobs:
            self._create_secret(task_secret(self.run, job, task_json, self.environment))
            self.renewed[job.name] = self.cluster.clock()
            return
        expected = KubeJob(self._namespace, self.run.name, self._uid, job, created_at=self.cluster.clock())
        if self._take_slot(expected):
            try:
                self._create(job, task_json, resources)
            except _UnansweredError:
                self.cluster.expectations.unanswered(expected)
                raise
            except BaseException as error:
                self.cluster.expectations.withdrawn(expected)
                if not (isinstance(error, UserError) and error.reason in _OF_THE_SITE and job.site):
                    raise
                self._remember_refused(job, error)

    def discard(self, name: str) -> None:
        """End a job and forget it; it is observed until its pod is gone. What the API server refuses is one of `problems`."""
        self.cluster.workers.discard(self._uid, name)
        job = self.jobs.get(name)
        if job is not None and not job.is_deleting:
            with self._for_one_job(name):
                self.cluster.api.delete(JOBS, job.namespace, job.name, uid=job.uid, foreground=True)
                self.cluster.expectations.deleted(job)

    def why_busy(self, site: EdgeSite) -> str | None:
        """What a job of this site would wait for; None while the site has a free job slot."""
        watched = {job.name: job for job in self.at_sites.get(site.name, ())}
        known = self.cluster.expectations.at_site(self._namespace, site.name, watched)
        # Of the run's own, one without a uid is one that may not have been created: it is asked for again.
        active = sorted(job.run for job in known.values() if job.is_active and (job.uid or job.run_uid != self._uid))
        if len(active) < site.spec.max_concurrent_jobs:
            return None
        others = sorted({run for run in active if run != self.run.name})
        return f"a free job slot, which {', '.join(others)} {'uses' if len(others) == 1 else 'use'}" if others else "its last Job to end"

    def end_stuck_jobs(self) -> None:
        """End the Jobs whose pods cannot start or go on after their task, so that the attempt is over and nothing waits for ever."""
        for name, job in self.jobs.items():
            with self._for_one_job(name):
                self._end_if_stuck(job)

    def _end_if_stuck(self, job: KubeJob) -> None:
        now, grace = self.cluster.clock(), self.cluster.settings.pending_grace_seconds
        if not job.is_unready or now - job.created_at < min(grace / 2, _FIRST_LOOK_SECONDS):
            return
        waiting = self.diagnostics.waiting(job, now)
        if (end := self.diagnostics.task_end(job)) is not None:
            self._give_up(job, end.reason, end.message, end.exit_code)
        # The pod is younger than its Job if a queue held the Job, or if a drain replaced the pod.
        elif waiting is not None and now - max(job.created_at, waiting.since) >= grace * (1 + waiting.is_slow):
            self._give_up_if_hopeless(job, waiting)

    @contextmanager
    def _for_one_job(self, name: str) -> Iterator[None]:
        """What is done with one Job: an answer of the API server that is about it alone ends nothing else.

        Raises:
            FedPipeError: it is not about it alone, or such answers have taken too long together.
        """
        began_at = self.cluster.clock()
        try:
            yield
        except FedPipeError as error:
            self._failing_seconds += self.cluster.clock() - began_at
            if not error.is_of_one_object or self._failing_seconds >= _FAILING_SECONDS:
                raise
            _LOG.warning("the Job %s has to wait, and the others go on: %s", name, error)
            self.problems.append(error)

    def _give_up_if_hopeless(self, job: KubeJob, waiting: PodWaiting) -> None:
        wrong = self._pool_problem(job) if waiting.reason == UNSCHEDULABLE else None
        if wrong is not None:
            self._give_up(job, str(wrong.reason), f"{wrong.message} (the scheduler: {waiting.message})")
        elif waiting.is_hopeless:
            self._give_up(job, waiting.reason, waiting.message)

    def _give_up(self, job: KubeJob, reason: str, message: str, exit_code: int | None = None) -> None:
        """Have Kubernetes end the Job at once, and record why in the same request: no other operator has to find it out again."""
        annotations = {ANNOTATION_REASON: reason, ANNOTATION_MESSAGE: message}
        if exit_code is not None:
            annotations[ANNOTATION_EXIT_CODE] = str(exit_code)
        body = {"metadata": {"annotations": annotations}, "spec": {"activeDeadlineSeconds": 1}}
        self.cluster.api.merge(JOBS, job.namespace, job.name, body)
        self.cluster.expectations.given_up(job, reason, message, exit_code)

    def _pool_problem(self, job: KubeJob) -> PoolProblem | None:
        site = self._site_of(job)
        if site is None or self.nodes is None or site.spec.autoscaled:
            return None
        return find_pool_problem(site, self.nodes)

    def _site_of(self, job: KubeJob) -> EdgeSite | None:
        return next((site for site in self.run.sites if site.name == job.job.site), None)

    def _remember_refused(self, job: Job, error: UserError) -> None:
        status = JobStatus(job, JobState.FAILED, self.cluster.clock(), None, error.reason, error.message, is_final=True)
        self.refused[job.name] = RefusedJob(status, site_of(self.run, job.site).metadata.generation)

    def _take_slot(self, expected: KubeJob) -> bool:
        """Take one of the site's job slots before the API server knows the Job; False if none is free."""
        with self.cluster.slot_lock:
            if expected.job.site and self.why_busy(site_of(self.run, expected.job.site)) is not None:
                return False
            self.cluster.expectations.created(expected)
            return True

    def _create(self, job: Job, task_json: str, resources: JobResources) -> None:
        settings, api = self.cluster.settings, self.cluster.api
        site = site_of(self.run, job.site) if job.site else None
        is_aggregation = job.kind is TaskKind.AGGREGATE
        body = aggregation_job(self.run, job, settings) if is_aggregation else trainer_job(self.run, job, site, resources, settings)
        self._create_secret(task_secret(self.run, job, task_json, self.environment))
        name = body["metadata"]["name"]
        # If it exists already, an operator before this one made it, and the watch does not know it yet.
        try:
            created = api.create(JOBS, self._namespace, body) or api.get(JOBS, self._namespace, name)
        except TransientError as error:
            if error.reason != UNAVAILABLE:
                raise
            unanswered = _UnansweredError(error.reason, error.message)
            unanswered.is_of_one_object = error.is_of_one_object
            raise unanswered from error
        made = kube_job(created) if created is not None else None
        if made is None or made.run_uid != self._uid:
            raise self._name_taken("Job", name)
        self.cluster.expectations.created(made)

    def _create_secret(self, secret: dict[str, Any]) -> None:
        """Create the task's Secret. One that the run has already is replaced, as its URLs may have expired; no other is ever written."""
        api, name = self.cluster.api, secret["metadata"]["name"]
        if api.create(SECRETS, self._namespace, secret) is not None:
            return
        existing = api.get(SECRETS, self._namespace, name)
        if existing is not None:
            if not is_owned_by(existing["metadata"], self._uid):
                raise self._name_taken("Secret", name)
            api.delete(SECRETS, self._namespace, name, uid=existing["metadata"]["uid"])
        if api.create(SECRETS, self._namespace, secret) is None:
            raise self._name_taken("Secret", name)

    def _name_taken(self, kind: str, name: str) -> TransientError:
        error = TransientError("NameTaken", f"there is a {kind} {self._namespace}/{name} that this run did not make: delete it")
        error.is_of_one_object = True
        return error

    def _status(self, job: KubeJob) -> JobStatus:
        state, reason, message = JobState.PENDING, "", ""
        exit_code: int | None = None
        if job.ended == "Complete":
            state, exit_code = JobState.SUCCEEDED, 0
        elif job.given_up or job.ended:
            state = JobState.FAILED
            exit_code, reason, message = self._end(job)
            if exit_code == 0:  # its task was done, and another container made the Job fail, or had it ended
                state, reason, message = JobState.SUCCEEDED, "", ""
        elif job.is_deleting:
            message = "the pod to end"
        elif job.is_suspended:
            reason, message = "Queued", "the queue to admit its Job"
        elif job.ready:
            state = JobState.RUNNING
        elif (waiting := self.diagnostics.last_waiting(job.job.name)) is not None:
            reason, message = waiting.reason, f"{waiting.reason}: {waiting.message}"
        wait = self._wait(job)
        return JobStatus(
            job.job,
            state,
            job.created_at,
            exit_code,
            reason,
            message,
            is_final=job.given_up and reason in FINAL,
            in_queue_since=None if job.is_deleting else wait.since,
            admitted_at=wait.over_at,
            renewed_at=self.renewed.get(job.job.name),
        )

    def _wait(self, job: KubeJob) -> "_Wait":
        """The Job's wait for a queue and, where the site's pool has an autoscaler, for a node: by what the cluster says of Job and pod."""
        site = self._site_of(job)
        if job.suspended_at is not None or site is None or not site.spec.autoscaled:
            return _Wait(job.suspended_at, job.resumed_at)
        now = self.cluster.clock()
        created_at, scheduled_at = self.diagnostics.scheduling(job, now)
        if scheduled_at is None:
            # Its pod may not be there yet, or be about to be replaced.
            return _Wait(now if created_at is None else created_at, job.resumed_at)
        return _Wait(None, max(scheduled_at, job.resumed_at or 0.0))

    def _end(self, job: KubeJob) -> tuple[int | None, str, str]:
        """Exit code, reason and message of a Job that did not complete: as the operator found, from its pod, or from the Job controller."""
        if job.given_up:
            return job.exit_code, job.reason, job.message
        end = self.diagnostics.end(job) if job.reason != "DeadlineExceeded" else None
        if end is None:
            return None, job.reason or "Died", job.message
        return end.exit_code, end.reason, end.message

    def _aggregates_here(self, resources: JobResources) -> bool:
        """Whether an aggregation runs as a process of the operator: small ones do."""
        return resources.update_bytes <= self.cluster.settings.aggregation_job_threshold

    @property
    def _uid(self) -> str:
        return self.run.resource.metadata.uid

    @property
    def _namespace(self) -> str:
        return self.run.resource.metadata.namespace
