"""A MinIO of 64 MiB in a test's namespace, which the test can fill."""

import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from cluster_user import Kubectl, Plain, wait_until
from fleet_namespace import BUCKET, SECRET, STORE, FleetNamespace, store_credentials

NAME: Final = "small"
_PORT: Final = 9000
_SIZE: Final = "64Mi"
_FILL_PREFIX: Final = "filling"
_FILL_SIZES: Final = (2**20, 2**16, 2**12, 2**8)


def _pod(image: str) -> Plain:
    keys = {"MINIO_ROOT_USER": "AWS_ACCESS_KEY_ID", "MINIO_ROOT_PASSWORD": "AWS_SECRET_ACCESS_KEY"}
    container = {
        "name": "minio",
        "image": image,
        "args": ["server", "/data"],
        "env": [
            *({"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}} for name, key in keys.items()),
            *({"name": name, "value": "off"} for name in ("MINIO_BROWSER", "MINIO_UPDATE")),
        ],
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": _PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},  # without them, busy trainers would leave it no processor time
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    security = {"runAsUser": 65532, "runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    volume = {"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": _SIZE}}
    spec = {"securityContext": security, "automountServiceAccountToken": False, "containers": [container], "volumes": [volume]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "labels": {"app": NAME}}, "spec": spec}


def _service() -> Plain:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"selector": {"app": NAME}, "ports": [{"port": _PORT}]},
    }


@dataclass
class SmallStore:
    """The store, filled and emptied through a forwarded port."""

    kubectl: Kubectl
    _client: Any = field(default=None, init=False)

    @contextmanager
    def running(self) -> "Iterator[SmallStore]":
        """The store with its bucket."""
        image = STORE.get("deployment", "minio")["spec"]["template"]["spec"]["containers"][0]["image"]
        self.kubectl.apply(_pod(image), _service())
        self.kubectl("wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=90s")
        command = ["kubectl", f"--namespace={self.kubectl.namespace}", "port-forward", f"pod/{NAME}", f":{_PORT}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            assert forward.stdout
            found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
            assert found, "kubectl port-forward ended"
            self._client = _client_of(f"http://127.0.0.1:{found[1]}")
            try:
                self._client.create_bucket(Bucket=BUCKET)
                yield self
            finally:
                forward.terminate()

    @property
    def endpoint(self) -> str:
        """The store's address for pods."""
        return f"http://{NAME}.{self.kubectl.namespace}:{_PORT}"

    def of_a_run(self) -> Plain:
        """`spec.store` of a run that uses this store."""
        return {"bucket": BUCKET, "endpoint": self.endpoint, "credentialsSecretRef": {"name": SECRET}}

    def fill(self) -> None:
        """Write smaller and smaller objects until the store rejects even one byte as full."""
        for size in _FILL_SIZES:
            while self._put_error(size) == "":
                pass
        wait_until(lambda: self._put_error(1) == "XMinioStorageFull", "the small store is full", seconds=60)

    def clear(self) -> None:
        """Delete the objects that filled it."""
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=_FILL_PREFIX):
            for item in page.get("Contents", []):
                self._client.delete_object(Bucket=BUCKET, Key=item["Key"])

    def _put_error(self, size: int) -> str:
        """The error code for an object of this size; empty if the store accepts it."""
        try:
            self._client.put_object(Bucket=BUCKET, Key=f"{_FILL_PREFIX}/{uuid.uuid4()}", Body=bytes(size))
        except ClientError as error:
            return error.response["Error"]["Code"]
        return ""


def _client_of(endpoint: str) -> Any:
    keys = store_credentials()
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


@contextmanager
def small_store_in(namespace: FleetNamespace) -> Iterator[SmallStore]:
    """A store of 64 MiB in this namespace."""
    with SmallStore(namespace.kubectl).running() as store:
        namespace.wait("its Service reaches it", lambda: _is_reachable_from_the_operator(namespace, store))
        yield store


def _is_reachable_from_the_operator(namespace: FleetNamespace, store: SmallStore) -> bool:
    """Whether the operator's pod reaches this store: a new Service may not be routed yet, and the operator keeps its connections."""
    program = f"import urllib.request; print(urllib.request.urlopen('{store.endpoint}/minio/health/live', timeout=5).headers['Server'])"
    return namespace.operator.kubectl("exec", "deployment/fedpipe", "--", "python", "-c", program).strip() == "MinIO"
