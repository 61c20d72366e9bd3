"""Why a Job's pod does not start, how it ended, and how its task ended if other containers keep the pod alive.

First pure functions over pods and events as the API returns them, then `PodDiagnostics`, which fetches and caches them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from fedpipe_operator.admission import clean_message
from fedpipe_operator.cluster.api import EVENTS, PODS, Api, Plain
from fedpipe_operator.cluster.objects import KubeJob, unix
from fedpipe_operator.manifests.jobs import TRAINER, WORKER
from fedpipe_trainer.contract import FailureReason

Body = Mapping[str, Any]

_IMAGE_ERRORS: Final = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_START_ERRORS: Final = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun")
_AFTER_MOUNT: Final = ("Pulling", "Pulled")
"""Reasons of the kubelet's events once all volumes are mounted."""
_STARTING: Final = ("ContainerCreating", "PodInitializing")
_NO_CLAIM: Final = re.compile(r'persistentvolumeclaim "[^"]*" (not found|is being deleted)')
MOST_OF_A_MESSAGE: Final = 4096
"""Characters. What a node or an event says goes into annotations of a Job, which have 256 KiB together, and into status and log."""
_MOST_OF_A_REASON: Final = 64
STARTING: Final = "Starting"
UNSCHEDULABLE: Final = "Unschedulable"
_QUOTA: Final = "exceeded quota"
_OUR_CONTAINERS: Final = (TRAINER, WORKER)
_OVER: Final = ("Succeeded", "Failed")
"""Phases of a pod that has ended."""
_OOM: Final = "OOMKilled"
_KILLED: Final = 137
_REASONS: Final = {0: "Completed"} | {int(reason.exit_code): str(reason) for reason in FailureReason} | {_KILLED: "Killed"}
"""The reason that each exit code of a trainer or a worker stands for."""
_SEE_LOG: Final = "see `kubectl logs` while the Job is kept"
_NO_LOG: Final = "its log went with the pod, which another container kept alive"
_REFETCH_SECONDS: Final = 10.0
_JOB_NAME: Final = "batch.kubernetes.io/job-name"


@dataclass(frozen=True)
class PodWaiting:
    """Why a pod does not run yet."""

    reason: str
    """One CamelCase word."""
    message: str
    """In the words of the scheduler or the kubelet."""
    is_hopeless: bool
    """Whether waiting longer would not help."""
    is_slow: bool = False
    """Whether it takes longer than for other causes to tell a failed start from a slow one."""
    since: float = 0.0
    """Unix seconds of the pod's creation; 0 if there is no pod."""


class PodScheduling(NamedTuple):
    """When a pod came, and when it got its node; Unix seconds, None if it did not."""

    created_at: float | None = None
    scheduled_at: float | None = None


@dataclass(frozen=True)
class PodEnd:
    """How a pod's container ended."""

    exit_code: int | None
    reason: str
    message: str


class _SeenEnd(NamedTuple):
    """A task that was seen to have ended in a pod that goes on."""

    pod: str
    """The pod's uid."""
    since: float
    """Unix seconds, when that was first seen."""
    end: PodEnd


def why_waiting(pods: Sequence[Body]) -> PodWaiting | None:
    """Why the newest of these pods does not run; None if it runs, or gives no cause."""
    pod = _newest(pods)
    waiting = pod and _cause(pod)
    return replace(waiting, since=unix(pod["metadata"]["creationTimestamp"])) if pod and waiting else None


def _cause(pod: Body) -> PodWaiting | None:
    unscheduled = next((one for one in _conditions(pod) if one["type"] == "PodScheduled" and one["status"] == "False"), None)
    if unscheduled is not None:
        return _unscheduled(_words(unscheduled.get("message", "")))
    for state in _states(pod, "waiting"):
        reason, message = state.get("reason", ""), _words(state.get("message", ""))
        if reason in _STARTING:
            return PodWaiting(STARTING, "its container is being created", is_hopeless=False)
        if reason in _IMAGE_ERRORS:
            return PodWaiting("ImageUnavailable", f"{reason}: {message}", is_hopeless=True)
        if reason in _START_ERRORS:
            return PodWaiting("CannotStart", f"{reason}: {message}", is_hopeless=True)
    return None


def _unscheduled(message: str) -> PodWaiting:
    """In the scheduler's words. Capacity may become free; a claim that does not exist will not appear by itself."""
    if _NO_CLAIM.search(message):
        return PodWaiting("VolumeMissing", message, is_hopeless=True)
    return PodWaiting(UNSCHEDULABLE, message, is_hopeless=False)


