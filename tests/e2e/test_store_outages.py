"""A store that is unreachable or overloaded: the run reports it, waits, and continues."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from cluster_user import condition, wait_until
from fleet_namespace import SHORT, STORE, FleetNamespace

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]

OUTAGE_SECONDS: Final = 60
BUSY: Final = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Busy(BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = answer

ThreadingHTTPServer(("", 9000), Busy).serve_forever()
"""


def scale_store(replicas: int) -> None:
    STORE("scale", "deployment", "minio", f"--replicas={replicas}")
    wait_until(lambda: _pods_ready() == [True] * replicas, f"{replicas} pods of the store are ready", seconds=120)


def _pods_ready() -> list[bool]:
    found = [pod["status"].get("containerStatuses", [{}]) for pod in STORE.list("pods", "app=minio")]
    return [bool(one and one[0].get("ready")) for one in found]


@contextmanager
def busy_store() -> Iterator[None]:
    """A server behind the store's Service that answers every request with 503."""
    container = {"name": "busy", "image": os.environ["FEDPIPE_TRAINER_IMAGE"], "command": ["python", "-c", BUSY]}
    pod = {
        "metadata": {"name": "busy", "labels": {"app": "minio"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    }
    STORE.apply({"apiVersion": "v1", "kind": "Pod"} | pod)
    try:
        STORE("wait", "pod/busy", "--for=condition=Ready", "--timeout=60s")
        yield
    finally:
        STORE("delete", "pod", "busy")


def test_a_run_waits_for_a_store_that_is_unreachable_and_then_answers_503_for_a_minute(namespace: FleetNamespace) -> None:
    namespace.start("north", **SHORT)
    namespace.wait_for_trainer("toy-train-r1-north-a0")

    scale_store(0)
    stopped_at = time.monotonic()
    try:
        blocked = namespace.wait_for_reason("StoreUnreachable")
        reported_after = time.monotonic() - stopped_at
        with busy_store():
            busy_at = time.monotonic()
            busy = namespace.wait_for_reason("StoreUnavailable")
            time.sleep(max(0.0, busy_at + OUTAGE_SECONDS - time.monotonic()))  # the length of the outage
    finally:
        scale_store(1)
    run = namespace.wait_until_complete()

    print(f"reported after {reported_after:.0f} s")  # noqa: T201
    assert condition(blocked, "Progressing")["status"] == "False"
    assert "minio" in condition(blocked, "Progressing")["message"]
    assert "503" in condition(busy, "Progressing")["message"]
    assert run["status"]["history"][0]["updates"] == "1/1"
    assert "StoreUnreachable" in namespace.events("FederatedFineTune", "toy")
