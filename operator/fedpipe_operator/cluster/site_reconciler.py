"""One reconcile of an `EdgeSite` on a cluster: its pool's nodes and its profiles in, its status out."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fedpipe_operator import logs, tracing
from fedpipe_operator.admission import AdmittedProfile
from fedpipe_operator.api import Condition, ConditionStatus, EdgeSite, Metadata, Reason
from fedpipe_operator.api.conditions import SiteCondition
from fedpipe_operator.api.edgesite import CapacityStatus, EdgeSiteStatus, MeasuredCapacity
from fedpipe_operator.cluster.objects import read_body, read_status
from fedpipe_operator.cluster.status_writer import SITE, ClusterStatusWriter
from fedpipe_operator.manifests.additions import priority_problem
from fedpipe_operator.observer import Observer
from fedpipe_operator.rounds import Event, Observed, Run
from fedpipe_operator.rounds.conditions import Observation, conditions_of
from fedpipe_operator.rounds.round_plan import completed_profiles
from fedpipe_operator.sites import Node, claimed_capacity, discovered_capacity, find_pool_problem, site_granularity

Body = Mapping[str, Any]
_DIGITS: Final = 4
_LARGEST: Final = 1e15
"""A larger rate cannot be real; an integer of Kubernetes has 64 bits."""


@dataclass(frozen=True)
class SiteView:
    """What the cache holds at the moment a reconcile begins."""

    body: Body
    nodes: Sequence[Node] | None
    """None if the operator does not watch nodes."""
    active_runs: int


@dataclass
class SiteReconciler:
    """Reconciles all sites. Thread-safe."""

    status_writer: ClusterStatusWriter
    clock: Callable[[], float]
    priority_classes: Collection[str] = ()
    """Those that sites may name."""
    observer: Observer = field(default_factory=Observer)
    _measured: dict[tuple[str, str], MeasuredCapacity] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reconcile(self, view: SiteView) -> None:
        """Write the site's status and events, if anything has changed."""
        body = self.status_writer.newest(view.body)
        with logs.context(namespace=body["metadata"]["namespace"], site=body["metadata"]["name"]), tracing.span("reconcile site"):
            self._reconcile(body, view)

    def _reconcile(self, body: Body, view: SiteView) -> None:
        before, meta = read_status(body, EdgeSiteStatus), Metadata.model_validate(body["metadata"])
        site = read_body(body, EdgeSite)
        after = self._invalid(site, before, meta) if isinstance(site, list) else self._status(site, view, before)
        if after != before:
            self.status_writer.write(SITE, meta, after, before=before)
            for event in _events(before, after):
                self.status_writer.post_event(SITE, meta, event)

    def record_measurements(self, run: Run, observed: Observed) -> list[str]:
        """Keep what the run's profiles measured; the sites whose figures changed."""
        changed = []
        namespace = run.resource.metadata.namespace
        for site, measured in measured_capacities(run, observed).items():
            with self._lock:
                if self._measured.get((namespace, site)) != measured:
                    self._measured[namespace, site] = measured
                    changed.append(site)
        return changed

    def forget(self, namespace: str, site: str) -> None:
        """The site is gone."""
        with self._lock:
            self._measured.pop((namespace, site), None)
        self.status_writer.forget(SITE, namespace, site)
        self.observer.site_deleted(namespace, site)

    def _invalid(self, problems: Sequence[str], before: EdgeSiteStatus, meta: Metadata) -> EdgeSiteStatus:
        kinds = (SiteCondition.VALID, SiteCondition.READY)
        observations = (Observation(kind, False, Reason.SPEC_INVALID, "; ".join(problems)) for kind in kinds)
        conditions = self._conditions(observations, before, meta)
        return before.model_copy(update={"conditions": conditions, "observed_generation": meta.generation})

    def _status(self, site: EdgeSite, view: SiteView, before: EdgeSiteStatus) -> EdgeSiteStatus:
        with self._lock:
            measured = self._measured.get((site.metadata.namespace, site.name))
        known = before.capacity.measured if before.capacity else None
        capacity = CapacityStatus(
            claimed=claimed_capacity(site),
            discovered=None if view.nodes is None else discovered_capacity(site, view.nodes),
            measured=measured or known,
        )
        conditions = self._conditions(self._observations(site, view.nodes), before, site.metadata)
        return EdgeSiteStatus(
            observed_generation=site.metadata.generation, conditions=conditions, capacity=capacity, active_runs=view.active_runs
        )

    def _observations(self, site: EdgeSite, nodes: Sequence[Node] | None) -> tuple[Observation, ...]:
        capacity, refused = _capacity_met(site, nodes), priority_problem(site, self.priority_classes)
        ready = capacity._replace(type=SiteCondition.READY)
        if refused is not None:
            ready = Observation(SiteCondition.READY, False, Reason.PRIORITY_CLASS_NOT_ALLOWED, refused)
        return Observation(SiteCondition.VALID, True, Reason.SPEC_VALID), capacity, ready

    def _conditions(self, observations: Iterable[Observation], before: EdgeSiteStatus, meta: Metadata) -> tuple[Condition, ...]:
        return conditions_of(observations, before.conditions, kinds=SiteCondition, generation=meta.generation, now=self.clock())


def measured_capacities(run: Run, observed: Observed) -> dict[str, MeasuredCapacity]:
    """What the run's completed profiles measured, by site."""
    return {site.name: _measured_capacity(run.name, site, profile) for site, profile in completed_profiles(run, observed)}


def _measured_capacity(run: str, site: EdgeSite, profile: AdmittedProfile) -> MeasuredCapacity:
    """What one profile measured, rounded; what it could not measure is absent."""
    return MeasuredCapacity(
        run=run,
        device=profile.measured.device,
        memory=profile.memory_bytes,
        train_samples=profile.train_samples,
        validation_samples=profile.validation_samples,
        bandwidth_up=_whole(profile.up_bits_per_second),
        bandwidth_down=_whole(profile.down_bits_per_second),
        memory_bandwidth=_whole(profile.memory_bytes_per_second),
        mfu=_rounded(profile.mfu),
        tokens_per_joule=_rounded(profile.tokens_per_joule),
        energy_source=profile.energy_source.value if profile.energy_source else None,
        granularity=_rounded(site_granularity(site, profile)),
    )


def _whole(value: float | None) -> int | None:
    """Rounded, and small enough for an integer of Kubernetes."""
    return None if value is None else round(min(value, _LARGEST))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _capacity_met(site: EdgeSite, nodes: Sequence[Node] | None) -> Observation:
    met = SiteCondition.CAPACITY_MET
    if nodes is None:
        return Observation(met, True, Reason.NODES_NOT_SEEN, "the operator does not watch nodes: the claim is not checked")
    wrong = find_pool_problem(site, nodes)
    if wrong is None:
        return Observation(met, True, Reason.NODES_FOUND)
    if site.spec.autoscaled:
        message = f"an autoscaler adds a node when a pod waits for one; now, {wrong.message}"
        return Observation(met, True, Reason.WAITS_FOR_NODE, message)
    return Observation(met, False, wrong.reason, wrong.message)


def _events(before: EdgeSiteStatus, after: EdgeSiteStatus) -> tuple[Event, ...]:
    """One event when the site becomes able, or unable, to run trainer pods."""
    known = {(one.type, one.reason) for one in before.conditions}
    return tuple(
        Event(one.reason, one.message or "a node of the pool can carry the claim", warning=one.status is ConditionStatus.FALSE)
        for one in after.conditions
        if one.type == SiteCondition.READY and (one.type, one.reason) not in known
    )
