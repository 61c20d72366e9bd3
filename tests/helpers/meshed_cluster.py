"""A stand-in for a cluster that injects a proxy into every pod, which goes on after the trainer."""

import json
from dataclasses import dataclass, field
from typing import Any

from stand_in_cluster import KubeWorld
from trainer_results import perform

from fedpipe_operator.cluster import KubeJob
from fedpipe_trainer.contract import parse_task

PROXY = {"name": "istio-proxy", "ready": True, "state": {"running": {}}}


@dataclass
class MeshedWorld(KubeWorld):
    """A cluster in which a proxy is injected into every pod."""

    done: set[str] = field(default_factory=set)

    def finish(self, name: str) -> None:
        """Have the Job's trainer do its task, and its pod go on."""
        if name not in self.done:
            assert perform(self.trainer, parse_task(json.dumps(self.task_of(name))), self.folder) is not None
            self.stop(name, 0, "Completed")

    def stop(self, name: str, code: int, reason: str = "Error", *, container: str = "trainer", **status: Any) -> None:
        """Let our container of the Job's pod end like this, and the proxy go on: of all this, the Job says that no pod is ready."""
        self.done.add(name)
        own = {"name": container, "ready": False, "state": {"terminated": {"exitCode": code, "reason": reason}}}
        self.pod(name, {"phase": "Running", "containerStatuses": [own, PROXY]} | status)
        self.api.merge_status_of_job(self.object_name(name), {"active": 1, "ready": 0})

    def run_all(self) -> None:
        """The Jobs that are active have ready pods."""
        for name in self.active_jobs():
            self.api.merge_status_of_job(self.object_name(name), {"active": 1, "ready": 1})

    def pass_seconds(self, seconds: int) -> None:
        """Let the operator reconcile for so long, as often as it asks for it."""
        until = self.now + seconds
        while self.now < until:
            requeue_at = self.reconcile()
            self.now = until if requeue_at is None else max(self.now + 1, min(requeue_at, until))
        self.reconcile()

    def job(self, name: str) -> KubeJob:
        """The Job of this name within its run."""
        return next(job for job in self.jobs() if job.job.name == name)
