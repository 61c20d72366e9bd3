"""Objects as a watch delivers them, read into values: runs and sites, Jobs and nodes. Pure.

Jobs and nodes are reduced to a few fields as soon as they arrive, so that thousands of them need little memory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from fedpipe_operator import names
from fedpipe_operator.api import ApiModel, EdgeSite, FederatedFineTune, FineTuneStatus, parse_quantity
from fedpipe_operator.api.edgesite import EdgeSiteStatus
from fedpipe_operator.api.finetune import CONTROLLER
from fedpipe_operator.api.meta import (
    ANNOTATION_EXIT_CODE,
    ANNOTATION_MESSAGE,
    ANNOTATION_REASON,
    LABEL_ATTEMPT,
    LABEL_ROUND,
    LABEL_RUN,
    LABEL_RUN_UID,
    LABEL_SITE,
    LABEL_TASK,
)
from fedpipe_operator.api.parse import parse_object
from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.sites import Node

Body = Mapping[str, Any]
Kind = TypeVar("Kind", bound=ApiModel)
Status = TypeVar("Status", bound=ApiModel)

RUN_KIND: Final = "FederatedFineTune"
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,8}")
"""A round, an attempt or an exit code as the operator writes it into a label or an annotation."""
_STATUS_OF: Final[dict[type[ApiModel], type[ApiModel]]] = {EdgeSite: EdgeSiteStatus, FederatedFineTune: FineTuneStatus}


def read_body(body: Body, kind: type[Kind]) -> Kind | list[str]:
    """The object, or the problems of its spec. A status that an older version wrote is dropped; it never makes the spec invalid."""
    plain = {name: body[name] for name in ("apiVersion", "kind", "metadata", "spec") if name in body}
    value, problems = parse_object(plain, kind)
    if value is None or problems:
        return problems
    return value.model_copy(update={"status": read_status(body, _STATUS_OF[kind])})


def read_status(body: Body, kind: type[Status]) -> Status:
    """The object's status; an empty one if it cannot be read."""
    try:
        return kind.model_validate(body.get("status") or {})
    except ValidationError:
        return kind()


def is_managed_by_another(body: Body) -> bool:
    """Whether this run names another controller, whether or not the rest of its spec is valid: then it is none of the operator's."""
    return bool((body.get("spec") or {}).get("managedBy", CONTROLLER) != CONTROLLER)


