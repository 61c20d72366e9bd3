"""Serves the metrics over HTTP, from threads of its own: neither side waits for the event loop longer than a scrape may."""

import gzip
import io
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_LOG: Final = logging.getLogger(__name__)
_PATH: Final = "/metrics"
_FRESH_SECONDS: Final = 1.0
"""For so long a scrape is answered with the last one's page: whoever may connect can make the operator no busier than that."""
_FASTEST: Final = 1
_IDLE_SECONDS: Final = 10.0


@dataclass
class Page:
    """The page of all metrics, made by one scrape at a time, and kept packed: that is a twentieth of it."""

    registry: CollectorRegistry
    clock: Callable[[], float] = time.monotonic
    _made_at: float = float("-inf")
    _packed: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> bytes:
        """The page in Prometheus' text format, packed by gzip."""
        with self._lock:
            if self.clock() - self._made_at >= _FRESH_SECONDS:
                self._packed = _packed_page(self.registry)
                self._made_at = self.clock()
            return self._packed


@dataclass(frozen=True)
class _Only(Collector):
    """One family as a registry."""

    family: Metric

    def collect(self) -> Iterable[Metric]:
        return (self.family,)


def _packed_page(registry: CollectorRegistry) -> bytes:
    """Written and packed family by family, so that the page, which may have megabytes, is never whole in memory."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=_FASTEST) as file:
        for family in registry.collect():
            file.write(generate_latest(_Only(family)))
    return packed.getvalue()


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_SECONDS
    page: Page

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != _PATH:
            self.send_error(HTTPStatus.NOT_FOUND, f"the metrics are at {_PATH}")
            return
        try:
            packed = self.page.read()
        except Exception:  # noqa: BLE001 -- the scraper is told, and the log has it whole
            _LOG.exception("the metrics cannot be collected")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the metrics cannot be collected: see the operator's log")
            return
        self._send(packed)

    def _send(self, packed: bytes) -> None:
        takes_packed = "gzip" in self.headers.get("Accept-Encoding", "")
        content = packed if takes_packed else gzip.decompress(packed)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.send_header("Content-Length", str(len(content)))
        if takes_packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 -- the base class's own
        """A scrape is no news."""


def serve(registry: CollectorRegistry, port: int, host: str = "0.0.0.0") -> ThreadingHTTPServer:  # noqa: S104 -- Prometheus is another pod
    """Serve the registry at /metrics until the process ends; port 0: any that is free.

    Raises:
        OSError: the port is not free.
    """
    handler = type("_HandlerOfPage", (_Handler,), {"page": Page(registry)})
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
