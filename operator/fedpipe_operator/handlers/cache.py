"""The cache that the watches fill, put together for a reconcile. Read only on the event loop's thread, where kopf changes it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedpipe_operator.api import ConditionType, EdgeSite
from fedpipe_operator.cluster import KubeJob, RunView, SiteView
from fedpipe_operator.cluster.objects import is_managed_by_another, private_claims_of, version_of
from fedpipe_operator.handlers.enqueue import Key
from fedpipe_operator.sites import Node

Body = Mapping[str, Any]


class RunSummary(NamedTuple):
    """As much of a run as a site's status needs."""

    match_labels: Mapping[str, str]
    is_over: bool
    """Or another controller's, which uses none of the sites here."""


@dataclass(frozen=True)
class WatchCache:
    """kopf's indices as plain mappings, each by what it is looked up by."""

    run_bodies: Mapping[tuple[str, str], Collection[Body]]
    """By namespace and name."""
    run_summaries: Mapping[str, Collection[RunSummary]]
    """By namespace."""
    site_bodies: Mapping[tuple[str, str], Collection[Body]]
    """By namespace and name."""
    sites: Mapping[tuple[str, str], Collection[EdgeSite]]
    """Sites with a valid spec, by namespace and each of their labels; all of a namespace under the label ""."""
    jobs_of_runs: Mapping[tuple[str, str], Collection[KubeJob]]
    """By namespace and uid of the run."""
    jobs_at_sites: Mapping[tuple[str, str], Collection[KubeJob]]
    """By namespace and site."""
    nodes: Mapping[None, Collection[Node]] | None
    """None if the operator does not watch nodes."""

    def run_keys(self, namespace: str | None) -> Iterator[Key]:
        """The runs of a namespace; None: of all."""
        return (Key("run", of, name) for of, name in self.run_bodies if namespace in (None, of))

    def site_keys(self, namespace: str | None) -> Iterator[Key]:
        """The sites of a namespace; None: of all."""
        return (Key("site", of, name) for of, name in self.site_bodies if namespace in (None, of))

    def names(self) -> dict[str, str]:
        """The names of all objects, by uid."""
        indices: tuple[Mapping[Any, Collection[Body]], ...] = (self.run_bodies, self.site_bodies)
        metas = [body["metadata"] for index in indices for bodies in index.values() for body in bodies]
        jobs = {job.uid: job.job.name for found in self.jobs_of_runs.values() for job in found}
        nodes = {node.uid: node.name for node in self._nodes() or ()}
        return {meta["uid"]: meta["name"] for meta in metas} | jobs | nodes

    def run_body(self, key: Key) -> Body | None:
        """A run's object; None if it is gone."""
        return _newest(self.run_bodies.get((key.namespace, key.name), ()))

    def run_view(self, key: Key) -> RunView | None:
        """A run and everything that belongs to it; None if it is gone."""
        body = self.run_body(key)
        if body is None:
            return None
        sites = self._sites(key.namespace, _match_labels(body))
        jobs = self.jobs_of_runs.get((key.namespace, body["metadata"]["uid"]), ())
        return RunView(
            body=body,
            sites=sites,
            jobs={job.job.name: job for job in jobs},
            at_sites={site.name: tuple(self.jobs_at_sites.get((key.namespace, site.name), ())) for site in sites},
            nodes=self._nodes(),
            private_claims=self._private_claims(key.namespace),
        )

    def site_view(self, key: Key) -> SiteView | None:
        """A site and its nodes; None if it is gone."""
        body = _newest(self.site_bodies.get((key.namespace, key.name), ()))
        if body is None:
            return None
        labels = body["metadata"].get("labels", {})
        summaries = self.run_summaries.get(key.namespace, ())
        active = sum(not one.is_over and one.match_labels.items() <= labels.items() for one in summaries)
        return SiteView(body=body, nodes=self._nodes(), active_runs=active)

    def _sites(self, namespace: str, wanted: Mapping[str, str]) -> list[EdgeSite]:
        """Sites with all these labels. The smallest group is searched: a run takes few of a namespace's many sites."""
        groups = [self.sites.get((namespace, label), ()) for label in labels_of(wanted)]
        return [site for site in min(groups, key=len) if wanted.items() <= site.metadata.labels.items()]

    def _private_claims(self, namespace: str) -> frozenset[str]:
        found = (bodies for (of, _), bodies in self.site_bodies.items() if of == namespace)
        return frozenset(claim for bodies in found for body in bodies for claim in private_claims_of(body))

    def _nodes(self) -> tuple[Node, ...] | None:
        return None if self.nodes is None else tuple(sorted(self.nodes.get(None, ()), key=lambda node: node.name))


def labels_of(labels: Mapping[str, str]) -> list[str]:
    """The index keys of an object with these labels; the first is common to all objects."""
    return ["", *(f"{name}={value}" for name, value in labels.items())]


def run_summary(body: Body) -> RunSummary:
    """As much of a run's object as a site's status needs."""
    true = {one["type"] for one in body.get("status", {}).get("conditions", ()) if one["status"] == "True"}
    is_over = bool(true & {ConditionType.COMPLETE, ConditionType.FAILED}) or is_managed_by_another(body)
    return RunSummary(_match_labels(body), is_over)


def _match_labels(body: Body) -> Mapping[str, str]:
    found: Mapping[str, str] = body["spec"].get("sites", {}).get("selector", {}).get("matchLabels", {})
    return found


def _newest(found: Collection[Body]) -> Body | None:
    """There is one object of a name; until the cache check, one that was deleted may be cached beside it."""
    return max(found, key=version_of, default=None)
