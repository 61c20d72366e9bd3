"""Serves the metrics over HTTP, from threads of its own: neither side waits for the event loop longer than a scrape may."""

import gzip
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest

_LOG: Final = logging.getLogger(__name__)
_PATH: Final = "/metrics"
_FRESH_SECONDS: Final = 1.0
"""For so long a scrape is answered with the last one's page: whoever may connect can make the operator no busier than that."""
_FASTEST: Final = 1
_IDLE_SECONDS: Final = 10.0


@dataclass
class Page:
    """The page of all metrics, made by one scrape at a time."""

    registry: CollectorRegistry
    clock: Callable[[], float] = time.monotonic
    _made_at: float = float("-inf")
    _page: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> bytes:
        """The page, in Prometheus' text format."""
        with self._lock:
            if self.clock() - self._made_at >= _FRESH_SECONDS:
                self._page = generate_latest(self.registry)
                self._made_at = self.clock()
            return self._page


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_SECONDS
    page: Page

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != _PATH:
            self.send_error(HTTPStatus.NOT_FOUND, f"the metrics are at {_PATH}")
            return
        try:
            body = self.page.read()
        except Exception:  # noqa: BLE001 -- the scraper is told, and the log has it whole
            _LOG.exception("the metrics cannot be collected")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the metrics cannot be collected: see the operator's log")
            return
        self._send(body)

    def _send(self, body: bytes) -> None:
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        content = gzip.compress(body, _FASTEST) if packed else body
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.send_header("Content-Length", str(len(content)))
        if packed:
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
