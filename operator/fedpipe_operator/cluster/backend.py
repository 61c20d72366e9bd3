"""`ClusterBackend`: jobs as Kubernetes Jobs of one run, aggregation as processes of ours while it is small."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fedpipe_operator.aggregation.worker import AggregationTask
from fedpipe_operator.api import EdgeSite, seconds
from fedpipe_operator.api.meta import ANNOTATION_MESSAGE, ANNOTATION_REASON
from fedpipe_operator.backend import Job, JobState, JobStatus, Limits
from fedpipe_operator.cluster.api import JOBS, SECRETS, Api
from fedpipe_operator.cluster.api_errors import REFUSED
from fedpipe_operator.cluster.expectations import Expectations
from fedpipe_operator.cluster.objects import KubeJob, kube_job
from fedpipe_operator.cluster.placement import site_of
from fedpipe_operator.cluster.pod_diagnostics import Words
from fedpipe_operator.cluster.pods import UNSCHEDULABLE, Waiting
from fedpipe_operator.cluster.workers import Workers
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.manifests import aggregation_job, task_secret, trainer_job
from fedpipe_operator.rounds import Run
from fedpipe_operator.settings import Settings
from fedpipe_operator.sites.capacity import Misfit, Node, misfit

FINAL: Final = frozenset({"NoNode", "ClaimTooLarge", "VolumeMissing"})
"""Why a pod cannot start that another attempt would meet again."""


class Refused(NamedTuple):
    """A Job that the API server did not take, most often for what the site's podTemplate adds: it costs the site, not the run."""

    job: JobStatus
    generation: int
    """Of the site: an edit may mend it."""


@dataclass
class Cluster:
    """What all runs of an operator share."""

    api: Api
    settings: Settings
    expectations: Expectations
    workers: Workers
    clock: Callable[[], float]
    starting: threading.Lock = field(default_factory=threading.Lock)
    """Held while a site's free places are counted and one is taken."""


