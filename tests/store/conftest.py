"""Three stores that must behave alike: a directory, and two running S3 servers.

moto honours `If-None-Match` and checks no signature; nanio checks every signature and ignores `If-None-Match`.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fedpipe_operator.store import Credentials, DirectoryStore, S3Store, Store

CREDENTIALS = Credentials("operator", "a-secret-of-the-tests")
BUCKET = "fedpipe"

_numbers = count()


class Server(NamedTuple):
    endpoint: str

    def store(self, prefix: str, *, bucket: str = BUCKET, credentials: Credentials = CREDENTIALS) -> S3Store:
        return S3Store(bucket, prefix, endpoint=self.endpoint, credentials=credentials)


def create_bucket(endpoint: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS.access_key,
        aws_secret_access_key=CREDENTIALS.secret_key,
    )
    client.create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    create_bucket(f"http://{host}:{port}")
    yield Server(f"http://{host}:{port}")
    server.stop()


@pytest.fixture(scope="session")
def nanio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(tmp_path_factory.mktemp("nanio")), "--no-access-log"]
    keys = {"NANIO_ACCESS_KEY": CREDENTIALS.access_key, "NANIO_SECRET_KEY": CREDENTIALS.secret_key}
    command = [sys.executable, "-m", "nanio", "serve", *options]
    with subprocess.Popen(command, env=os.environ | keys, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        assert any("running on" in line for line in process.stdout), "nanio ended before it listened"
        create_bucket(f"http://127.0.0.1:{port}")
        yield Server(f"http://127.0.0.1:{port}")
        process.terminate()


@pytest.fixture(params=["directory", "moto", "nanio"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    server: Server = request.getfixturevalue(request.param)
    return server.store(f"runs/{next(_numbers)}")
