"""One turn of a run on a cluster: read the object, open its store, tend its Jobs, reconcile, and say what stands in the way.

Everything a turn needs is in its view, its store and the API; what is kept between turns only saves questions.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fedpipe_operator.api import Condition, ConditionStatus, ConditionType, EdgeSite, FederatedFineTune, FineTuneStatus, Metadata, Reason
from fedpipe_operator.api.checks import matches
from fedpipe_operator.cluster.api import JOBS, RUNS, SECRETS
from fedpipe_operator.cluster.backend import Cluster, ClusterBackend, Refused
from fedpipe_operator.cluster.bodies import read_body, read_status
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.cluster.finalizer import finalize, sync_finalizer
from fedpipe_operator.cluster.objects import KubeJob, unix
from fedpipe_operator.cluster.placement import ClusterPlacement
from fedpipe_operator.cluster.pod_diagnostics import Words
from fedpipe_operator.cluster.status_writer import RUN, ClusterStatusWriter
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.manifests import labels_of
from fedpipe_operator.manifests.metadata import round_labels
from fedpipe_operator.reconcile.observe import ObjectCache
from fedpipe_operator.reconcile.reconciler import Reconciler, ReconcileResult
from fedpipe_operator.rounds import CommitEvaluation, CommitPlan, Event, Observed, Run, is_over
from fedpipe_operator.rounds.revision import require_unchanged
from fedpipe_operator.rounds.status import blocked, invalid
from fedpipe_operator.sites.capacity import Node

Body = Mapping[str, Any]

_LOG: Final = logging.getLogger(__name__)
_RESYNC_SECONDS: Final = 60.0
"""A turn comes at least so often, should an event have been lost."""
_PENDING_SECONDS: Final = 10.0
"""And so often while a Job waits, to see why."""
_ACTED_SECONDS: Final = 3.0
"""And so soon after something was done, to see what came of it: by then a Job is there and its pod at work, or its place was another's."""
_LINGER_SECONDS: Final = 120.0
"""A Job that has reported ends by itself, and its log is kept; what is at work so long after its run ended nobody waits for."""
_TOLD_MAX: Final = 500
_TOLD_AFTER: Final = 2
"""Failures in a row before passing trouble (a conflict, one lost request) is told to people."""


@dataclass(frozen=True)
class RunView:
    """What the watch says at the moment a turn begins."""

    body: Body
    sites: Sequence[EdgeSite]
    """Of the run's namespace, those that its selector takes."""
    jobs: Mapping[str, KubeJob]
    """The run's own, by name."""
    at_sites: Mapping[str, Sequence[KubeJob]]
    """All runs' Jobs, by site."""
    nodes: Sequence[Node] | None
    """None where the operator may not see nodes."""


@dataclass
class _Kept:
    """What saves questions between two turns of one run."""

    diagnostics: Words
    cache: ObjectCache = field(default_factory=ObjectCache)
    refused: dict[str, Refused] = field(default_factory=dict)
    failures: int = 0
    is_swept: bool = False
    round_over: int | None = None
    """A round whose tasks are still to be deleted. A new operator does not know: they go when the run is over."""


