"""One turn of an `EdgeSite` on a cluster: its pool's nodes and its profiles in, its status out."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedpipe_operator.api import Condition, ConditionStatus, EdgeSite, Metadata, Reason
from fedpipe_operator.api.conditions import SiteCondition
from fedpipe_operator.api.edgesite import CapacityStatus, EdgeSiteStatus, MeasuredCapacity
from fedpipe_operator.cluster.bodies import read_body, read_status
from fedpipe_operator.cluster.status_writer import SITE, ClusterStatusWriter
from fedpipe_operator.rounds import Event
from fedpipe_operator.rounds.conditions import Observation, conditions_of
from fedpipe_operator.sites.capacity import Node, claimed, discovered, misfit

Body = Mapping[str, Any]


@dataclass(frozen=True)
class SiteView:
    """What the watch says at the moment a turn begins."""

    body: Body
    nodes: Sequence[Node] | None
    """None where the operator may not see nodes."""
    active_runs: int


@dataclass
class SiteReconciler:
    """All sites' turns. Safe for several threads."""

    status_writer: ClusterStatusWriter
    clock: Callable[[], float]
    _measured: dict[tuple[str, str], MeasuredCapacity] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def turn(self, view: SiteView) -> None:
        """Write what is to be said of the site, if anything has changed."""
        body = self.status_writer.newest(view.body)
        before, meta = read_status(body, EdgeSiteStatus), Metadata.model_validate(body["metadata"])
        site = read_body(body, EdgeSite)
        after = self._refused(site, before, meta) if isinstance(site, list) else self._status(site, view, before)
        if after != before:
            self.status_writer.write(SITE, meta, after)
            for event in _events(before, after):
                self.status_writer.post(SITE, meta, event)

    def measured(self, namespace: str, site: str, found: MeasuredCapacity) -> bool:
        """Keep what a profile measured; whether that is news."""
        with self._lock:
            is_news = self._measured.get((namespace, site)) != found
            self._measured[namespace, site] = found
        return is_news

    def forget(self, namespace: str, site: str) -> None:
        """The site is gone."""
        with self._lock:
            self._measured.pop((namespace, site), None)
        self.status_writer.forget(SITE, namespace, site)

    def _refused(self, problems: Sequence[str], before: EdgeSiteStatus, meta: Metadata) -> EdgeSiteStatus:
        kinds = (SiteCondition.VALID, SiteCondition.READY)
        told = (Observation(kind, False, Reason.SPEC_INVALID, "; ".join(problems)) for kind in kinds)
        return before.model_copy(update={"conditions": self._conditions(told, before, meta), "observed_generation": meta.generation})

    def _status(self, site: EdgeSite, view: SiteView, before: EdgeSiteStatus) -> EdgeSiteStatus:
        with self._lock:
            measured = self._measured.get((site.metadata.namespace, site.name))
        known = before.capacity.measured if before.capacity else None
        capacity = CapacityStatus(
            claimed=claimed(site),
            discovered=None if view.nodes is None else discovered(site, view.nodes),
            measured=measured or known,
        )
        conditions = self._conditions(_told(site, view.nodes), before, site.metadata)
        return EdgeSiteStatus(
            observed_generation=site.metadata.generation, conditions=conditions, capacity=capacity, active_runs=view.active_runs
        )

    def _conditions(self, told: Iterable[Observation], before: EdgeSiteStatus, meta: Metadata) -> tuple[Condition, ...]:
        return conditions_of(told, before.conditions, generation=meta.generation, now=self.clock())


def _told(site: EdgeSite, nodes: Sequence[Node] | None) -> tuple[Observation, ...]:
    if nodes is None:
        found = Observation(
            SiteCondition.CAPACITY_MET, True, Reason.NODES_NOT_SEEN, "the operator may not see nodes: the claim is taken as it is"
        )
    elif (wrong := misfit(site, nodes)) is not None:
        found = Observation(SiteCondition.CAPACITY_MET, False, wrong.reason, wrong.message)
    else:
        found = Observation(SiteCondition.CAPACITY_MET, True, Reason.NODES_FOUND)
    return Observation(SiteCondition.VALID, True, Reason.SPEC_VALID), found, found._replace(type=SiteCondition.READY)


def _events(before: EdgeSiteStatus, after: EdgeSiteStatus) -> tuple[Event, ...]:
    """A pool that comes to fit its claim, or no longer does."""
    known = {(one.type, one.reason) for one in before.conditions}
    return tuple(
        Event(one.reason, one.message or "a node of the pool can carry the claim", warning=one.status is ConditionStatus.FALSE)
        for one in after.conditions
        if one.type == SiteCondition.READY and (one.type, one.reason) not in known
    )