def private_claims_of(body: Body) -> list[str]:
    """The claims that hold the data and the cache of this site, whether or not the rest of its spec is valid."""
    spec = body.get("spec") or {}
    volumes = ((spec.get("data") or {}).get("volume"), spec.get("cache"))
    claims = ((volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes if volume)
    return [claim for claim in claims if claim]


class NamespacedName(NamedTuple):
    """The identity of a namespaced object."""

    namespace: str
    name: str


def namespaced_name(body: Body) -> NamespacedName:
    """The identity of this object."""
    return NamespacedName(body["metadata"]["namespace"], body["metadata"]["name"])


def slim(body: Body) -> dict[str, Any]:
    """The object without the fields that the operator never reads."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {name: value for name, value in body.items() if name != "metadata"} | {"metadata": metadata}


def version_of(body: Body) -> int:
    """The object's resource version as a number: a larger one is newer."""
    text = str(body["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class KubeJob:
    """A Job of a run."""

    namespace: str
    run: str
    run_uid: str
    job: Job
    created_at: float
    """Unix seconds."""
    uid: str = ""
    is_deleting: bool = False
    is_suspended: bool = False
    """By a queue such as Kueue."""
    suspended_at: float | None = None
    """Unix seconds since when it is suspended; None if it is not, or the Job controller does not know it yet."""
    resumed_at: float | None = None
    """Unix seconds of the end of its last suspension; None if there was none, or it is not over."""
    ready: int = 0
    """Pods that are ready."""
    has_pod_ended: bool = False
    """Whether its pod has ended; the Job's condition follows a moment later."""
    ended: str = ""
    """Complete or Failed, once it ended."""
    reason: str = ""
    """Of its failure: by the operator's own annotation, else by the Job controller."""
    message: str = ""
    given_up: bool = False
    """Whether the operator ended it: its pod could not start, or would have gone on after its task."""
    exit_code: int | None = None
    """Of the task, if the operator ended the Job after it."""

    @property
    def name(self) -> str:
        """Its name in Kubernetes; `job.name` is that within its run."""
        job = self.job
        return names.job_object(self.run_uid, job.name, job.kind, job.site, job.round, job.attempt)

    @property
    def is_active(self) -> bool:
        """Whether it occupies, or may yet occupy, one of its site's job slots."""
        return not self.ended and not self.given_up

    @property
    def is_unready(self) -> bool:
        """Whether its pod has not started, or goes on although a container of it has ended; or will have ended in a moment."""
        return self.is_active and not (self.is_deleting or self.is_suspended or self.ready or self.has_pod_ended)


def kube_job(body: Body) -> KubeJob | None:
    """The Job of this object; None unless it is one that the operator made.

    Anybody who may create Jobs can give one FedPipe's labels, with any values. Such a Job belongs to no run.
    """
    found = _identity(body["metadata"])
    if found is None:
        return None
    meta, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    annotations = meta.get("annotations", {})
    end: Body = next((one for one in status.get("conditions", ()) if one["type"] in ("Complete", "Failed") and one["status"] == "True"), {})
    given_up = ANNOTATION_REASON in annotations
    suspended_at, resumed_at = _suspension(body)
    return replace(
        found,
        created_at=unix(meta["creationTimestamp"]),
        uid=meta.get("uid", ""),
        is_deleting="deletionTimestamp" in meta,
        is_suspended=bool(spec.get("suspend")),
        suspended_at=suspended_at,
        resumed_at=resumed_at,
        ready=status.get("ready", 0),
        has_pod_ended=bool(status.get("succeeded") or any(status.get("uncountedTerminatedPods", {}).values())),
        ended=end.get("type", ""),
        reason=annotations[ANNOTATION_REASON] if given_up else end.get("reason", ""),
        message=annotations.get(ANNOTATION_MESSAGE, "") if given_up else end.get("message", ""),
        given_up=given_up,
        exit_code=_exit_code(annotations),
    )


def _exit_code(annotations: Body) -> int | None:
    """That of the task, as the operator wrote it when it ended the Job."""
    text = annotations.get(ANNOTATION_EXIT_CODE, "")
    return int(text) if _NUMBER.fullmatch(text) else None


def _suspension(body: Body) -> tuple[float | None, float | None]:
    """Since when the Job is suspended, or when it was resumed, as its controller says: it follows `spec.suspend` a moment later.

    A Job that was suspended once has the condition `Suspended` ever after, False once it was resumed.
    """
    found = next((one for one in body.get("status", {}).get("conditions", ()) if one["type"] == "Suspended"), None)
    created_at = body["metadata"]["creationTimestamp"]
    if found is None:
        return (unix(created_at) if body.get("spec", {}).get("suspend") else None), None
    changed_at = unix(found.get("lastTransitionTime") or created_at)
    return (changed_at, None) if found["status"] == "True" else (None, changed_at)


def is_ours(meta: Body) -> bool:
    """Whether a Job with this metadata is one that the operator made."""
    return _identity(meta) is not None


def is_owned_by(meta: Body, uid: str) -> bool:
    """Whether the run of this uid controls the object."""
    owners = meta.get("ownerReferences") or ()
    return any(one.get("kind") == RUN_KIND and one.get("uid") == uid and one.get("controller") is True for one in owners)


def _identity(meta: Body) -> KubeJob | None:
    """Which job this metadata says to be, if its owner and its name say the same."""
    labels = meta.get("labels") or {}
    kind, site, uid = labels.get(LABEL_TASK, ""), labels.get(LABEL_SITE, ""), labels.get(LABEL_RUN_UID, "")
    numbers = [labels.get(label, "") for label in (LABEL_ROUND, LABEL_ATTEMPT)]
    if kind not in set(TaskKind) or not all(map(_NUMBER.fullmatch, numbers)) or not is_owned_by(meta, uid):
        return None
    run, (round_, attempt) = labels.get(LABEL_RUN, ""), map(int, numbers)
    name = names.job(run, kind, site=site, round_=round_, attempt=attempt)
    found = KubeJob(meta["namespace"], run, uid, Job(name, TaskKind(kind), site, round_, attempt), created_at=0.0)
    return found if found.name == meta["name"] else None


def kube_node(body: Body) -> Node:
    """The node of this object."""
    meta, status = body["metadata"], body.get("status", {})
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ()))
    return Node(
        name=meta["name"],
        labels=dict(meta.get("labels", {})),
        allocatable={name: _number(text) for name, text in status.get("allocatable", {}).items()},
        schedulable=ready and not body.get("spec", {}).get("unschedulable", False),
        uid=meta.get("uid", ""),
    )


def _number(quantity: str) -> float:
    """A quantity as a number; 0 if its unit is one that FedPipe's own fields do not accept."""
    try:
        return parse_quantity(quantity)
    except ValueError:
        return 0.0


def unix(timestamp: str) -> float:
    """Unix seconds of a time as Kubernetes writes it."""
    return datetime.fromisoformat(timestamp).timestamp()