@dataclass
class RunReconciler:
    """All runs' turns. Turns of different runs may be made side by side, those of one run may not."""

    cluster: Cluster
    stores: StoreConnections
    status_writer: ClusterStatusWriter
    on_look: Callable[[Run, Observed], None] = lambda _run, _seen: None
    """Told what a turn saw: the sites' own status has a part in it."""
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def turn(self, view: RunView) -> float | None:
        """One turn; when to look again (Unix seconds), None when only a change can bring more to do.

        Raises:
            TransientError: weather; the next turn looks anew.
        """
        body = self.status_writer.newest(view.body)
        if "deletionTimestamp" in body["metadata"]:
            meta = body["metadata"]
            jobs = self.cluster.expectations.of_run(meta["namespace"], meta["uid"], view.jobs)
            return finalize(body, jobs, self.cluster, self.stores, self.status_writer)
        resource = read_body(body, FederatedFineTune)
        if isinstance(resource, list):
            self._refuse(body, resource)
            return None
        run = Run(resource, tuple(sorted((site for site in view.sites if matches(resource, site)), key=lambda site: site.name)))
        kept = self._kept.setdefault(resource.metadata.uid, _Kept(Words(self.cluster.api)))
        sync_finalizer(body, resource, self.cluster.api)
        if is_over(resource):
            return self._after(run, view, kept)
        return self._reconcile_or_say_why(run, view, kept)

    def is_news(self, body: Body) -> bool:
        """Whether somebody else than us changed the object."""
        return not self.status_writer.is_echo(body)

    def forget(self, body: Body) -> None:
        """The object is gone."""
        meta = body["metadata"]
        self._kept.pop(meta["uid"], None)
        self.stores.forget(meta["uid"])
        self.cluster.workers.discard(meta["uid"])
        self.status_writer.forget(RUN, meta["namespace"], meta["name"])

    def _reconcile_or_say_why(self, run: Run, view: RunView, kept: _Kept) -> float:
        now = self.cluster.clock()
        try:
            turn = self._reconcile(run, view, kept)
        except Exception as fault:
            error = fault if isinstance(fault, FedPipeError) else _own_fault(fault)
            kept.failures += 1
            self.stores.forget(run.resource.metadata.uid)  # its Secret may be mended meanwhile
            if not isinstance(error, TransientError) or kept.failures >= _TOLD_AFTER:
                self._say_why(run, error)
            raise TransientError(error.reason, error.message) from fault
        kept.failures = 0
        kept.diagnostics.keep(set(view.jobs))
        self._tidy(run, turn, kept)
        return _requeue_at(run, view, turn, now)

    def _reconcile(self, run: Run, view: RunView, kept: _Kept) -> ReconcileResult:
        require_unchanged(run.resource)
        opened, meta = self.stores.of(run), run.resource.metadata
        backend = ClusterBackend(
            cluster=self.cluster,
            run=run,
            jobs=self.cluster.expectations.of_run(meta.namespace, meta.uid, view.jobs),
            at_sites=view.at_sites,
            nodes=view.nodes,
            diagnostics=kept.diagnostics,
            refused=kept.refused,
            environment=opened.environment,
        )
        backend.tend()
        reconciler = Reconciler(
            backend=backend,
            store=opened.store,
            address=opened.address,
            placement=ClusterPlacement(opened.credentials),
            status_writer=self.status_writer,
            resumed_at=max(_resumed_at(run.resource, self.cluster.clock()), unix(view.body["metadata"]["creationTimestamp"])),
            clock=self.cluster.clock,
            cache=kept.cache,
            busy={site.name: why for site in run.sites if (why := backend.busy_with(site)) is not None},
        )
        turn = reconciler.turn(run)
        self.on_look(run, turn.observed)
        return turn

    def _after(self, run: Run, view: RunView, kept: _Kept) -> float | None:
        """What is left to do for a run that is over: nothing of it stays at work, and in its time it goes."""
        meta, now = run.resource.metadata, self.cluster.clock()
        if not kept.is_swept:
            self.cluster.workers.discard(meta.uid)
            self.cluster.api.delete_all(SECRETS, meta.namespace, labels_of(run))
            self.stores.forget(meta.uid)
            kept.cache, kept.diagnostics, kept.is_swept = ObjectCache(), Words(self.cluster.api), True
            self.on_look(run, Observed())
        left = [job for job in view.jobs.values() if job.is_active and not job.is_deleting]
        if left and now < _ended_at(run.resource) + _LINGER_SECONDS:
            return _ended_at(run.resource) + _LINGER_SECONDS
        for job in left:
            self.cluster.api.delete(JOBS, job.namespace, job.job.name, uid=job.uid)
        return self._deleted_in_time(run, now)

    def _deleted_in_time(self, run: Run, now: float) -> float | None:
        """When the object of a run that is over is to be deleted; None once that is done, or if it stays."""
        if run.spec.ttl_seconds_after_finished is None:
            return None
        due = _ended_at(run.resource) + run.spec.ttl_seconds_after_finished
        if now >= due:
            meta = run.resource.metadata
            self.cluster.api.delete(RUNS, meta.namespace, run.name, uid=meta.uid)
        return due if now < due else None

    def _tidy(self, run: Run, turn: ReconcileResult, kept: _Kept) -> None:
        """Delete the tasks of a round that is over, with the URLs in them. It can take seconds: the next Jobs are made before."""
        actions = turn.decision.actions
        if any(isinstance(action, CommitEvaluation) for action in actions):
            kept.round_over = turn.observed.round
        elif kept.round_over is not None and not any(isinstance(action, CommitPlan) for action in actions):
            self.cluster.api.delete_all(SECRETS, run.resource.metadata.namespace, round_labels(run, kept.round_over))
            kept.round_over = None

    def _refuse(self, body: Body, problems: Sequence[str]) -> None:
        """Say what is wrong with the spec; the next edit brings the next turn."""
        meta, before = Metadata.model_validate(body["metadata"]), read_status(body, FineTuneStatus)
        after = invalid(before, problems, generation=meta.generation, now=self.cluster.clock())
        if after != before:
            self.status_writer.write(RUN, meta, after)
            self.status_writer.post(RUN, meta, Event(Reason.SPEC_INVALID, "; ".join(problems), warning=True))

    def _say_why(self, run: Run, error: FedPipeError) -> None:
        """Tell what holds the run up, once for each new reason."""
        _LOG.warning("%s/%s is held up: %s", run.resource.metadata.namespace, run.name, error)
        before, meta = run.resource.status, run.resource.metadata
        after = blocked(before, error.reason, error.message, generation=meta.generation, now=self.cluster.clock())
        if after != before:
            self.status_writer.write_status(run, after)
        if _condition(before, ConditionType.PROGRESSING, ConditionStatus.FALSE, reason=error.reason) is None:
            self.status_writer.record_event(run, Event(error.reason, error.message, warning=True))


