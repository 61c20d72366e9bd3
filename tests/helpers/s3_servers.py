"""Two S3 servers that stand for all others.

moto supports `If-None-Match` but checks no signature; nanio checks every signature but ignores `If-None-Match`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import boto3
from free_ports import free_port
from moto.server import ThreadedMotoServer

from fedpipe_operator.store import Credentials, S3Store

CREDENTIALS = Credentials("operator", "a-secret-of-the-tests")
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": CREDENTIALS.access_key, "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key}
BUCKET = "fedpipe"


class Server(NamedTuple):
    endpoint: str

    def store(self, prefix: str, *, bucket: str = BUCKET, credentials: Credentials = CREDENTIALS) -> S3Store:
        return S3Store(bucket, prefix, endpoint=self.endpoint, credentials=credentials)


@contextmanager
def running_moto() -> Iterator[Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield _with_bucket(f"http://{host}:{port}")
    server.stop()


@contextmanager
def running_nanio(folder: Path, *, port: int | None = None) -> Iterator[Server]:
    """A server with its objects in `folder`, which may have objects of an earlier server."""
    port = port or free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder), "--no-access-log"]
    keys = {"NANIO_ACCESS_KEY": CREDENTIALS.access_key, "NANIO_SECRET_KEY": CREDENTIALS.secret_key}
    command = [sys.executable, "-m", "nanio", "serve", *options]
    with subprocess.Popen(command, env=os.environ | keys, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        assert any("running on" in line for line in process.stdout), "nanio ended before it listened"
        yield _with_bucket(f"http://127.0.0.1:{port}")
        process.terminate()


@contextmanager
def running_minio(binary: str, folder: Path) -> Iterator[Server]:
    """A real MinIO, where a binary of it is there."""
    address = f"127.0.0.1:{free_port()}"
    keys = {"MINIO_ROOT_USER": CREDENTIALS.access_key, "MINIO_ROOT_PASSWORD": CREDENTIALS.secret_key}
    command = [binary, "server", str(folder), "--address", address, "--console-address", f"127.0.0.1:{free_port()}"]
    with subprocess.Popen(command, env=os.environ | keys, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        assert any("API:" in line for line in process.stdout), "MinIO ended before it listened"
        yield _with_bucket(f"http://{address}")
        process.terminate()


def _with_bucket(endpoint: str) -> Server:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS.access_key,
        aws_secret_access_key=CREDENTIALS.secret_key,
    )
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    return Server(endpoint)