def scheduling_of(pods: Sequence[Body]) -> PodScheduling:
    """When the newest of these pods came, and when it got its node."""
    pod = _newest(pods)
    if pod is None:
        return PodScheduling()
    times = [one.get("lastTransitionTime") for one in _conditions(pod) if one["type"] == "PodScheduled" and one["status"] == "True"]
    return PodScheduling(unix(pod["metadata"]["creationTimestamp"]), unix(times[0]) if times and times[0] else None)


def pod_end(pods: Sequence[Body]) -> PodEnd | None:
    """How the newest of these pods ended; None if it did not."""
    pod = _newest(pods)
    if pod is None:
        return None
    status = pod.get("status", {})
    if status.get("reason"):  # Evicted and the like: the container's own state is only a consequence
        return PodEnd(None, _words(status["reason"])[:_MOST_OF_A_REASON], _words(status.get("message", "")))
    terminated = _terminated(pod)
    return None if terminated is None else _end_of(terminated, _SEE_LOG)


def task_end(pods: Sequence[Body]) -> PodEnd | None:
    """How our container ended in the newest of these pods, if others in it go on; None if it did not, or if the pod ends anyway.

    Of a pod that is drained, preempted or deleted, the Job decides whether another one replaces it.
    """
    pod = _newest(pods)
    if pod is None or _is_ending(pod):
        return None
    own = next((one for one in _containers(pod) if one.get("name") in _OUR_CONTAINERS), {})
    terminated = own.get("state", {}).get("terminated")
    return None if terminated is None else _end_of(terminated, _NO_LOG)


def _is_ending(pod: Body) -> bool:
    """Whether the pod has ended, or is being ended by somebody else."""
    is_disrupted = any(one["type"] == "DisruptionTarget" and one["status"] == "True" for one in _conditions(pod))
    return is_disrupted or "deletionTimestamp" in pod["metadata"] or pod.get("status", {}).get("phase") in _OVER


def _end_of(terminated: Body, advice: str) -> PodEnd:
    """How this container ended. If it left no message, its exit code and the advice are one."""
    code, reason = terminated.get("exitCode"), terminated.get("reason", "")
    if reason == _OOM:
        return PodEnd(code, str(FailureReason.OUT_OF_MEMORY), f"the kernel killed it at its memory limit (exit code {code})")
    message = _words(terminated.get("message", "")) or f"exit code {code}; {advice}"
    return PodEnd(code, _REASONS.get(code or 0, "Died"), message)


def why_not_created(events: Sequence[Body]) -> PodWaiting | None:
    """Why the Job controller cannot create the pod, from the Job's events; None if they do not say."""
    messages = [_words(str(one.get("message", ""))) for one in events if one.get("reason") == "FailedCreate"]
    return PodWaiting("PodRefused", messages[-1], is_hopeless=_QUOTA not in messages[-1]) if messages else None


def mount_failure(events: Sequence[Body]) -> str:
    """The kubelet's message about a volume that it cannot mount; empty if there is none, or if it went on to the image since."""
    if any(one.get("reason") in _AFTER_MOUNT for one in events):
        return ""
    messages = [_words(str(one.get("message", ""))) for one in events if one.get("reason") in ("FailedMount", "FailedAttachVolume")]
    return messages[-1] if messages else ""


def _words(text: str) -> str:
    """What a container, a node or an event says, as a message may have it: who owns a node writes the states of the pods there."""
    return clean_message(text[:MOST_OF_A_MESSAGE])


def _newest(pods: Sequence[Body]) -> Body | None:
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def _conditions(pod: Body) -> Sequence[Body]:
    found: Sequence[Body] = pod.get("status", {}).get("conditions", ())
    return found


def _states(pod: Body, kind: str) -> Iterator[Body]:
    return (one["state"][kind] for one in _containers(pod) if kind in one.get("state", {}))


def _terminated(pod: Body) -> Body | None:
    """The end of our own container; among sidecars that others injected, that of one that failed."""
    ended = [one for one in _containers(pod) if "terminated" in one.get("state", {})]
    first = min(ended, key=_our_own_then_failed, default=None)
    found: Body | None = first and first["state"]["terminated"]
    return found


def _our_own_then_failed(container: Body) -> tuple[bool, bool]:
    """Sort key of ended containers."""
    return container.get("name") not in _OUR_CONTAINERS, not container["state"]["terminated"].get("exitCode")


