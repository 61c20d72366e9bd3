"""One reconcile of a run on a cluster: read the object, open its store, end stuck Jobs, reconcile, and report what blocks the run.

Everything a reconcile needs is in its view, its store and the API; what is kept between reconciles only saves requests.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fedpipe_operator import logs, tracing
from fedpipe_operator.api import (
    Condition,
    ConditionStatus,
    ConditionType,
    EdgeSite,
    FederatedFineTune,
    FineTuneStatus,
    Metadata,
    Reason,
    StoreSpec,
)
from fedpipe_operator.api.checks import matches
from fedpipe_operator.cluster.api import JOBS, RUNS, SECRETS
from fedpipe_operator.cluster.backend import Cluster, ClusterBackend, RefusedJob
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.cluster.finalizer import finalize, sync_finalizer
from fedpipe_operator.cluster.objects import KubeJob, is_managed_by_another, read_body, read_status, unix
from fedpipe_operator.cluster.pod_diagnostics import PodDiagnostics
from fedpipe_operator.cluster.run_log import RunLog
from fedpipe_operator.cluster.status_writer import RUN, ClusterStatusWriter
from fedpipe_operator.errors import OPERATOR_FAULT, FedPipeError, TransientError, UserError
from fedpipe_operator.manifests import labels_of
from fedpipe_operator.manifests.metadata import round_labels
from fedpipe_operator.manifests.model_folders import require_folder_of_the_image
from fedpipe_operator.memory_budget import Holding
from fedpipe_operator.observer import Observer
from fedpipe_operator.reconcile.observe import ObjectCache
from fedpipe_operator.reconcile.placement import in_pods
from fedpipe_operator.reconcile.progress import ProgressReader
from fedpipe_operator.reconcile.reconciler import Reconciler, ReconcileResult
from fedpipe_operator.rounds import CommitEvaluation, CommitPlan, Event, Observed, Run, is_over
from fedpipe_operator.rounds.events import tracking_events
from fedpipe_operator.rounds.milestones import milestones
from fedpipe_operator.rounds.revision import require_unchanged
from fedpipe_operator.rounds.status import blocked, finished, invalid, stored_at, tracked
from fedpipe_operator.sites import Node
from fedpipe_operator.store.connections import deadline
from fedpipe_operator.tracking.trackers import POLL_SECONDS, Tracked, Trackers

Body = Mapping[str, Any]

_LOG: Final = logging.getLogger(__name__)
_RESYNC_SECONDS: Final = 60.0
"""A run is reconciled at least this often, in case an event was lost."""
_PENDING_SECONDS: Final = 10.0
"""While a Job is pending, to find out why."""
_ACTED_SECONDS: Final = 3.0
"""After an action, to see its effect: by then the Job exists and its pod runs, or its site's job slots were taken."""
_LINGER_SECONDS: Final = 120.0
"""A Job that has reported its result ends by itself, and its log is kept; one that is active so long after its run ended, because another
container keeps its pod alive, is deleted."""
_TRACKING_SECONDS: Final = 300.0
"""So long after its end, a run whose time to live is over is kept for a tracker that does not answer."""
_STORE_SECONDS: Final = 600.0
"""For all calls of the store in one reconcile: a store may take 30 s for each of hundreds. What was read stays for the next reconcile."""
_MESSAGE_MAX: Final = 500
_REPORTED_FAILURES: Final = 2
"""Failures in a row before a transient error (a conflict, one lost request) is reported in the status."""


@dataclass(frozen=True)
class RunView:
    """What the cache holds at the moment a reconcile begins."""

    body: Body
    sites: Sequence[EdgeSite]
    """Of the run's namespace, those that its selector takes."""
    jobs: Mapping[str, KubeJob]
    """The run's own, by name."""
    at_sites: Mapping[str, Sequence[KubeJob]]
    """All runs' Jobs, by site."""
    nodes: Sequence[Node] | None
    """None if the operator does not watch nodes."""
    private_claims: frozenset[str] = frozenset()
    """Those that hold the data or the cache of a site of the namespace, of one with an invalid spec too."""


