"""Kueue itself, as a process of this machine beside the cluster: its CRDs, its webhooks for Jobs and workloads, and queues with a quota.

It is built from its Go module (`tests/cluster/programs/kueue`), whose folder has the CRDs and the webhooks. The API server calls these by
URL, so that no image and no certificate manager is needed.
"""

import base64
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from cluster_user import Kubectl, Plain, wait_until
from testcluster.programs import build
from testcluster.versions import KUEUE

_PORT: Final = 19443
_API: Final = "kueue.x-k8s.io/v1beta2"
_SERVED: Final = ("kueue.x-k8s.io", "batch")
"""The API groups whose webhooks are installed: Kueue serves no other of its integrations here."""


_METRICS: Final = Path("/etc/kueue/metrics/certs")
"""Kueue reads a certificate here, and nowhere else, though it serves no metrics."""


def queue(namespace: str, *, memory: str) -> list[Plain]:
    """A queue with so much memory, and processors for all, for the Jobs of the namespace; its objects have the namespace's name."""
    resources = [{"name": "cpu", "nominalQuota": "100"}, {"name": "memory", "nominalQuota": memory}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": namespace, "resources": resources}]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return [
        {"apiVersion": _API, "kind": "ResourceFlavor", "metadata": {"name": namespace}},
        {
            "apiVersion": _API,
            "kind": "ClusterQueue",
            "metadata": {"name": namespace},
            "spec": {"namespaceSelector": selector, "resourceGroups": [group]},
        },
        {
            "apiVersion": _API,
            "kind": "LocalQueue",
            "metadata": {"name": namespace, "namespace": namespace},
            "spec": {"clusterQueue": namespace},
        },
    ]


@contextmanager
def running(folder: Path, host: str) -> Iterator[Kubectl]:
    """Kueue with its CRDs and webhooks, for the user of `KUBECONFIG`; at the end all is gone but the CRDs.

    Args:
        folder: for its configuration, certificate and log.
        host: an address of this machine that the API server reaches.
    """
    module, kubectl = _module_folder(), Kubectl("kueue-system")
    crds = [yaml.safe_load(file.read_text()) for file in sorted((module / "config/components/crd/bases").glob("*.yaml"))]
    kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump_all([_NAMESPACE, *crds]))
    kubectl("wait", "--for=condition=Established", *(f"crd/{one['metadata']['name']}" for one in crds), "--timeout=60s")
    hooks = _webhooks(module, host, _certificate(folder, host))
    (folder / "config.yaml").write_text(json.dumps(_configuration(folder)))
    command = [build(KUEUE), f"--config={folder / 'config.yaml'}", "--feature-gates=VisibilityOnDemand=false"]
    with (folder / "kueue.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: process.poll() is not None or _listens(host), "Kueue serves its webhooks", seconds=120)
            assert process.poll() is None, (folder / "kueue.log").read_text()
            kubectl.apply(*hooks)
            yield kubectl
        finally:
            process.kill()
            shutil.rmtree(_METRICS.parents[1])
            # First, as no Job could be created for any other test while they lead to a process that is gone.
            kubectl("delete", "--ignore-not-found", *(f"{one['kind']}/{one['metadata']['name']}" for one in hooks))
            _delete_all("workloads", "localqueues", "clusterqueues", "resourceflavors")


def _delete_all(*kinds: str) -> None:
    """Delete these objects of Kueue in all namespaces, with the finalizers that it would have to remove."""
    for kind in kinds:
        for found in json.loads(Kubectl("kueue-system")("get", kind, "--all-namespaces", "-o", "json"))["items"]:
            meta = found["metadata"]
            kubectl = Kubectl(meta.get("namespace", "kueue-system"))
            kubectl.patch(kind, meta["name"], {"metadata": {"finalizers": None}})
            kubectl("delete", kind, meta["name"], "--ignore-not-found", "--timeout=60s")


_NAMESPACE: Final[Plain] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kueue-system"}}


def _configuration(folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": "kueue-system",
        "health": {"healthProbeBindAddress": "0"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": _PORT, "certDir": str(folder)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "integrations": {"frameworks": ["batch/job"]},
    }


def _module_folder() -> Path:
    """Where Go keeps the source of the version that go.mod names."""
    found = subprocess.run(
        ["go", "list", "-C", KUEUE.folder, "-m", "-f", "{{.Dir}}", KUEUE.path], capture_output=True, text=True, check=True
    )
    return Path(found.stdout.strip())


def _certificate(folder: Path, host: str) -> str:
    """A certificate of the webhooks' own, in this folder; as the API server reads it."""
    names = ["-subj", "/CN=kueue", "-addext", f"subjectAltName=IP:{host}", "-days", "1"]
    files = ["-keyout", folder / "tls.key", "-out", folder / "tls.crt"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, *files], capture_output=True, check=True)
    _METRICS.mkdir(parents=True, exist_ok=True)
    for name in ("tls.key", "tls.crt"):
        shutil.copy(folder / name, _METRICS / name)
    return base64.b64encode((folder / "tls.crt").read_bytes()).decode()


def _webhooks(module: Path, host: str, certificate: str) -> list[Plain]:
    """The webhooks of Jobs and of Kueue's own kinds, called at this address."""
    found: list[Plain] = []
    for document in yaml.safe_load_all((module / "config/components/webhook/manifests.yaml").read_text()):
        served = [one for one in document["webhooks"] if {group for rule in one["rules"] for group in rule["apiGroups"]} <= {*_SERVED}]
        for one in served:
            url = f"https://{host}:{_PORT}{one['clientConfig']['service']['path']}"
            one["clientConfig"] = {"url": url, "caBundle": certificate}
        found.append(document | {"metadata": {"name": f"kueue-{document['metadata']['name']}"}, "webhooks": served})
    return found


def _listens(host: str) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((host, _PORT)) == 0
