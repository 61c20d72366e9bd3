"""The operator as Helm installed it, in the hands of one who upgrades it, kills it and reads its log."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from charts import CHART, helm
from cluster_user import Kubectl, Plain, until
from testcluster import outages
from testcluster.layout import default_layout

RELEASE: Final = "fedpipe"
LABELS: Final = "app.kubernetes.io/name=fedpipe,app.kubernetes.io/instance=fedpipe"
_RESTRICTED: Final = {"pod-security.kubernetes.io/enforce": "restricted"}
GRACE_SECONDS: Final = 10


def namespace(name: str) -> Plain:
    """A namespace under the restricted Pod Security profile."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": _RESTRICTED}}


def cluster_is_ours() -> bool:
    """Whether the cluster is one that the tests started themselves."""
    return outages.are_possible(default_layout(), os.environ.get("KUBECONFIG", ""))


def _image(variable: str) -> Plain:
    repository, _, tag = os.environ[variable].rpartition(":")
    return {"repository": repository, "tag": tag}


@dataclass(frozen=True)
class Operator:
    """The release and its one pod."""

    kubectl: Kubectl

    def upgrade(self, values: Mapping[str, Any] | None = None) -> None:
        """Install the chart, or upgrade it, with the images under test; back when its pod is ready."""
        images = {"operatorImage": _image("FEDPIPE_OPERATOR_IMAGE"), "trainerImage": _image("FEDPIPE_TRAINER_IMAGE")}
        given = images | {"pendingGraceSeconds": GRACE_SECONDS, "scratch": "1Gi", "logFormat": "plain"} | dict(values or {})
        words = [word for name, value in given.items() for word in ("--set-json", f"{name}={json.dumps(value)}")]
        said = helm("upgrade", "--install", RELEASE, CHART, "-n", self.kubectl.namespace, "--wait", "--timeout=2m", *words)
        assert said.returncode == 0, said.stderr + self.log()

    def uninstall(self) -> None:
        """Remove the release; its CRDs stay."""
        helm("uninstall", RELEASE, "-n", self.kubectl.namespace, "--wait")

    def pods(self) -> list[Plain]:
        """Those that are not being deleted."""
        return [pod for pod in self.kubectl.list("pods", LABELS) if "deletionTimestamp" not in pod["metadata"]]

    def incarnations(self) -> list[tuple[str, int]]:
        """Its pods, and how often the container of each was started again."""
        return [(pod["metadata"]["uid"], one["restartCount"]) for pod in self.pods() for one in pod["status"]["containerStatuses"]]

    def kill(self) -> None:
        """SIGKILL, or as near to it as kubectl comes; back when another one is at work."""
        before = {pod["metadata"]["uid"] for pod in self.pods()}
        if cluster_is_ours():
            for uid in before:
                outages.kill_pod(uid)
        self.kubectl("delete", "pod", f"--selector={LABELS}", "--force", "--grace-period=0", "--wait=false")
        until(lambda: _at_work(self.pods(), before), "another operator at work", seconds=90, explain=self.log)

    def scale(self, replicas: int) -> None:
        """Have so many operators; back when all are ready, or the last one is gone."""
        self.kubectl("scale", "deployment", RELEASE, f"--replicas={replicas}")
        until(lambda: self._ready() == (replicas, replicas), f"{replicas} operators", seconds=120, explain=self.log)

    def log(self, *, previous: bool = False) -> str:
        """Its last lines; of the container that was, before it was started again."""
        try:
            return self.kubectl("logs", f"--selector={LABELS}", "--tail=40", "--prefix", f"--previous={str(previous).lower()}")
        except Exception as error:  # noqa: BLE001 -- said beside the failure of a test, which it must not hide
            return f"no log of the operator: {error}"

    def _ready(self) -> tuple[int, int]:
        pods = self.kubectl.list("pods", LABELS)
        return len(pods), sum(bool(one.get("ready")) for pod in pods for one in pod["status"].get("containerStatuses", ()))


def _at_work(pods: list[Plain], before: set[str]) -> bool:
    """Whether a pod's container runs that did not before."""
    return any(
        "running" in one["state"]
        for pod in pods
        if pod["metadata"]["uid"] not in before
        for one in pod["status"].get("containerStatuses", ())
    )