@dataclass
class ClusterBackend:
    """The `JobBackend` of one run, for one turn: what the watch says was looked up before the turn began."""

    cluster: Cluster
    run: Run
    jobs: Mapping[str, KubeJob]
    """The run's own, by name."""
    at_sites: Mapping[str, Sequence[KubeJob]]
    """All runs' Jobs by site: those that the watch knows."""
    nodes: Sequence[Node] | None
    """None where the operator may not see nodes."""
    diagnostics: Words
    refused: dict[str, Refused]
    """By the Job's name; what is refused in this turn is added."""
    environment: Mapping[str, str]
    """Where a process of ours finds the store's credentials."""

    def observe(self) -> Mapping[str, JobStatus]:
        """Every Job of the run that the watch knows, those that were refused, and the aggregations at work in this pod."""
        generations = {site.name: site.metadata.generation for site in self.run.sites}
        refused = {name: one.job for name, one in self.refused.items() if generations.get(one.job.job.site) == one.generation}
        return refused | {name: self._seen(job) for name, job in self.jobs.items()} | self.cluster.workers.seen(self._uid)

    def start(self, job: Job, task_json: str, limits: Limits) -> None:
        """Have the task done, unless a job of this name is there or its site has no place free: then it is asked for again."""
        if job.kind == "aggregate" and self._is_done_here(task_json):
            time = seconds(self.run.spec.rounds.deadline)
            self.cluster.workers.start(self._uid, job, task_json, environment=self.environment, seconds=time)
            return
        mine = KubeJob(self._namespace, self.run.name, self._uid, job, created_at=self.cluster.clock())
        if self._takes_place(mine):
            try:
                self._create(job, task_json, limits)
            except BaseException as error:
                self.cluster.expectations.withdrawn(mine)
                if not (isinstance(error, UserError) and error.reason == REFUSED and job.site):
                    raise
                self._remember_refused(job, error)

    def _remember_refused(self, job: Job, error: UserError) -> None:
        seen = JobStatus(job, JobState.FAILED, self.cluster.clock(), None, error.reason, error.message, is_final=True)
        self.refused[job.name] = Refused(seen, site_of(self.run, job.site).metadata.generation)

    def _takes_place(self, mine: KubeJob) -> bool:
        """Whether the Job's site had a place free, which is the Job's from now on, before the API knows of it."""
        with self.cluster.starting:
            if mine.job.site and self.busy_with(site_of(self.run, mine.job.site)) is not None:
                return False
            self.cluster.expectations.created(mine)
            return True

    def discard(self, name: str) -> None:
        """End a job and forget it; it is seen until its pod has gone."""
        self.cluster.workers.discard(self._uid, name)
        job = self.jobs.get(name)
        if job is not None and not job.is_deleting:
            self.cluster.api.delete(JOBS, job.namespace, name, uid=job.uid, foreground=True)
            self.cluster.expectations.deleted(job)

    def busy_with(self, site: EdgeSite) -> str | None:
        """Whose Jobs have all places of the site, None while one is free."""
        watched = {job.job.name: job for job in self.at_sites.get(site.name, ())}
        known = self.cluster.expectations.at_site(self._namespace, site.name, watched)
        at_work = sorted(job.run for job in known.values() if job.is_active)
        if len(at_work) < site.spec.max_concurrent_jobs:
            return None
        others = sorted({run for run in at_work if run != self.run.name})
        return f"its turn: {', '.join(others)} {'is' if len(others) == 1 else 'are'} at work there" if others else "its last Job to end"

    def tend(self) -> None:
        """End the Jobs whose pods cannot start, so that their attempt counts as failed and nothing waits for ever."""
        for job in self.jobs.values():
            if not _may_be_stuck(job):
                continue
            now, grace = self.cluster.clock(), self.cluster.settings.pending_grace_seconds
            told = self.diagnostics.waiting(job, now) if now - job.created_at >= grace / 2 else None
            # A Job that a queue held, or whose node was drained, has a younger pod.
            if told is not None and now - max(job.created_at, told.since) >= grace * (1 + told.is_slow):
                self._give_up_if_hopeless(job, told)

    def _give_up_if_hopeless(self, job: KubeJob, told: Waiting) -> None:
        wrong = self._misfit(job) if told.reason == UNSCHEDULABLE else None
        if wrong is not None:
            self._give_up(job, str(wrong.reason), f"{wrong.message} (the scheduler: {told.message})")
        elif told.is_hopeless:
            self._give_up(job, told.reason, told.message)

    def _give_up(self, job: KubeJob, reason: str, message: str) -> None:
        """The Job fails at once, and says why."""
        annotations = {ANNOTATION_REASON: reason, ANNOTATION_MESSAGE: message}
        body = {"metadata": {"annotations": annotations}, "spec": {"activeDeadlineSeconds": 1}}
        self.cluster.api.merge(JOBS, job.namespace, job.job.name, body)
        self.cluster.expectations.given_up(job, reason, message)

    def _misfit(self, job: KubeJob) -> Misfit | None:
        site = next((site for site in self.run.sites if site.name == job.job.site), None)
        return misfit(site, self.nodes) if site is not None and self.nodes is not None else None

    def _create(self, job: Job, task_json: str, limits: Limits) -> None:
        settings, api = self.cluster.settings, self.cluster.api
        site = site_of(self.run, job.site) if job.site else None
        body = aggregation_job(self.run, job, settings) if job.kind == "aggregate" else trainer_job(self.run, job, site, limits, settings)
        secret = task_secret(self.run, job, task_json)
        if api.create(SECRETS, self._namespace, secret) is None:  # an earlier try left one, whose URLs may have expired
            api.apply(SECRETS, self._namespace, secret)
        created = api.create(JOBS, self._namespace, body) or self._known(job)
        self.cluster.expectations.created(kube_job(created))

    def _known(self, job: Job) -> dict[str, object]:
        """The Job of this name that is there already, which the watch has yet to tell of."""
        known = self.cluster.api.get(JOBS, self._namespace, job.name)
        if known is None or kube_job(known).run_uid != self._uid:
            raise TransientError("NameTaken", f"the Job {self._namespace}/{job.name} of another run is still there: it is waited for")
        return known

    def _seen(self, job: KubeJob) -> JobStatus:
        state, reason, message = JobState.PENDING, "", ""
        exit_code: int | None = None
        if job.ended == "Complete":
            state, exit_code = JobState.SUCCEEDED, 0
        elif job.given_up:
            state, reason, message = JobState.FAILED, job.reason, job.message
        elif job.ended:
            state = JobState.FAILED
            exit_code, reason, message = self._failure(job)
        elif job.is_deleting:
            message = "the pod to end"
        elif job.is_suspended:
            reason, message = "Queued", "the queue that holds its Job"
        elif job.ready:
            state = JobState.RUNNING
        elif (told := self.diagnostics.last_waiting(job.job.name)) is not None:
            reason, message = told.reason, f"{told.reason}: {told.message}"
        return JobStatus(job.job, state, job.created_at, exit_code, reason, message, is_final=job.given_up and reason in FINAL)

    def _failure(self, job: KubeJob) -> tuple[int | None, str, str]:
        """Exit code, reason and message of a Job that failed: the pod's own words, or the Job controller's if it is gone."""
        ending = self.diagnostics.ending(job) if job.reason != "DeadlineExceeded" else None
        if ending is None:
            return None, job.reason or "Died", job.message
        return ending.exit_code, ending.reason, ending.message

    def _is_done_here(self, task_json: str) -> bool:
        """Or for want of a Secret: credentials that come with the operator's own pod are not a Job's."""
        limit = self.cluster.settings.aggregation_limit
        is_bound_here = self.run.spec.store.credentials_secret_ref is None
        return is_bound_here or AggregationTask.model_validate_json(task_json).update_bytes <= limit

    @property
    def _uid(self) -> str:
        return self.run.resource.metadata.uid

    @property
    def _namespace(self) -> str:
        return self.run.resource.metadata.namespace


def _may_be_stuck(job: KubeJob) -> bool:
    return job.is_active and not (job.is_deleting or job.is_suspended or job.ready or job.has_pod_ended)
