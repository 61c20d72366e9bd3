"""The test cluster's MinIO as a child process of a test, which trusts an OpenID provider: its sessions are of one role, with one policy."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Keys
from cluster_user import wait_until
from free_ports import free_port
from testcluster.layout import default_layout
from testcluster.programs import binary

from fedpipe_operator.store import Credentials, S3Store

ROOT: Final = Credentials("root-of-the-tests", "a-secret-of-the-tests")
POLICY: Final = "fedpipe"


@dataclass(frozen=True)
class Minio:
    """The server."""

    endpoint: str
    role: str
    """The ARN of the role that the provider's tokens have."""

    def store(self, bucket: str, folder: str) -> S3Store:
        """A folder of it, with all rights."""
        return S3Store(bucket, folder, endpoint=self.endpoint, credentials=ROOT)


@contextmanager
def running_minio(folder: Path, configuration: str, audience: str, policy: Mapping[str, Any], *buckets: str) -> Iterator[Minio]:
    """A MinIO with these buckets. A token of the provider, whose discovery document is at `configuration`, allows what `policy` says."""
    program = binary(default_layout(), "minio")
    assert program.exists(), f"{program} is missing: `python3 tests/cluster programs` builds it"
    for bucket in buckets:
        (folder / "data" / bucket).mkdir(parents=True)
    address, log = f"127.0.0.1:{free_port()}", folder / "minio.log"
    options = ("--address", address, "--certs-dir", folder / "certificates")
    with log.open("w") as output:
        command = [program, "server", folder / "data", *options]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= identity_environment(configuration, audience)
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: _is_ready(address), "MinIO is ready", seconds=60, explain=log.read_text)
        set_policy(f"http://{address}", policy)
        yield Minio(f"http://{address}", wait_until(lambda: role_in(log.read_text()), "MinIO names the role", seconds=10))
    finally:
        process.terminate()
        process.wait(timeout=30)


def identity_environment(configuration: str, audience: str) -> dict[str, str]:
    """The variables of a MinIO that trusts this provider."""
    return {
        "MINIO_ROOT_USER": ROOT.access_key,
        "MINIO_ROOT_PASSWORD": ROOT.secret_key,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
        "MINIO_IDENTITY_OPENID_CONFIG_URL": configuration,
        "MINIO_IDENTITY_OPENID_CLIENT_ID": audience,
        "MINIO_IDENTITY_OPENID_ROLE_POLICY": POLICY,
    }


def role_in(log: str) -> str:
    """The ARN of the role that a MinIO names when it starts; empty: it has not yet."""
    found = re.search(r"arn:minio:iam:::role/\S+", log)
    return found[0] if found else ""


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/minio/health/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


def set_policy(endpoint: str, policy: Mapping[str, Any]) -> None:
    """What `mc admin policy create` does."""
    url, body = f"{endpoint}/minio/admin/v3/add-canned-policy?name={POLICY}", json.dumps(policy)
    request = AWSRequest("PUT", url, {}, body)
    S3SigV4Auth(Keys(ROOT.access_key, ROOT.secret_key), "s3", "us-east-1").add_auth(request)
    answer = httpx.put(url, content=body, headers=dict(request.headers), trust_env=False)
    assert answer.is_success, answer.text
