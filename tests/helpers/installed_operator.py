"""The operator as Helm installs it: upgrade it, kill it, scale it, read its log."""

import os
from collections.abc import Mapping, Sequence
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
    """The release and its pods, of which one holds the Lease."""

    kubectl: Kubectl
    """In the namespace of the release."""
    serves_its_namespace_alone: bool = False
    """A release beside the one that all tests share. It reconciles what has its class, in its own namespace."""

    @property
    def operator_class(self) -> str:
        """Of what it reconciles; empty: what has no class, in all namespaces."""
        return self.kubectl.namespace if self.serves_its_namespace_alone else ""

    def upgrade(self, values: Mapping[str, Any] | None = None) -> None:
        """Install or upgrade the chart with the images under test; return when its pods are ready and one leads."""
        ours = {"pendingGraceSeconds": GRACE_SECONDS, "scratch": "1Gi", "logFormat": "plain"}
        options = set_values(images() | ours | self._serves() | dict(values or {}))
        done = helm("upgrade", "--install", RELEASE, CHART, "-n", self.kubectl.namespace, "--wait", "--timeout=2m", *options)
        assert done.returncode == 0, done.stderr + self.log()
        self._wait_for_replicas(int((values or {}).get("replicas", 1)))

    def _serves(self) -> Plain:
        if not self.serves_its_namespace_alone:
            return {"rbac.scope": "cluster"}
        return {
            "rbac.scope": "namespaces",
            "namespaces": [self.kubectl.namespace],
            "operatorClass": self.operator_class,
            "crds.enabled": False,  # they belong to the other release
        }

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
        """Kill all replicas: by SIGKILL on our own cluster, else by a forced delete; return when a new one leads."""
        self._kill(*self.pods())

    def kill_leader(self) -> str:
        """Kill the replica that leads; return the name of the one that leads then."""
        return self._kill(next(pod for pod in self.pods() if pod["metadata"]["name"] == self.holder()))

    def holder(self) -> str:
        """The name of the pod that holds the Lease, which may be gone; empty if none does."""
        return str(self.kubectl.get("lease", RELEASE)["spec"].get("holderIdentity") or "")

    def scale(self, replicas: int) -> None:
        """Scale the Deployment; return when all replicas are ready, one of them leads, and no other pod is left."""
        self.kubectl("scale", "deployment", RELEASE, f"--replicas={replicas}")
        self._wait_for_replicas(replicas)

    def log(self, *, previous: bool = False) -> str:
        """The last lines of the log; with `previous`, of the container before its restart."""
        try:
            return self.kubectl("logs", f"--selector={LABELS}", "--tail=40", "--prefix", f"--previous={str(previous).lower()}")
        except Exception as error:  # noqa: BLE001 -- it is added to the failure of a test, which it must not hide
            return f"the operator's log cannot be read: {error}"

    def _kill(self, *pods: Plain) -> str:
        if is_test_cluster():
            for pod in pods:
                outages.kill_pod(pod["metadata"]["uid"])
        killed = [pod["metadata"]["name"] for pod in pods]
        self.kubectl("delete", "pod", *killed, "--force", "--grace-period=0", "--wait=false")
        return wait_until(lambda: self._leader(but=killed), "another operator leads", seconds=90, explain=self.log)

    def _leader(self, *, but: Sequence[str] = ()) -> str | None:
        """The pod that holds the Lease, if it exists and is none of these."""
        holder = self.holder()
        return holder if holder not in but and any(pod["metadata"]["name"] == holder for pod in self.pods()) else None

    def _wait_for_replicas(self, replicas: int) -> None:
        wait_until(lambda: self._ready() == (replicas, replicas), f"{replicas} operators are ready", seconds=120, explain=self.log)
        if replicas:
            wait_until(self._leader, "an operator leads", seconds=60, explain=self.log)

    def _ready(self) -> tuple[int, int]:
        pods = self.kubectl.list("pods", LABELS)
        return len(pods), sum(bool(one.get("ready")) for pod in pods for one in pod["status"].get("containerStatuses", ()))
