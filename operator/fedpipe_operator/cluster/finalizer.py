"""The end of a run's object: what lies outside Kubernetes goes with it if the spec says so. All else is the garbage collector's."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from fedpipe_operator.api import DeletionPolicy, FederatedFineTune
from fedpipe_operator.api.meta import FINALIZER, LABEL_RUN_UID
from fedpipe_operator.cluster.api import JOBS, RUNS, Api
from fedpipe_operator.cluster.api_errors import NAMESPACE_TERMINATING
from fedpipe_operator.cluster.backend import Cluster
from fedpipe_operator.cluster.bodies import read_body
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.cluster.objects import KubeJob
from fedpipe_operator.cluster.status_writer import RUN, ClusterStatusWriter
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.rounds import Event, Run

Body = Mapping[str, Any]

_AGAIN_SECONDS: Final = 5.0
_NOTHING_THERE: Final = ("BucketMissing",)
_IN_THE_NAMESPACE: Final = ("SecretMissing", "SecretIncomplete")
_LOG: Final = logging.getLogger(__name__)


def sync_finalizer(body: Body, resource: FederatedFineTune, api: Api) -> None:
    """Have the finalizer on the object exactly while its results are to be deleted with it."""
    wanted = resource.spec.deletion_policy is DeletionPolicy.DELETE
    if wanted != (FINALIZER in body["metadata"].get("finalizers", ())):
        _set_finalizer(body, api, present=wanted)


def finalize(
    body: Body, jobs: Mapping[str, KubeJob], cluster: Cluster, stores: StoreConnections, status_writer: ClusterStatusWriter
) -> float | None:
    """Delete the run's objects in the store, once nothing of it is at work any more; then let the object go."""
    meta = body["metadata"]
    if FINALIZER not in meta.get("finalizers", ()):
        return None
    cluster.workers.discard(meta["uid"])
    if jobs:  # in the foreground, so that they are there until their pods have ended: an ending trainer still writes
        cluster.api.delete_all(JOBS, meta["namespace"], {LABEL_RUN_UID: meta["uid"]}, foreground=True)
        return cluster.clock() + _AGAIN_SECONDS
    resource = read_body(body, FederatedFineTune)
    if isinstance(resource, FederatedFineTune) and resource.spec.deletion_policy is DeletionPolicy.DELETE:
        _delete_results(resource, stores, status_writer)
    _set_finalizer(body, cluster.api, present=False)
    return None


def _delete_results(resource: FederatedFineTune, stores: StoreConnections, status_writer: ClusterStatusWriter) -> None:
    try:
        stores.of(Run(resource, ())).store.delete("")
    except UserError as error:
        stores.forget(resource.metadata.uid)  # its Secret may be mended meanwhile
        if error.reason in _NOTHING_THERE:
            return
        if _is_told(resource, error, status_writer) or error.reason not in _IN_THE_NAMESPACE:
            raise
        _LOG.warning("the results of %s/%s stay in the store: %s", resource.metadata.namespace, resource.metadata.name, error)


def _is_told(resource: FederatedFineTune, error: UserError, status_writer: ClusterStatusWriter) -> bool:
    """Whether somebody can mend it: in a namespace that is being deleted nothing is made any more, neither an event nor a Secret."""
    told = f"{error.message}; mend this, or set spec.deletionPolicy to Retain"
    try:
        status_writer.post(RUN, resource.metadata, Event("ResultsNotDeleted", told, warning=True))
    except TransientError as refusal:
        if refusal.reason != NAMESPACE_TERMINATING:
            raise
        return False
    return True


def _set_finalizer(body: Body, api: Api, *, present: bool) -> None:
    """With the resource version, so that a finalizer of somebody else is never lost."""
    meta = body["metadata"]
    others = [name for name in meta.get("finalizers", ()) if name != FINALIZER]
    finalizers = [*others, FINALIZER] if present else others
    change = {"metadata": {"finalizers": finalizers, "resourceVersion": meta["resourceVersion"]}}
    api.merge(RUNS, meta["namespace"], meta["name"], change)
