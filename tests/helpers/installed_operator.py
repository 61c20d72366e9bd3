"""The operator as Helm installs it: upgrade it, kill it, scale it, read its log."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from charts import CHART, helm, set_values
from cluster_user import Kubectl, Plain, wait_until
from testcluster import outages
from testcluster.layout import default_layout

RELEASE: Final = "fedpipe"
LABELS: Final = "app.kubernetes.io/name=fedpipe,app.kubernetes.io/instance=fedpipe,app.kubernetes.io/component=operator"
_RESTRICTED: Final = {"pod-security.kubernetes.io/enforce": "restricted"}
GRACE_SECONDS: Final = 10


def namespace_manifest(name: str) -> Plain:
    """A namespace under the restricted Pod Security profile."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": _RESTRICTED}}


def is_test_cluster() -> bool:
    """Whether the cluster is one of `tests/cluster`, on this machine."""
    return outages.are_possible(default_layout(), os.environ.get("KUBECONFIG", ""))


def images() -> Plain:
    """The values of the images under test."""
    return {"operatorImage": _image("FEDPIPE_OPERATOR_IMAGE"), "trainerImage": _image("FEDPIPE_TRAINER_IMAGE")}


def _image(variable: str) -> Plain:
    repository, _, tag = os.environ[variable].rpartition(":")
    return {"repository": repository, "tag": tag}


@dataclass(frozen=True)
class Operator:
    """The release and its one pod."""

    kubectl: Kubectl

    def upgrade(self, values: Mapping[str, Any] | None = None) -> None:
        """Install or upgrade the chart with the images under test, to serve all namespaces; return when its pod is ready."""
        ours = {"rbac.scope": "cluster", "pendingGraceSeconds": GRACE_SECONDS, "scratch": "1Gi", "logFormat": "plain"}
        options = set_values(images() | ours | dict(values or {}))
        done = helm("upgrade", "--install", RELEASE, CHART, "-n", self.kubectl.namespace, "--wait", "--timeout=2m", *options)
        assert done.returncode == 0, done.stderr + self.log()

    def uninstall(self) -> None:
        """Uninstall the release; its CRDs stay."""
        helm("uninstall", RELEASE, "-n", self.kubectl.namespace, "--wait")

    def pods(self) -> list[Plain]:
        """The release's pods that are not being deleted."""
        return [pod for pod in self.kubectl.list("pods", LABELS) if "deletionTimestamp" not in pod["metadata"]]

    def containers(self) -> list[tuple[str, int]]:
        """The UID of each pod with the restart count of its container."""
        return [(pod["metadata"]["uid"], one["restartCount"]) for pod in self.pods() for one in pod["status"]["containerStatuses"]]

    def kill(self) -> None:
        """Kill the operator: by SIGKILL on our own cluster, else by a forced delete; return when another one is running."""
        before = {pod["metadata"]["uid"] for pod in self.pods()}
        if is_test_cluster():
            for uid in before:
                outages.kill_pod(uid)
        self.kubectl("delete", "pod", f"--selector={LABELS}", "--force", "--grace-period=0", "--wait=false")
        wait_until(lambda: _runs_new_pod(self.pods(), before), "another operator runs", seconds=90, explain=self.log)

    def scale(self, replicas: int) -> None:
        """Scale the Deployment; return when all replicas are ready and no other pod is left."""
        self.kubectl("scale", "deployment", RELEASE, f"--replicas={replicas}")
        wait_until(lambda: self._ready() == (replicas, replicas), f"{replicas} operators are ready", seconds=120, explain=self.log)

    def log(self, *, previous: bool = False) -> str:
        """The last lines of the log; with `previous`, of the container before its restart."""
        try:
            return self.kubectl("logs", f"--selector={LABELS}", "--tail=40", "--prefix", f"--previous={str(previous).lower()}")
        except Exception as error:  # noqa: BLE001 -- it is added to the failure of a test, which it must not hide
            return f"the operator's log cannot be read: {error}"

    def _ready(self) -> tuple[int, int]:
        pods = self.kubectl.list("pods", LABELS)
        return len(pods), sum(bool(one.get("ready")) for pod in pods for one in pod["status"].get("containerStatuses", ()))


def _runs_new_pod(pods: list[Plain], before: set[str]) -> bool:
    """Whether the container of a pod that is not in `before` runs."""
    return any(
        "running" in one["state"]
        for pod in pods
        if pod["metadata"]["uid"] not in before
        for one in pod["status"].get("containerStatuses", ())
    )