@dataclass
class _RunState:
    """What saves requests between two reconciles of one run."""

    diagnostics: PodDiagnostics
    cache: ObjectCache
    progress: ProgressReader = field(default_factory=ProgressReader)
    refused: dict[str, RefusedJob] = field(default_factory=dict)
    log: RunLog = field(default_factory=RunLog)
    renewed: dict[str, float] = field(default_factory=dict)
    """See `ClusterBackend`. A restart loses it: then what waits gets its task anew once more."""
    is_cleaned_up: bool = False
    ended_round: int | None = None
    """A round (0: the profiles) whose task Secrets are still to be deleted. A restart loses it: then they are deleted when the run ends."""


@dataclass
class RunReconciler:
    """Reconciles all runs. Different runs may be reconciled concurrently, one run may not."""

    cluster: Cluster
    stores: StoreConnections
    status_writer: ClusterStatusWriter
    on_reconciled: Callable[[Run, Observed], None] = lambda _run, _observed: None
    """Called with what a reconcile observed: sites' statuses depend on it."""
    on_forgotten: Callable[[str], None] = lambda _uid: None
    """Called with the uid of a run whose object is gone."""
    observer: Observer = field(default_factory=Observer)
    trackers: Trackers = field(init=False)
    _states: dict[str, _RunState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trackers = Trackers(self.cluster.clock)

    def reconcile(self, view: RunView, failures: int) -> float | None:
        """One reconcile of a run.

        Args:
            view: what the cache holds.
            failures: how many reconciles of this run failed in a row before this one.

        Returns:
            When to requeue the run (Unix seconds); None if only an event can bring more to do.

        Raises:
            TransientError: it failed; the work queue retries it after its back-off.
        """
        if is_managed_by_another(view.body):
            return None
        body = with_store(self.status_writer.newest(view.body), self.cluster.settings.default_store)
        with deadline(_STORE_SECONDS), logs.context(**logs.run_fields(body)), tracing.span("reconcile run"):
            return self._reconcile_body(body, view, failures)

    def _reconcile_body(self, body: Body, view: RunView, failures: int) -> float | None:
        if "deletionTimestamp" in body["metadata"]:
            meta = body["metadata"]
            if self.trackers.is_active(meta["uid"]):  # it would write what is about to be deleted
                return self.cluster.clock() + POLL_SECONDS
            jobs = self.cluster.expectations.of_run(meta["namespace"], meta["uid"], view.jobs)
            return finalize(body, jobs, self.cluster, self.stores, self.status_writer)
        resource = read_body(body, FederatedFineTune)
        if isinstance(resource, list):
            self._report_invalid(body, resource)
            return None
        sites = sorted((site for site in view.sites if matches(resource, site)), key=lambda site: site.name)
        run = Run(resource, tuple(sites), private_claims=view.private_claims, stored_at=stored_at(resource))
        state = self._state_of(run)
        sync_finalizer(body, resource, self.cluster.api)
        if is_over(resource):
            return self._clean_up(run, view, state)
        return self._reconcile_or_report(run, view, state, failures)

    def _state_of(self, run: Run) -> _RunState:
        uid = run.resource.metadata.uid
        if uid not in self._states:
            self._states[uid] = _RunState(PodDiagnostics(self.cluster.api), ObjectCache(holding=self._holding(run)))
        return self._states[uid]

    def _holding(self, run: Run) -> Holding:
        """What the run has in the operator's memory, which is its namespace's."""
        return Holding(self.cluster.memory, run.resource.metadata.namespace)

    def is_changed_by_others(self, body: Body) -> bool:
        """Whether somebody else than the operator changed the object."""
        return not self.status_writer.is_echo(body)

    def forget(self, body: Body) -> None:
        """The object is gone."""
        meta = body["metadata"]
        if (state := self._states.pop(meta["uid"], None)) is not None:
            state.cache.holding.close()
        self.stores.forget(meta["uid"])
        self.cluster.workers.discard(meta["uid"])
        self.trackers.forget(meta["uid"])
        self.status_writer.forget(RUN, meta["namespace"], meta["name"])
        self.observer.run_deleted(meta["uid"])
        self.on_forgotten(meta["uid"])

    def _reconcile_or_report(self, run: Run, view: RunView, state: _RunState, failures: int) -> float:
        now = self.cluster.clock()
        try:
            result = self._reconcile(run, view, state)
        except Exception as fault:
            error = fault if isinstance(fault, FedPipeError) else _internal_error(fault)
            self.stores.forget(run.resource.metadata.uid)  # its Secret may be corrected in the meantime
            if not isinstance(error, TransientError) or failures + 1 >= _REPORTED_FAILURES:
                self._report_blocked(run, error)
            raise TransientError(error.reason, error.message) from fault
        state.diagnostics.keep(set(view.jobs))
        state.renewed = {name: at for name, at in state.renewed.items() if name in view.jobs}
        self._delete_task_secrets(run, result, state)
        return _requeue_at(run, view, result, now)

    def _reconcile(self, run: Run, view: RunView, state: _RunState) -> ReconcileResult:
        require_unchanged(run.resource)
        require_folder_of_the_image(run.spec.model.source)
        connection, meta = self.stores.of(run), run.resource.metadata
        backend = ClusterBackend(
            cluster=self.cluster,
            run=run,
            jobs=self.cluster.expectations.of_run(meta.namespace, meta.uid, view.jobs),
            at_sites=view.at_sites,
            nodes=view.nodes,
            diagnostics=state.diagnostics,
            refused=state.refused,
            renewed=state.renewed,
            environment=connection.environment,
        )
        backend.end_stuck_jobs()
        reconciler = Reconciler(
            backend=backend,
            store=connection.store,
            address=connection.address,
            placement=in_pods(connection.credentials, connection.guard),
            status_writer=self.status_writer,
            resumed_at=max(_resumed_at(run.resource, self.cluster.clock()), unix(view.body["metadata"]["creationTimestamp"])),
            clock=self.cluster.clock,
            cache=state.cache,
            busy={site.name: why for site in run.sites if (why := backend.why_busy(site)) is not None},
            progress=state.progress,
            tracked=self._tracked(run).observation,
            problems=backend.problems,
        )
        result = reconciler.reconcile(run)
        is_new = _condition(run.resource.status, ConditionType.PROGRESSING) is None
        state.log.write(milestones(run, result.observed, result.decision), is_new=is_new)
        self.on_reconciled(run, result.observed)
        self.observer.run_reconciled(run, result.observed, result.decision, backend.jobs)
        return result

    def _clean_up(self, run: Run, view: RunView, state: _RunState) -> float | None:
        """Clean up after a run that is over: end what is still active, and delete the object after its TTL."""
        meta, now = run.resource.metadata, self.cluster.clock()
        if not state.is_cleaned_up:
            self.cluster.workers.discard(meta.uid)
            self.cluster.api.delete_all(SECRETS, meta.namespace, labels_of(run))
            self.stores.forget(meta.uid)
            state.cache.clear()
            state.diagnostics, state.is_cleaned_up = PodDiagnostics(self.cluster.api), True
            self.on_reconciled(run, Observed())
            self.observer.run_ended(run)
        found = self._tracked(run)
        status = finished(run.resource.status, generation=meta.generation, now=now)
        if found.observation is not None:
            status = tracked(status, found.observation, generation=meta.generation, now=now)
        if status != run.resource.status:
            self.status_writer.write_status(run, status)
        for event in tracking_events(run.resource.status, status):
            self.status_writer.record_event(run, event)
        active = [job for job in view.jobs.values() if job.is_active and not job.is_deleting]
        lingers_until = _ended_at(run.resource) + _LINGER_SECONDS
        if active and now < lingers_until:
            return min(lingers_until, found.requeue_at or lingers_until)
        self._delete(active)
        due = self._delete_after_ttl(run, now, is_tracked=found.requeue_at is None)
        return min((at for at in (due, found.requeue_at) if at is not None), default=None)

    def _delete(self, jobs: Sequence[KubeJob]) -> None:
        """Delete the Jobs: where the API server refuses one, the others before it says so."""
        problems = []
        for job in jobs:
            try:
                self.cluster.api.delete(JOBS, job.namespace, job.name, uid=job.uid)
            except FedPipeError as error:
                if not error.is_of_one_object:
                    raise
                problems.append(error)
        if problems:
            raise problems[0]

    def _tracked(self, run: Run) -> Tracked:
        """What is known of the run's trackers, which are written by threads of their own."""
        return self.trackers.sync(run, lambda: replace(self.stores.tracking(run), holding=self._holding(run)))

    def _delete_after_ttl(self, run: Run, now: float, *, is_tracked: bool) -> float | None:
        """When the object of a run that is over is to be deleted; None once that is done, or if it stays.

        Its trackers may be written to the end first, unless they do not answer for `_TRACKING_SECONDS`.
        """
        if run.spec.ttl_seconds_after_finished is None:
            return None
        due = _ended_at(run.resource) + max(run.spec.ttl_seconds_after_finished, 0 if is_tracked else _TRACKING_SECONDS)
        if now >= due:
            meta = run.resource.metadata
            self.cluster.api.delete(RUNS, meta.namespace, run.name, uid=meta.uid)
        return due if now < due else None

    def _delete_task_secrets(self, run: Run, result: ReconcileResult, state: _RunState) -> None:
        """Delete the Secrets of a committed round's tasks, with their URLs. It can take seconds, so the next Jobs are created first."""
        planned = next((action.plan.round for action in result.decision.actions if isinstance(action, CommitPlan)), None)
        if planned is not None:
            state.ended_round = planned - 1
        elif state.ended_round is not None:
            self.cluster.api.delete_all(SECRETS, run.resource.metadata.namespace, round_labels(run, state.ended_round))
            state.ended_round = None

    def _report_invalid(self, body: Body, problems: Sequence[str]) -> None:
        """Report the problems of the spec; the next edit triggers the next reconcile."""
        meta, before = Metadata.model_validate(body["metadata"]), read_status(body, FineTuneStatus)
        after = invalid(before, problems, generation=meta.generation, now=self.cluster.clock())
        if after != before:
            self.status_writer.write(RUN, meta, after, before=before)
            self.status_writer.post_event(RUN, meta, Event(Reason.SPEC_INVALID, "; ".join(problems), warning=True))

    def _report_blocked(self, run: Run, error: FedPipeError) -> None:
        """Report what blocks the run, once for each new reason."""
        _LOG.warning("blocked: %s", error)
        before, meta = run.resource.status, run.resource.metadata
        after = blocked(before, error.reason, error.message, generation=meta.generation, now=self.cluster.clock())
        if after != before:
            self.status_writer.write_status(run, after)
        if _condition(before, ConditionType.PROGRESSING, ConditionStatus.FALSE, reason=error.reason) is None:
            self.status_writer.record_event(run, Event(error.reason, error.message, warning=True))


def with_store(body: Body, default: StoreSpec | None) -> Body:
    """The run's object, with the operator's default store if it names none."""
    spec = body.get("spec")
    if default is None or not isinstance(spec, Mapping) or "store" in spec:
        return body
    return {**body, "spec": {**spec, "store": default.model_dump(mode="json", by_alias=True, exclude_none=True)}}


def _internal_error(fault: Exception) -> UserError:
    """An unexpected error: the run's status must show it, and the log has the traceback."""
    _LOG.exception("a reconcile failed", exc_info=fault)
    message = f"{type(fault).__name__}: {fault}"[:_MESSAGE_MAX]
    return UserError(OPERATOR_FAULT, f"internal error of the operator, which retries; report it with the operator's log: {message}")


def _requeue_at(run: Run, view: RunView, result: ReconcileResult, now: float) -> float:
    """When to reconcile next if no event comes earlier. Writes to the store trigger no event: after one, at once."""
    actions, after = result.decision.actions, run.resource.model_copy(update={"status": result.decision.status})
    if is_over(after) or any(isinstance(action, (CommitPlan, CommitEvaluation)) for action in actions):
        return now
    is_waiting = result.observed.busy or any(job.is_active and not job.ready for job in view.jobs.values())
    pause = _ACTED_SECONDS if actions else _PENDING_SECONDS if is_waiting else _RESYNC_SECONDS
    return min(result.decision.requeue_at or now + pause, now + pause)


def _condition(status: FineTuneStatus, kind: ConditionType, value: ConditionStatus | None = None, *, reason: str = "") -> Condition | None:
    found = (one for one in status.conditions if one.type == kind and value in (None, one.status) and reason in ("", one.reason))
    return next(found, None)


def _resumed_at(resource: FederatedFineTune, now: float) -> float:
    """When the run was last resumed: when its suspension ended, which this reconcile may be the first to see; 0 if it never was."""
    if _condition(resource.status, ConditionType.SUSPENDED, ConditionStatus.TRUE) and not resource.spec.suspend:
        return now
    resumed = _condition(resource.status, ConditionType.SUSPENDED, ConditionStatus.FALSE)
    return unix(resumed.last_transition_time) if resumed else 0.0


def _ended_at(resource: FederatedFineTune) -> float:
    ends = (_condition(resource.status, kind, ConditionStatus.TRUE) for kind in (ConditionType.COMPLETE, ConditionType.FAILED))
    return max(unix(end.last_transition_time) for end in ends if end is not None)
