"""The finalizer of a run: deletes its objects in the store if the spec says so, and ends the uploads of an export that is under way.

Kubernetes' garbage collector deletes the rest.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from fedpipe_operator.api import DeletionPolicy, FederatedFineTune, Reason
from fedpipe_operator.api.meta import FINALIZER, LABEL_RUN_UID
from fedpipe_operator.cluster.api import JOBS, RUNS, Api
from fedpipe_operator.cluster.api_errors import NAMESPACE_TERMINATING
from fedpipe_operator.cluster.backend import Cluster
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.cluster.objects import KubeJob, read_body
from fedpipe_operator.cluster.status_writer import RUN, ClusterStatusWriter
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.reconcile.uploads import abort_uploads
from fedpipe_operator.rounds import Event, Run
from fedpipe_operator.rounds.decide import is_over

Body = Mapping[str, Any]

_REQUEUE_SECONDS: Final = 5.0
_NOTHING_TO_DELETE: Final = ("BucketMissing",)
_CANNOT_OPEN: Final = ("SecretMissing", "SecretIncomplete", "CredentialsMissing", "StoreNotAllowed", "StoreMissing", "AddressRefused")
_LOG: Final = logging.getLogger(__name__)


def sync_finalizer(body: Body, resource: FederatedFineTune, api: Api) -> None:
    """Set the finalizer if the results are to be deleted with the object, or once it uploads a model; else remove it.

    A run that is suspended or blocked in its export says so in its status, in place of the export: so until its end the finalizer stays.
    """
    is_set = FINALIZER in body["metadata"].get("finalizers", ())
    wanted = resource.spec.deletion_policy is DeletionPolicy.DELETE or _is_exporting(resource) or (is_set and not is_over(resource))
    if wanted != is_set:
        _set_finalizer(body, api, present=wanted)


def finalize(
    body: Body, jobs: Mapping[str, KubeJob], cluster: Cluster, stores: StoreConnections, status_writer: ClusterStatusWriter
) -> float | None:
    """Delete the run's objects in the store once none of its Jobs is left; then remove the finalizer."""
    meta = body["metadata"]
    if FINALIZER not in meta.get("finalizers", ()):
        return None
    cluster.workers.discard(meta["uid"])
    if jobs:  # in the foreground, so that they exist until their pods have ended: a terminating trainer still writes
        cluster.api.delete_all(JOBS, meta["namespace"], {LABEL_RUN_UID: meta["uid"]}, foreground=True)
        return cluster.clock() + _REQUEUE_SECONDS
    resource = read_body(body, FederatedFineTune)
    if isinstance(resource, FederatedFineTune):
        if not is_over(resource):
            _abort_uploads(resource, stores)
        if resource.spec.deletion_policy is DeletionPolicy.DELETE:
            _delete_results(resource, stores, status_writer)
    _set_finalizer(body, cluster.api, present=False)
    return None


def _is_exporting(resource: FederatedFineTune) -> bool:
    return any(one.reason == Reason.EXPORTING for one in resource.status.conditions) and not is_over(resource)


def _abort_uploads(resource: FederatedFineTune, stores: StoreConnections) -> None:
    """No run waits for its deletion because of them: a bucket's own rule for incomplete uploads does the same, days later."""
    try:
        run = Run(resource, ())
        abort_uploads(run, stores.of(run).store)
    except FedPipeError as error:
        stores.forget(resource.metadata.uid)
        _LOG.warning("parts of the export of %s/%s may stay in the store: %s", resource.metadata.namespace, resource.metadata.name, error)


def _delete_results(resource: FederatedFineTune, stores: StoreConnections, status_writer: ClusterStatusWriter) -> None:
    try:
        stores.of(Run(resource, ())).store.delete("")
    except UserError as error:
        stores.forget(resource.metadata.uid)  # its Secret may be corrected in the meantime
        if error.reason in _NOTHING_TO_DELETE:
            return
        if _is_reported(resource, error, status_writer) or error.reason not in _CANNOT_OPEN:
            raise
        _LOG.warning("the results of %s/%s stay in the store: %s", resource.metadata.namespace, resource.metadata.name, error)


def _is_reported(resource: FederatedFineTune, error: UserError, status_writer: ClusterStatusWriter) -> bool:
    """Report the error as an event; False in a namespace that is being deleted, where no event or Secret can be created any more."""
    message = f"{error.message}; correct this, or set spec.deletionPolicy to Retain"
    try:
        status_writer.post_event(RUN, resource.metadata, Event("ResultsNotDeleted", message, warning=True))
    except TransientError as refusal:
        if refusal.reason != NAMESPACE_TERMINATING:
            raise
        return False
    return True


def _set_finalizer(body: Body, api: Api, *, present: bool) -> None:
    """With the resource version, so that another controller's finalizer is never lost."""
    meta = body["metadata"]
    others = [name for name in meta.get("finalizers", ()) if name != FINALIZER]
    finalizers = [*others, FINALIZER] if present else others
    change = {"metadata": {"finalizers": finalizers, "resourceVersion": meta["resourceVersion"]}}
    api.merge(RUNS, meta["namespace"], meta["name"], change)
