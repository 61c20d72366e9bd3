"""The roll call: all objects that the operator watches, as the API server has them, to hold what it remembers against.

A watch that was away for too long begins again with a list, and what that list lacks kopf goes on to remember. Nothing else tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedpipe_operator.api.meta import LABEL_RUN
from fedpipe_operator.cluster.api import JOBS, NODES, RUNS, SITES, Api

Names = Mapping[str, str]
"""Of objects, by their uids."""


@dataclass(frozen=True)
class CacheCheck:
    """What is watched, and where."""

    api: Api
    namespaces: Sequence[str]
    """None: all of the cluster."""
    with_nodes: bool

    def call(self) -> Names:
        """Every object that there is now.

        Raises:
            TransientError: weather.
        """
        found = self.api.names(NODES, "") if self.with_nodes else {}
        for namespace in self.namespaces or ("",):
            found |= self.api.names(RUNS, namespace)
            found |= self.api.names(SITES, namespace)
            found |= self.api.names(JOBS, namespace, label=LABEL_RUN)
        return found


def drift(before: Names, called: Names, after: Names) -> Names:
    """What is remembered and is not there, or is there and not remembered; what is remembered since or until the call is neither."""
    ghosts = {uid: name for uid, name in after.items() if uid in before and uid not in called}
    return ghosts | {uid: name for uid, name in called.items() if uid not in before and uid not in after}