def _own_fault(fault: Exception) -> UserError:
    """What nobody foresaw: a run that stands still must say so, and its reason is in the log."""
    _LOG.exception("a turn failed", exc_info=fault)
    told = f"{type(fault).__name__}: {fault}"[:_TOLD_MAX]
    return UserError("OperatorFault", f"a fault of the operator, which tries again; report it with the operator's log: {told}")


def _requeue_at(run: Run, view: RunView, turn: ReconcileResult, now: float) -> float:
    """When the next turn is due, should nothing be heard before. What only the store knows is heard of by nobody, so at once."""
    actions, over = turn.decision.actions, run.resource.model_copy(update={"status": turn.decision.status})
    if is_over(over) or any(isinstance(action, (CommitPlan, CommitEvaluation)) for action in actions):
        return now
    waits = turn.observed.busy or any(job.is_active and not job.ready for job in view.jobs.values())
    pause = _ACTED_SECONDS if actions else _PENDING_SECONDS if waits else _RESYNC_SECONDS
    return min(turn.decision.requeue_at or now + pause, now + pause)


def _condition(status: FineTuneStatus, kind: ConditionType, value: ConditionStatus, *, reason: str = "") -> Condition | None:
    found = (one for one in status.conditions if one.type == kind and one.status is value and reason in ("", one.reason))
    return next(found, None)


def _resumed_at(resource: FederatedFineTune, now: float) -> float:
    """When the run was last taken up: the end of its suspension, which may be this very turn, or its first look."""
    if _condition(resource.status, ConditionType.SUSPENDED, ConditionStatus.TRUE) and not resource.spec.suspend:
        return now
    resumed = _condition(resource.status, ConditionType.SUSPENDED, ConditionStatus.FALSE)
    return unix(resumed.last_transition_time) if resumed else 0.0


def _ended_at(resource: FederatedFineTune) -> float:
    ends = (_condition(resource.status, kind, ConditionStatus.TRUE) for kind in (ConditionType.SUCCEEDED, ConditionType.FAILED))
    return max(unix(end.last_transition_time) for end in ends if end is not None)
