"""The cache check: the operator's cache of watched objects against a fresh list of the API server.

A watch that was interrupted for too long begins again with a list, and kopf keeps what that list lacks: a deleted object would be
cached for ever. Nothing else reveals that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedpipe_operator.api.meta import LABEL_RUN
from fedpipe_operator.cluster.api import JOBS, NODES, RUNS, SITES, Api
from fedpipe_operator.cluster.objects import is_ours

NamesByUid = Mapping[str, str]
"""The names of objects, by uid."""


@dataclass(frozen=True)
class LiveObjects:
    """The objects that the operator watches, as the API server has them."""

    api: Api
    namespaces: Sequence[str]
    """Empty: all of the cluster."""
    with_nodes: bool
    selector: str
    """Of the labels of runs and sites."""

    def list(self) -> NamesByUid:
        """Every object that exists now.

        Raises:
            TransientError: the API server does not answer.
        """
        found = self.api.names(NODES, "") if self.with_nodes else {}
        for namespace in self.namespaces or ("",):
            found |= self.api.names(RUNS, namespace, label=self.selector)
            found |= self.api.names(SITES, namespace, label=self.selector)
            found |= self.api.names(JOBS, namespace, label=LABEL_RUN, keep=is_ours)
        return found


@dataclass
class DriftDetector:
    """Distinguishes delayed events from a cache that has diverged: there the same object drifts in two checks in a row."""

    _suspects: NamesByUid = field(default_factory=dict)

    def check(self, drifted: NamesByUid) -> list[str]:
        """Take the drift of one check; the names of the objects that drifted in the last check as well."""
        diverged = sorted(name for uid, name in drifted.items() if uid in self._suspects)
        self._suspects = drifted
        return diverged


def drift(before: NamesByUid, live: NamesByUid, after: NamesByUid) -> NamesByUid:
    """Objects that are cached and do not exist, or exist and are not cached.

    Args:
        before: the cache before `live` was listed.
        live: what exists.
        after: the cache after that. What entered or left the cache in between has not drifted.
    """
    deleted = {uid: name for uid, name in after.items() if uid in before and uid not in live}
    return deleted | {uid: name for uid, name in live.items() if uid not in before and uid not in after}
