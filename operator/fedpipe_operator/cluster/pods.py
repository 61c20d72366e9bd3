"""What a Job's pod says: why it does not start, and how it ended. Pure: the pod as the API gave it, in plain values."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fedpipe_operator.cluster.objects import unix
from fedpipe_trainer.contract import FailureReason

Body = Mapping[str, Any]

_BAD_IMAGE: Final = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_BAD_START: Final = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun")
_MOUNTED: Final = ("Pulling", "Pulled")
"""What a kubelet tells of once all volumes are mounted."""
_STARTING: Final = ("ContainerCreating", "PodInitializing")
_NO_CLAIM: Final = re.compile(r'persistentvolumeclaim "[^"]*" (not found|is being deleted)')
STARTING: Final = "Starting"
UNSCHEDULABLE: Final = "Unschedulable"
_QUOTA: Final = "exceeded quota"
_OURS: Final = ("trainer", "worker")
_OOM: Final = "OOMKilled"
_KILLED: Final = 137
_REASONS: Final = {int(reason.exit_code): str(reason) for reason in FailureReason} | {_KILLED: "Killed"}
"""What a trainer or a worker means by its exit code."""


@dataclass(frozen=True)
class Waiting:
    """Why a pod is not at work."""

    reason: str
    """One CamelCase word."""
    message: str
    """In the words of the scheduler or the kubelet."""
    is_hopeless: bool
    """Whether waiting longer would not help."""
    is_slow: bool = False
    """Whether it takes longer than other failures to tell a bad start from a slow one."""
    since: float = 0.0
    """Unix seconds: since when there has been this pod; 0 if there is none."""


@dataclass(frozen=True)
class Ending:
    """How a pod's container ended."""

    exit_code: int | None
    reason: str
    message: str


def waiting(pods: Sequence[Body]) -> Waiting | None:
    """Why the newest of these pods is not at work; None if it is, or says nothing."""
    pod = _newest(pods)
    told = pod and _why_waiting(pod)
    return replace(told, since=unix(pod["metadata"]["creationTimestamp"])) if pod and told else None


def _why_waiting(pod: Body) -> Waiting | None:
    unscheduled = next((one for one in _conditions(pod) if one["type"] == "PodScheduled" and one["status"] == "False"), None)
    if unscheduled is not None:
        return _unscheduled(unscheduled.get("message", ""))
    for held in _states(pod, "waiting"):
        reason, message = held.get("reason", ""), held.get("message", "")
        if reason in _STARTING:
            return Waiting(STARTING, "its container is being made", is_hopeless=False)
        if reason in _BAD_IMAGE:
            return Waiting("ImageUnavailable", f"{reason}: {message}", is_hopeless=True)
        if reason in _BAD_START:
            return Waiting("CannotStart", f"{reason}: {message}", is_hopeless=True)
    return None


def _unscheduled(message: str) -> Waiting:
    """In the scheduler's own words. Capacity may come; a claim that does not exist will not by itself."""
    if _NO_CLAIM.search(message):
        return Waiting("VolumeMissing", message, is_hopeless=True)
    return Waiting(UNSCHEDULABLE, message, is_hopeless=False)


def ending(pods: Sequence[Body]) -> Ending | None:
    """How the newest of these pods ended; None if none did."""
    pod = _newest(pods)
    if pod is None:
        return None
    status = pod.get("status", {})
    if status.get("reason"):  # Evicted and the like: what became of the container is a consequence
        return Ending(None, status["reason"], status.get("message", ""))
    ended = _terminated(pod)
    if ended is None:
        return None
    code, reason = ended.get("exitCode"), ended.get("reason", "")
    if reason == _OOM:
        return Ending(code, str(FailureReason.OUT_OF_MEMORY), f"the kernel ended it at its memory limit (exit code {code})")
    told = ended.get("message") or f"exit code {code}; kubectl logs has its own words, while the Job is kept"
    return Ending(code, _REASONS.get(code or 0, "Died"), told)


def not_created(events: Sequence[Body]) -> Waiting | None:
    """Why the Job controller may not make the pod at all, in the words that it was refused with; None if it says nothing."""
    told = [str(one.get("message", "")) for one in events if one.get("reason") == "FailedCreate"]
    return Waiting("PodRefused", told[-1], is_hopeless=_QUOTA not in told[-1]) if told else None


def mount_failure(events: Sequence[Body]) -> str:
    """What the kubelet says of a volume that it cannot mount; empty if it says nothing, or has gone on to the image since."""
    if any(one.get("reason") in _MOUNTED for one in events):
        return ""
    told = [one for one in events if one.get("reason") in ("FailedMount", "FailedAttachVolume")]
    return str(told[-1].get("message", "")) if told else ""


def _newest(pods: Sequence[Body]) -> Body | None:
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def _conditions(pod: Body) -> Sequence[Body]:
    found: Sequence[Body] = pod.get("status", {}).get("conditions", ())
    return found


def _states(pod: Body, kind: str) -> Iterator[Body]:
    return (one["state"][kind] for one in _containers(pod) if kind in one.get("state", {}))


def _terminated(pod: Body) -> Body | None:
    """How our own container ended; of those that others added, one that failed."""
    ended = [one for one in _containers(pod) if "terminated" in one.get("state", {})]
    first = min(ended, key=lambda one: (one.get("name") not in _OURS, not one["state"]["terminated"].get("exitCode")), default=None)
    found: Body | None = first and first["state"]["terminated"]
    return found


def _containers(pod: Body) -> Sequence[Body]:
    status = pod.get("status", {})
    return (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
