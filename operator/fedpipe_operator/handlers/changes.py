"""Which changes matter: the events of a watch that nothing depends on are filtered out here, before they enqueue a key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpipe_operator.cluster import KubeJob
from fedpipe_operator.cluster.objects import NamespacedName, namespaced_name
from fedpipe_operator.sites import Node

Body = Mapping[str, Any]


@dataclass
class SiteChanges:
    """Of each site, what others depend on, as it was last seen: the status is not part of it."""

    _known: dict[NamespacedName, tuple[object, ...]] = field(default_factory=dict)

    def matters(self, body: Body) -> bool:
        """Whether the site is new, or its spec or labels changed."""
        meta, name = body["metadata"], namespaced_name(body)
        now = (meta["uid"], meta.get("generation"), dict(meta.get("labels", {})))
        changed = self._known.get(name) != now
        self._known[name] = now
        return changed

    def remove(self, name: NamespacedName) -> None:
        """The site is gone."""
        self._known.pop(name, None)


@dataclass
class NodeChanges:
    """The nodes as they were last seen: a heartbeat changes nothing that a `Node` holds."""

    _known: dict[str, Node] = field(default_factory=dict)

    def matters(self, node: Node) -> bool:
        """Whether the node is new or changed."""
        changed = self._known.get(node.name) != node
        self._known[node.name] = node
        return changed

    def remove(self, node: Node) -> None:
        """The node is gone."""
        self._known.pop(node.name, None)


@dataclass
class JobChanges:
    """The Jobs whose pods are ready, as they were last seen."""

    _ready: set[NamespacedName] = field(default_factory=set)

    def lost_readiness(self, job: KubeJob, *, is_gone: bool) -> bool:
        """Whether the Job's pod was ready and is not any more, and neither has ended.

        That is how a pod looks whose task has ended and in which another container goes on; every other one for a moment before its end.
        """
        name = NamespacedName(job.namespace, job.name)
        was_ready = name in self._ready
        self._ready.discard(name)
        if job.ready and job.is_active and not is_gone:
            self._ready.add(name)
        return was_ready and job.is_unready and not is_gone


def job_matters(job: KubeJob, *, is_gone: bool) -> bool:
    """Whether a reconcile of its run has something to do about a Job: it ended, is suspended, or is deleted before its end.

    What happens in between (its pod starts, or is ready) needs no action, and the next reconcile sees it anyway; but see `JobChanges`.
    """
    is_deleted = is_gone or job.is_deleting
    return is_deleted or job.is_suspended if job.is_active else not is_deleted
