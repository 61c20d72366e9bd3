"""A MinIO in a test's namespace that trusts the cluster's API server as the issuer of service accounts' tokens."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import boto3
from cluster_user import Plain, wait_until
from fleet_namespace import BUCKET, STORE, FleetNamespace
from minio import ROOT, identity_environment, role_in, set_policy

NAME: Final = "trusting"
_PORT: Final = 9000
_ISSUER: Final = "https://kubernetes.default.svc/.well-known/openid-configuration"
_DISCOVERY: Final = "system:service-account-issuer-discovery"


@dataclass(frozen=True)
class IdentityStore:
    """The store, as pods reach it."""

    endpoint: str
    role: str
    client: Any
    """boto3's, by a forwarded port, with all rights."""

    def keys(self) -> list[str]:
        """All objects of the bucket."""
        return [one["Key"] for one in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


@contextmanager
def identity_store_in(namespace: FleetNamespace, audience: str, policy: Mapping[str, Any]) -> Iterator[IdentityStore]:
    """The store in this namespace. Meanwhile, everybody may read the keys by which the API server's tokens are checked."""
    kubectl = namespace.kubectl
    image = STORE.get("deployment", "minio")["spec"]["template"]["spec"]["containers"][0]["image"]
    binding = f"fedpipe-test-{namespace.name}"
    kubectl.apply(_discovery(binding), _pod(image, audience), _service())
    try:
        kubectl("wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=90s")
        role = wait_until(lambda: role_in(kubectl("logs", NAME)), "MinIO names the role", seconds=30, explain=lambda: kubectl("logs", NAME))
        command = ["kubectl", f"--namespace={namespace.name}", "port-forward", f"pod/{NAME}", f":{_PORT}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            assert forward.stdout
            found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
            assert found, "kubectl port-forward ended"
            address = f"http://127.0.0.1:{found[1]}"
            keys = {"aws_access_key_id": ROOT.access_key, "aws_secret_access_key": ROOT.secret_key, "region_name": "us-east-1"}
            client = boto3.client("s3", endpoint_url=address, **keys)
            try:
                client.create_bucket(Bucket=BUCKET)
                set_policy(address, policy)
                yield IdentityStore(f"http://{NAME}.{namespace.name}:{_PORT}", role, client)
            finally:
                forward.terminate()
    finally:
        kubectl("delete", "clusterrolebinding", binding)


def _discovery(name: str) -> Plain:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": _DISCOVERY},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}],
    }


def _pod(image: str, audience: str) -> Plain:
    container = {
        "name": "minio",
        "image": image,
        "args": ["server", "/data", "--certs-dir", "/certificates"],
        "env": [{"name": name, "value": value} for name, value in identity_environment(_ISSUER, audience).items()],
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": _PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "ca", "mountPath": "/certificates/CAs"}],
    }
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "ca", "configMap": {"name": "kube-root-ca.crt"}}]
    security = {"runAsUser": 65532, "runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"securityContext": security, "automountServiceAccountToken": False, "containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "labels": {"app": NAME}}, "spec": spec}


def _service() -> Plain:
    spec = {"selector": {"app": NAME}, "ports": [{"port": _PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": spec}
