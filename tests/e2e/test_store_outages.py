"""A store that is away, and one that is full: told, waited for, and gone on from."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from cluster_user import condition, until
from small_store import SmallStore
from wards import SHORT, STORE, Ward, WardCalled

pytestmark = pytest.mark.e2e

AWAY_SECONDS: Final = 60
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
    until(lambda: _pods_ready() == [True] * replicas, f"{replicas} pods of the store", seconds=120)


def _pods_ready() -> list[bool]:
    found = [pod["status"].get("containerStatuses", [{}]) for pod in STORE.list("pods", "app=minio")]
    return [bool(one and one[0].get("ready")) for one in found]


@contextmanager
def a_busy_one_in_its_place() -> Iterator[None]:
    """A server behind the store's own address that answers 503 to everything."""
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


@contextmanager
def small_store_in(ward: Ward) -> Iterator[SmallStore]:
    """A store of some MiB in the ward's own namespace."""
    with SmallStore(ward.kubectl).running() as store:
        ward.wait("its Service leads to it", lambda: is_healthy_from_the_operator(ward, store))
        yield store


@pytest.fixture(scope="module", autouse=True)
def with_a_full_store(ward_called: WardCalled) -> Iterator[Ward]:
    """A namespace in which a run finds its store full; begun before all else, since its trainer tries for long."""
    with ward_called("e2e-full-store") as ward, small_store_in(ward) as store:
        store.fill()
        ward.start("north", store=store.of_a_run(), rounds={"count": 1, "attempts": 1})
        yield ward


def is_healthy_from_the_operator(ward: Ward, store: SmallStore) -> bool:
    """A Service that no node knows yet may lead anywhere, and the operator's connections last."""
    ask = f"import urllib.request; print(urllib.request.urlopen('{store.endpoint}/minio/health/live', timeout=5).headers['Server'])"
    return ward.operator.kubectl("exec", "deployment/fedpipe", "--", "python", "-c", ask).strip() == "MinIO"


def test_a_run_waits_for_a_store_that_is_away_and_then_answers_503_for_a_minute(ward: Ward) -> None:
    ward.start("north", **SHORT)
    ward.trainer_at_work("toy-evaluate-north-a0")

    scale_store(0)
    gone_at = time.monotonic()
    try:
        blocked = ward.wait_for("StoreUnreachable")
        told_after = time.monotonic() - gone_at
        with a_busy_one_in_its_place():
            busy_at = time.monotonic()
            busy = ward.wait_for("StoreUnavailable")
            time.sleep(max(0.0, busy_at + AWAY_SECONDS - time.monotonic()))  # how long the outage is to last
    finally:
        scale_store(1)
    run = ward.wait_until_complete()

    print(f"told after {told_after:.0f} s")  # noqa: T201
    assert condition(blocked, "Progressing")["status"] == "False"
    assert "minio" in condition(blocked, "Progressing")["message"]
    assert "503" in condition(busy, "Progressing")["message"]
    assert run["status"]["history"][0]["updates"] == "1/1"
    assert "StoreUnreachable" in ward.events("FederatedFineTune", "toy")


def test_a_trainer_that_finds_the_store_full_says_so_and_the_run_ends(with_a_full_store: Ward) -> None:
    ward = with_a_full_store

    run = ward.wait("the run fails", lambda: ward.look() if condition(ward.look(), "Failed").get("status") == "True" else None)

    told = condition(run, "Failed")
    assert told["reason"] == "QuorumOutOfReach"
    assert "north: TransferFailed" in told["message"]


def test_an_operator_that_finds_the_store_full_waits_until_there_is_room(ward: Ward) -> None:
    with small_store_in(ward) as small_store:
        ward.start("north", store=small_store.of_a_run(), **SHORT)
        ward.wait("the profile is asked for", lambda: ward.kubectl.list("jobs"))
        ward.operator.scale(0)
        try:
            ward.kubectl("wait", "job/toy-profile-north-a0", "--for=condition=Complete", "--timeout=120s")
            small_store.fill()
        finally:
            ward.operator.scale(1)
        blocked = ward.wait_for("StoreFull")
        small_store.clear()
        ward.wait_until_complete()

    assert condition(blocked, "Progressing")["status"] == "False"
    assert "StoreFull" in ward.events("FederatedFineTune", "toy")
