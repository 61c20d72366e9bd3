"""Finds a run and has its report drawn: once for each round that it shows, once more for the first plan, and once for the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedpipe_operator.api import ConditionStatus, ConditionType, FederatedFineTune, StoreSpec
from fedpipe_operator.cluster.credentials import environment_of
from fedpipe_operator.cluster.objects import read_body
from fedpipe_operator.cluster.run_reconciler import with_store
from fedpipe_operator.errors import UserError
from fedpipe_operator.report_server.draw import DrawingTask
from fedpipe_operator.report_server.drawing import Drawer, Launch, Page
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.status import stored_at
from fedpipe_operator.store import Credentials
from fedpipe_operator.store.address import BucketAddress, DirectoryAddress

Body = Mapping[str, Any]
Find = Callable[[str, str], Body | None]
"""The watched object of the run with this namespace and name; None if there is none."""
Locate = Callable[[Run], tuple[BucketAddress | DirectoryAddress, Credentials]]
"""Where a run's store is, and its key pair."""

_ENDS: Final = (ConditionType.COMPLETE, ConditionType.FAILED)


@dataclass(frozen=True)
class Reports:
    """The reports of the runs that the operator serves. Thread-safe."""

    find: Find
    locate: Locate
    drawer: Drawer
    default_store: StoreSpec | None = None

    def page(self, namespace: str, name: str, *, seconds: float) -> Page | None:
        """The report of this run as its last finished round left it, waited for so long; None if there is no such run.

        Raises:
            FedPipeError: `SpecInvalid`; `StoreMoved`; or what `Drawer.page` raises.
        """
        body = self.find(namespace, name)
        if body is None:
            return None
        resource = read_body(with_store(body, self.default_store), FederatedFineTune)
        if isinstance(resource, list):
            raise UserError("SpecInvalid", f"{namespace}/{name}: {'; '.join(resource)}")
        return self.drawer.page(
            namespace, resource.metadata.uid, shown_version(resource), lambda: self._launch(Run(resource, ())), seconds=seconds
        )

    def _launch(self, run: Run) -> Launch:
        known, now = run.resource.status.store, stored_at(run.resource)
        if known is not None and now is not None and (known.bucket, known.prefix) != (now.bucket, now.prefix):
            where = f"its results are in s3://{known.bucket}/{known.prefix}, as its status.store says"
            raise UserError("StoreMoved", f"{where}, and not in the operator's present defaultStore: use fedpipe report")
        address, credentials = self.locate(run)
        return Launch(DrawingTask(store=address, run=run.resource).to_json(), environment_of(credentials))


def shown_version(resource: FederatedFineTune) -> str:
    """What the report of a run shows: its last finished round, whether it has a plan, and how it ended. It changes once a round."""
    status = resource.status
    ended = [one.type for one in status.conditions if one.type in _ENDS and one.status is ConditionStatus.TRUE]
    last = max((one.round for one in status.history), default=0)
    return f"{last} {bool(status.plans)} {''.join(ended)}"
