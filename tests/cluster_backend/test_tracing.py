"""Traces: a span for each reconcile with its calls in it, no message of an error, and nothing of OpenTelemetry where none are wanted."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from stand_in_cluster import KubeWorld

from fedpipe_operator import tracing
from fedpipe_operator.cluster.api import JOBS, Api
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Credentials, S3Store
from fedpipe_operator.store.s3 import Limits


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans that have ended."""
    exporter = InMemorySpanExporter()
    tracing.start(SimpleSpanProcessor(exporter), "1.2.3")
    yield exporter
    tracing.stop()


def the_only(spans: InMemorySpanExporter) -> ReadableSpan:
    (found,) = spans.get_finished_spans()
    return found


class StandInClient:
    """An API server that has nothing."""

    def param_serialize(self, *_: Any, **__: Any) -> tuple[()]:
        return ()

    def call_api(self, **_: Any) -> Any:
        return SimpleNamespace(status=200, read=lambda: b'{"items": []}')


def test_a_reconcile_is_a_span_about_its_run(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    found = the_only(spans)

    assert (found.name, found.status.status_code) == ("reconcile run", StatusCode.UNSET)
    assert dict(found.attributes or {}) == {
        "fedpipe.namespace": "default",
        "fedpipe.run": "toy",
        "fedpipe.uid": "uid-1",
        "fedpipe.generation": 1,
    }
    assert dict(found.resource.attributes)["service.version"] == "1.2.3"


def test_a_failed_reconcile_has_the_reason_and_not_the_message(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    world = KubeWorld(tmp_path)
    world.stores.trouble = UserError("StoreDenied", "GET http://minio:9000/a?X-Amz-Signature=c4n4ry")
    with pytest.raises(TransientError):
        world.reconcile()
    found = the_only(spans)

    assert found.status.status_code is StatusCode.ERROR
    assert (found.attributes or {})["error.type"] == "StoreDenied"
    assert "c4n4ry" not in found.to_json()


def test_a_call_of_the_api_server_is_a_span_within_that_of_the_reconcile(spans: InMemorySpanExporter) -> None:
    api = Api(StandInClient())  # type: ignore[arg-type]
    with tracing.span("reconcile run"):
        api.find(JOBS, "wards")
    call, reconcile = spans.get_finished_spans()

    assert (call.name, reconcile.name) == ("GET jobs", "reconcile run")
    assert call.parent is not None
    assert call.parent.span_id == reconcile.context.span_id


def test_a_call_of_a_store_is_a_span_with_its_key_and_without_what_signs_it(spans: InMemorySpanExporter) -> None:
    limits = Limits(seconds=0.2)
    store = S3Store("fedpipe", "runs", endpoint="http://127.0.0.1:9", credentials=Credentials("key", "c4n4ry"), limits=limits)
    with pytest.raises(FedPipeError) as error:
        store.read("rounds/0001/plan.json")
    found = the_only(spans)

    assert dict(found.attributes or {}) == {"key": "rounds/0001/plan.json", "bucket": "fedpipe", "error.type": error.value.reason}
    assert "c4n4ry" not in found.to_json()


def test_spans_are_sent_by_otlp_to_the_endpoint() -> None:
    received, arrived = [], threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: Any) -> None:
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracing.configure(f"http://127.0.0.1:{server.server_port}/", "1.2.3")
        try:
            with tracing.span("reconcile site"):
                pass
            assert arrived.wait(30)
        finally:
            tracing.stop()
            server.shutdown()
    ((path, body),) = received
    sent = ExportTraceServiceRequest.FromString(body).resource_spans[0]

    assert path == "/v1/traces"
    assert [one.name for one in sent.scope_spans[0].spans] == ["reconcile site"]


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys\n"
        "from fedpipe_operator import __main__, tracing\n"
        "tracing.configure('', '1')\n"
        "with tracing.span('reconcile run'): pass\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
