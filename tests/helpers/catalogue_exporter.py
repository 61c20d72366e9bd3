"""A stand-in for the operator's /metrics: a sample of every metric of the catalogue, with its labels, and DCGM's of one trainer pod."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final

from fedpipe_operator.metrics.catalogue import CATALOGUE, Metric, Type

_VALUES: Final = {
    "condition": ("Progressing", "Ready"),
    "status": ("true", "false"),
    "state": ("expected", "needed", "received", "refused", "late"),
    "direction": ("up", "down"),
    "reason": ("OK", "StoreUnreachable"),
}
"""Of labels whose values matter to a query; another label's value is its own name."""
_POD: Final = "triage-train-r1-ward-a0-0123456789abcdef-x7k2p"
_OTHERS: Final = f"""\
process_resident_memory_bytes 1e8
process_cpu_seconds_total 7
process_open_fds 20
DCGM_FI_DEV_GPU_UTIL{{exported_namespace="namespace",exported_pod="{_POD}",gpu="0"}} 93
DCGM_FI_DEV_FB_USED{{exported_namespace="namespace",exported_pod="{_POD}",gpu="0"}} 4096
"""


@contextmanager
def catalogue_exporter() -> Iterator[str]:
    """Serve the samples; the result is the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    scrapes = 0

    def do_GET(self) -> None:
        """Answer with the samples; counters grow from scrape to scrape."""
        type(self).scrapes += 1
        body = exposition(self.scrapes).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def exposition(scrape: int) -> str:
    """The text of a scrape, without types."""
    return "".join(line + "\n" for metric in CATALOGUE for line in _lines(metric, scrape)) + _OTHERS


def _lines(metric: Metric, scrape: int) -> Iterator[str]:
    for labels in _label_sets(metric.labels):
        if metric.type is not Type.HISTOGRAM:
            yield f"{metric.name}{{{labels}}} {scrape if metric.type is Type.COUNTER else 1}"
            continue
        comma = "," if labels else ""
        for bound in ("0.1", "1", "+Inf"):
            yield f'{metric.name}_bucket{{{labels}{comma}le="{bound}"}} {scrape}'
        yield f"{metric.name}_count{{{labels}}} {scrape}"
        yield f"{metric.name}_sum{{{labels}}} {scrape * 0.05}"


def _label_sets(names: tuple[str, ...]) -> list[str]:
    """Every combination of the labels' values."""
    sets = [""]
    for name in names:
        sets = [f'{before}{"," if before else ""}{name}="{value}"' for before in sets for value in _VALUES.get(name, (name,))]
    return sets
