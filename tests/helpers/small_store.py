"""A MinIO of some MiB in a test's own namespace, which can be filled."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from cluster_user import Kubectl, Plain
from wards import BUCKET, SECRET, STORE, store_credentials

NAME: Final = "small"
_PORT: Final = 9000
_SIZE: Final = "64Mi"
_FILLING: Final = "filling"
_PIECES: Final = (2**20, 2**16, 2**12, 2**8)


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
    """The store, filled and emptied through a port of this machine."""

    kubectl: Kubectl
    _endpoint: str = field(default="", init=False)

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
            self._endpoint = f"http://127.0.0.1:{found[1]}"
            self._client().create_bucket(Bucket=BUCKET)
            yield self
            forward.terminate()

    def of_a_run(self) -> Plain:
        """`spec.store` of a run that has its objects here."""
        endpoint = f"http://{NAME}.{self.kubectl.namespace}:{_PORT}"
        return {"bucket": BUCKET, "endpoint": endpoint, "credentialsSecretRef": {"name": SECRET}}

    def fill(self) -> None:
        """Write until nothing more is taken, in smaller and smaller pieces."""
        client, number = self._client(), 0
        for size in _PIECES:
            try:
                while True:
                    client.put_object(Bucket=BUCKET, Key=f"{_FILLING}/{number}", Body=bytes(size))
                    number += 1
            except ClientError as error:
                assert "Full" in str(error) or "Storage" in str(error), error  # noqa: PT017 -- that it is refused is what is waited for

    def clear(self) -> None:
        """Delete what filled it."""
        client = self._client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=_FILLING):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=BUCKET, Key=item["Key"])

    def _client(self) -> "boto3.client":
        keys = store_credentials()
        return boto3.client(
            "s3",
            endpoint_url=self._endpoint,
            region_name="us-east-1",
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )
