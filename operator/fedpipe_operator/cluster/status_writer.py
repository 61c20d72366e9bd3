"""The status writer and event recorder of the cluster: the status of runs and sites, and events on them."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from fedpipe_operator.api import API_VERSION, FineTuneStatus, Metadata
from fedpipe_operator.api.edgesite import EdgeSiteStatus
from fedpipe_operator.cluster.api import EVENTS, RUNS, SITES, Api, Kind
from fedpipe_operator.cluster.dropped_fields import DroppedFields
from fedpipe_operator.cluster.objects import slim, version_of
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.rounds import Event, Run

Body = Mapping[str, Any]

_LOG: Final = logging.getLogger(__name__)
_MESSAGE_MAX: Final = 1024
_COMPONENT: Final = "fedpipe-operator"
RUN: Final = "FederatedFineTune"
SITE: Final = "EdgeSite"
_UPGRADE: Final = "upgrade the CRDs (the chart's crds.enabled, or the files of crds/)"
_KINDS: Final[dict[str, Kind]] = {RUN: RUNS, SITE: SITES}


@dataclass
class ClusterStatusWriter:
    """Writes status and events of all objects. It keeps what it wrote until the watch reports it. Thread-safe."""

    api: Api
    clock: Callable[[], float]
    _dropped: DroppedFields = field(init=False)
    _written: dict[tuple[str, str, str], Body] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._dropped = DroppedFields(self.clock)

    def write_status(self, run: Run, status: FineTuneStatus) -> None:
        """Replace the run's status."""
        self.write(RUN, run.resource.metadata, status, before=run.resource.status)

    def record_event(self, run: Run, event: Event) -> None:
        """Post an event on the run. The status says the same, so an event that cannot be posted stops nothing."""
        try:
            self.post_event(RUN, run.resource.metadata, event)
        except FedPipeError as error:
            _LOG.warning("the event %s of %s could not be posted: %s", event.reason, run.name, error)

    def write(self, kind: str, meta: Metadata, status: FineTuneStatus | EdgeSiteStatus, *, before: FineTuneStatus | EdgeSiteStatus) -> None:
        """Replace an object's whole status, in one call; in none if all that is new in it would be dropped, as the last time."""
        key, plain = (kind, meta.namespace, meta.name), _plain(status)
        if self._dropped.adds_nothing(key, plain, _plain(before)):
            return
        written = self.api.replace_status(_KINDS[kind], meta.namespace, meta.name, plain)
        if written is None:
            return
        with self._lock:
            self._written[key] = slim(written)
        if fields := self._dropped.written(key, plain, written.get("status") or {}):
            self._report_dropped(kind, meta, fields)

    def _report_dropped(self, kind: str, meta: Metadata, fields: Sequence[str]) -> None:
        message = f"the API server drops {', '.join(fields)}: its CRD of {kind} is older than the operator; {_UPGRADE}"
        _LOG.warning("%s/%s: %s", meta.namespace, meta.name, message)
        try:
            self.post_event(kind, meta, Event("StatusFieldsDropped", message, warning=True))
        except FedPipeError as error:
            _LOG.warning("the event could not be posted: %s", error)

    def newest(self, body: Body) -> Body:
        """The object as the watch has it, or as our last write left it if that is newer."""
        meta = body["metadata"]
        key = (body["kind"], meta["namespace"], meta["name"])
        with self._lock:
            written = self._written.get(key)
            if written is None or written["metadata"]["uid"] != meta["uid"] or version_of(written) <= version_of(body):
                self._written.pop(key, None)
                return body
            return written

    def is_echo(self, body: Body) -> bool:
        """Whether the watch reports our own status write and no change that somebody else made before it."""
        meta = body["metadata"]
        with self._lock:
            written = self._written.get((body["kind"], meta["namespace"], meta["name"]))
        is_ours = written is not None and written["metadata"]["resourceVersion"] == meta["resourceVersion"]
        return is_ours and body["status"].get("observedGeneration") == meta["generation"] and "deletionTimestamp" not in meta

    def forget(self, kind: str, namespace: str, name: str) -> None:
        """The object is gone."""
        with self._lock:
            self._written.pop((kind, namespace, name), None)
        self._dropped.forget((kind, namespace, name))

    def post_event(self, kind: str, meta: Metadata, event: Event) -> None:
        """Post an event on an object."""
        now = datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"apiVersion": API_VERSION, "kind": kind, "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta.name}.", "namespace": meta.namespace},
            "involvedObject": about,
            "reason": event.reason,
            "message": event.message[:_MESSAGE_MAX],
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": _COMPONENT},
            "reportingComponent": _COMPONENT,
            "reportingInstance": _COMPONENT,
            "action": event.reason,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self.api.create(EVENTS, meta.namespace, body)


def _plain(status: FineTuneStatus | EdgeSiteStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)
