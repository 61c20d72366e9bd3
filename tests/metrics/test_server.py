"""The server of /metrics, as a scraper meets it."""

import gzip
import http.client
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.registry import Collector

from fedpipe_operator.metrics.server import Page, serve


@contextmanager
def served(registry: CollectorRegistry) -> Iterator[int]:
    """The port of a server of this registry."""
    server = serve(registry, 0, "127.0.0.1")
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def get(port: int, path: str = "/metrics", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, dict(answer.getheaders())


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    return registry


class Broken(Collector):
    def collect(self) -> Iterator[object]:  # type: ignore[override]
        raise RuntimeError("a fault")


def test_a_scraper_gets_the_text_format_and_packed_if_it_asks_for_that(registry: CollectorRegistry) -> None:
    with served(registry) as port:
        status, body, headers = get(port)
        _, packed, packed_headers = get(port, **{"Accept-Encoding": "gzip"})

    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert b"answer 42.0" in body
    assert packed_headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == body


def test_every_other_path_is_told_where_the_metrics_are(registry: CollectorRegistry) -> None:
    with served(registry) as port:
        status, body, _ = get(port, "/")

    assert status == 404
    assert b"the metrics are at /metrics" in body


def test_a_fault_is_told_to_the_scraper_without_its_details_and_logged_whole(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.register(Broken())
    with served(registry) as port, caplog.at_level(logging.ERROR):
        status, body, _ = get(port)

    assert status == 500
    assert b"a fault" not in body
    assert "RuntimeError: a fault" in caplog.text


class Counted(Collector):
    """Counts how often it is collected; one of them at a time."""

    def __init__(self) -> None:
        self.times = 0
        self.may_go_on = threading.Event()

    def collect(self) -> Iterator[object]:  # type: ignore[override]
        self.times += 1
        assert self.may_go_on.wait(10)
        return iter(())


def test_scrapers_that_ask_at_once_cost_one_collection() -> None:
    registry, counted = CollectorRegistry(), Counted()
    registry.register(counted)
    page = Page(registry, lambda: 100.0)
    readers = [threading.Thread(target=page.read) for _ in range(5)]
    for reader in readers:
        reader.start()
    counted.may_go_on.set()
    for reader in readers:
        reader.join(10)

    assert counted.times == 1


def test_a_page_is_made_again_after_a_second() -> None:
    registry, counted, now = CollectorRegistry(), Counted(), [100.0]
    counted.may_go_on.set()
    registry.register(counted)
    page = Page(registry, lambda: now[0])
    for at in (100.0, 100.9, 101.0, 102.5):
        now[0] = at
        page.read()

    assert counted.times == 3


def test_a_port_that_is_taken_is_an_error(registry: CollectorRegistry) -> None:
    with served(registry) as port, pytest.raises(OSError, match="in use"):
        serve(registry, port, "127.0.0.1")
