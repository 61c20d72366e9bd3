"""What is kept of a Job and of a node: reduced as soon as the watch brings them, so that thousands of them stay small. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fedpipe_operator.api import amount
from fedpipe_operator.api.meta import (
    ANNOTATION_MESSAGE,
    ANNOTATION_REASON,
    LABEL_ATTEMPT,
    LABEL_ROUND,
    LABEL_RUN,
    LABEL_RUN_UID,
    LABEL_SITE,
    LABEL_TASK,
)
from fedpipe_operator.backend import Job
from fedpipe_operator.sites.capacity import Node

Body = Mapping[str, Any]


@dataclass(frozen=True)
class KubeJob:
    """A Job of ours."""

    namespace: str
    run: str
    run_uid: str
    job: Job
    created_at: float
    """Unix seconds."""
    uid: str = ""
    is_deleting: bool = False
    is_suspended: bool = False
    """Held back by a queue."""
    ready: int = 0
    """Pods at work."""
    has_pod_ended: bool = False
    """Whether its pod has ended, of which the Job will tell a moment later."""
    ended: str = ""
    """Complete or Failed once it is over."""
    reason: str = ""
    """Of its failure: by the operator's own annotation, else by the Job controller."""
    message: str = ""
    given_up: bool = False
    """Whether the operator ended it because its pod could not start."""

    @property
    def is_active(self) -> bool:
        """Whether it holds, or may yet get, a place at its site."""
        return not self.ended and not self.given_up


def kube_job(body: Body) -> KubeJob:
    """The Job of this object, which carries our labels."""
    meta, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    labels, annotations = meta["labels"], meta.get("annotations", {})
    end: Body = next((one for one in status.get("conditions", ()) if one["type"] in ("Complete", "Failed") and one["status"] == "True"), {})
    given_up = ANNOTATION_REASON in annotations
    return KubeJob(
        namespace=meta["namespace"],
        run=labels.get(LABEL_RUN, ""),
        run_uid=labels.get(LABEL_RUN_UID, ""),
        job=Job(
            name=meta["name"],
            kind=labels.get(LABEL_TASK, ""),
            site=labels.get(LABEL_SITE, ""),
            round=int(labels.get(LABEL_ROUND, 0)),
            attempt=int(labels.get(LABEL_ATTEMPT, 0)),
        ),
        created_at=unix(meta["creationTimestamp"]),
        uid=meta.get("uid", ""),
        is_deleting="deletionTimestamp" in meta,
        is_suspended=bool(spec.get("suspend")),
        ready=status.get("ready", 0),
        has_pod_ended=bool(status.get("succeeded") or any(status.get("uncountedTerminatedPods", {}).values())),
        ended=end.get("type", ""),
        reason=annotations[ANNOTATION_REASON] if given_up else end.get("reason", ""),
        message=annotations.get(ANNOTATION_MESSAGE, "") if given_up else end.get("message", ""),
        given_up=given_up,
    )


def kube_node(body: Body) -> Node:
    """The node of this object."""
    meta, status = body["metadata"], body.get("status", {})
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ()))
    return Node(
        name=meta["name"],
        labels=dict(meta.get("labels", {})),
        allocatable={name: _number(text) for name, text in status.get("allocatable", {}).items()},
        takes_pods=ready and not body.get("spec", {}).get("unschedulable", False),
        uid=meta.get("uid", ""),
    )


def _number(quantity: str) -> float:
    """A quantity's number; 0 where none is left, or in a unit that our own fields do not take."""
    try:
        return amount(quantity)
    except ValueError:
        return 0.0


def unix(timestamp: str) -> float:
    """Unix seconds of a time as Kubernetes writes it."""
    return datetime.fromisoformat(timestamp).timestamp()
