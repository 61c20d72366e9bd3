"""What is asked of the API about a Job's pod: why it waits, how it ended. Asked seldom, and kept."""

from dataclasses import dataclass, field, replace
from typing import Final

from fedpipe_operator.cluster import pods
from fedpipe_operator.cluster.api import EVENTS, PODS, Api, Plain
from fedpipe_operator.cluster.objects import KubeJob
from fedpipe_operator.cluster.pods import Ending, Waiting

_ASK_AGAIN_SECONDS: Final = 10.0
_JOB_NAME: Final = "batch.kubernetes.io/job-name"


@dataclass
class Words:
    """The pods of one run's Jobs, by the Job's name. Not shared between threads."""

    api: Api
    _endings: dict[str, Ending | None] = field(default_factory=dict)
    _waiting: dict[str, tuple[float, Waiting | None]] = field(default_factory=dict)

    def ending(self, job: KubeJob) -> Ending | None:
        """How the Job's pod ended; None if it is not there any more."""
        name = job.job.name
        if name not in self._endings:
            self._endings[name] = pods.ending(self._pods(job))
        return self._endings[name]

    def waiting(self, job: KubeJob, now: float) -> Waiting | None:
        """Why the Job's pod is not at work, as it was some seconds ago at most."""
        asked_at, known = self._waiting.get(job.job.name, (0.0, None))
        if now - asked_at < _ASK_AGAIN_SECONDS:
            return known
        found = self._pods(job, may_be_old=True)
        told = pods.waiting(found) if found else pods.not_created(self._events(job.namespace, job.uid))
        if told is not None and told.reason == pods.STARTING:
            told = self._with_mount_failure(found, told)
        self._waiting[job.job.name] = (now, told)
        return told

    def last_waiting(self, name: str) -> Waiting | None:
        """What was told last of a Job that waits."""
        return self._waiting.get(name, (0.0, None))[1]

    def keep(self, names: set[str]) -> None:
        """Forget all Jobs but these."""
        self._endings = {name: told for name, told in self._endings.items() if name in names}
        self._waiting = {name: told for name, told in self._waiting.items() if name in names}

    def _pods(self, job: KubeJob, *, may_be_old: bool = False) -> list[Plain]:
        return self.api.find(PODS, job.namespace, labels={_JOB_NAME: job.job.name}, may_be_old=may_be_old)

    def _events(self, namespace: str, uid: str) -> list[Plain]:
        return self.api.find(EVENTS, namespace, fields={"involvedObject.uid": uid})

    def _with_mount_failure(self, found: list[Plain], told: Waiting) -> Waiting:
        """A container that is being made for long may wait for a volume; only the kubelet's events say so."""
        meta = found[0]["metadata"]
        why = pods.mount_failure(self._events(meta["namespace"], meta["uid"]))
        return replace(told, reason="MountFailed", message=why, is_hopeless=True, is_slow=True) if why else told