def _containers(pod: Body) -> Sequence[Body]:
    status = pod.get("status", {})
    return (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))


@dataclass
class PodDiagnostics:
    """What is known of the pods of one run's Jobs, by the Job's name. Not shared between threads."""

    api: Api
    _ends: dict[str, PodEnd | None] = field(default_factory=dict)
    _waiting: dict[str, tuple[float, PodWaiting | None]] = field(default_factory=dict)
    _scheduling: dict[str, tuple[float, PodScheduling]] = field(default_factory=dict)
    _task_ends: dict[str, _SeenEnd] = field(default_factory=dict)

    def end(self, job: KubeJob) -> PodEnd | None:
        """How the Job's pod ended; None if the pod no longer exists."""
        name = job.job.name
        if name not in self._ends:
            self._ends[name] = pod_end(self._pods(job))
        return self._ends[name]

    def waiting(self, job: KubeJob, now: float) -> PodWaiting | None:
        """Why the Job's pod does not run, at most a few seconds old."""
        fetched_at, known = self._waiting.get(job.job.name, (0.0, None))
        if now - fetched_at < _REFETCH_SECONDS:
            return known
        pods = self._pods(job, may_be_old=True)
        self._scheduling[job.job.name] = now, scheduling_of(pods)
        self._remember_task_end(job.job.name, pods, now)
        waiting = why_waiting(pods) if pods else why_not_created(self._events(job.namespace, job.uid))
        if waiting is not None and waiting.reason == STARTING:
            waiting = self._with_mount_failure(pods, waiting)
        self._waiting[job.job.name] = (now, waiting)
        return waiting

    def task_end(self, job: KubeJob) -> PodEnd | None:
        """How the Job's task ended, if `waiting` saw it ended twice in the same pod.

        Once is not enough: every pod goes on for some moments after its last container, until the kubelet has cleaned up.
        """
        seen, (fetched_at, _) = self._task_ends.get(job.job.name), self._waiting.get(job.job.name, (0.0, None))
        return seen.end if seen is not None and fetched_at - seen.since >= _REFETCH_SECONDS else None

    def scheduling(self, job: KubeJob, now: float) -> PodScheduling:
        """When the Job's pod came and got its node. That of a pod that runs or has ended does not change, so it is asked for once."""
        fetched_at, known = self._scheduling.get(job.job.name, (0.0, PodScheduling()))
        is_settled = fetched_at > 0 and (not job.is_active or (job.ready > 0 and known.scheduled_at is not None))
        if not is_settled and now - fetched_at >= _REFETCH_SECONDS:
            known = scheduling_of(self._pods(job, may_be_old=True))
            self._scheduling[job.job.name] = now, known
        return known

    def last_waiting(self, name: str) -> PodWaiting | None:
        """What `waiting` last returned for this Job."""
        return self._waiting.get(name, (0.0, None))[1]

    def keep(self, names: set[str]) -> None:
        """Forget all Jobs but these."""
        self._ends = {name: end for name, end in self._ends.items() if name in names}
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if name in names}
        self._scheduling = {name: scheduling for name, scheduling in self._scheduling.items() if name in names}
        self._task_ends = {name: end for name, end in self._task_ends.items() if name in names}

    def _remember_task_end(self, name: str, pods: Sequence[Body], now: float) -> None:
        pod, end, known = _newest(pods), task_end(pods), self._task_ends.pop(name, None)
        if pod is not None and end is not None:
            uid = pod["metadata"]["uid"]
            self._task_ends[name] = _SeenEnd(uid, known.since if known is not None and known.pod == uid else now, end)

    def _pods(self, job: KubeJob, *, may_be_old: bool = False) -> list[Plain]:
        return self.api.find(PODS, job.namespace, labels={_JOB_NAME: job.name}, may_be_old=may_be_old)

    def _events(self, namespace: str, uid: str) -> list[Plain]:
        return self.api.find(EVENTS, namespace, fields={"involvedObject.uid": uid})

    def _with_mount_failure(self, pods: list[Plain], waiting: PodWaiting) -> PodWaiting:
        """A container that takes long to create may wait for a volume; only the kubelet's events say so."""
        meta = pods[0]["metadata"]
        message = mount_failure(self._events(meta["namespace"], meta["uid"]))
        return replace(waiting, reason="MountFailed", message=message, is_hopeless=True, is_slow=True) if message else waiting
