"""MLflow as the operator sees it: a real server, and a stand-in that keeps every request and may lose them.

The real programs are in an environment of their own, since they want other versions than ours: `make trackers` makes it. Where it is
missing, a test that needs it is skipped; `FEDPIPE_TRACKERS=required`, which `.ci/run` sets, makes that a failure.
"""

import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cluster_user import wait_until
from free_ports import free_port

PROGRAMS: Final = Path(__file__).parents[2] / ".venv-trackers" / "bin"
_OK, _BAD_REQUEST, _NOT_FOUND, _UNAUTHORIZED = 200, 400, 404, 401


def program(name: str) -> Path:
    """A program of the trackers' own environment; skips the test where it is missing."""
    found = PROGRAMS / name
    if not found.exists():
        advice = f"{found} is missing: make trackers installs MLflow and TensorBoard"
        if os.environ.get("FEDPIPE_TRACKERS") == "required":
            pytest.fail(advice)
        pytest.skip(advice)
    return found


@contextmanager
def running_mlflow(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """The URL of a real server with an empty database, which takes artefacts itself, as servers do by default. `host` is an address."""
    port, log = free_port(), folder / "mlflow.log"
    command = [program("mlflow"), "server", "--host", host, "--port", str(port), "--workers", "1", "--allowed-hosts", f"{host}:{port}"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    url = f"http://{host}:{port}"
    try:
        wait_until(lambda: _is_healthy(url), "MLflow answers", seconds=300, explain=log.read_text)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


Plain = dict[str, Any]


@dataclass
class StandInMlflow:
    """A server that appends whatever it is told, so that what is told twice is there twice. Its runs are read as they are."""

    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, Plain] = field(default_factory=dict)
    artifacts: dict[str, list[bytes]] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request."""
    loses: int | None = None
    """The number of the request, from 0, of which the client hears nothing."""
    performs_lost: bool = False
    """Whether that one is performed all the same."""
    artifact_root: str = "mlflow-artifacts:/"
    is_gone: bool = False
    """Whether it closes every connection."""
    requests: int = 0
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def live_runs(self) -> list[Plain]:
        """Those that were not deleted."""
        return [run for run in self.runs.values() if not run["deleted"]]

    def metrics(self) -> list[tuple[str, int]]:
        """Name and step of every figure of the only run, in the order in which they came."""
        (run,) = self.live_runs
        return [(one["key"], one["step"]) for one in run["metrics"]]

    def tags(self) -> dict[str, str]:
        """Of the only run."""
        (run,) = self.live_runs
        return dict(run["tags"])

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any] | None:
        """Status and answer; None: the connection is closed without one."""
        with self._lock:
            number, self.requests = self.requests, self.requests + 1
            self.headers.append(headers)
            is_lost = self.is_gone or number == self.loses
            answer = None if is_lost and not self.performs_lost else self._perform(method, path, body)
            return None if is_lost else answer

    def _perform(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(path)
        if method == "PUT":
            self.artifacts.setdefault(parts.path.partition("/mlflow-artifacts/artifacts/")[2], []).append(body)
            return _OK, {}
        call = parts.path.partition("/api/2.0/mlflow/")[2].replace("/", "_").replace("-", "_")
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()} | (json.loads(body) if body else {})
        perform = getattr(self, f"_{call}", None)
        return perform(asked) if perform else (_NOT_FOUND, {})

    def _experiments_get_by_name(self, asked: Plain) -> tuple[int, Any]:
        found = self.experiments.get(asked["experiment_name"])
        if found is None:
            return _NOT_FOUND, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
        return _OK, {"experiment": {"experiment_id": found}}

    def _experiments_create(self, asked: Plain) -> tuple[int, Any]:
        if asked["name"] in self.experiments:
            return _BAD_REQUEST, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "it exists"}
        self.experiments[asked["name"]] = str(len(self.experiments) + 1)
        return _OK, {"experiment_id": self.experiments[asked["name"]]}

    def _runs_search(self, asked: Plain) -> tuple[int, Any]:
        name, _, value = asked["filter"].removeprefix("tags.").partition(" = ")
        found = [one for one in self.live_runs if one["experiment"] in asked["experiment_ids"]]
        return _OK, {"runs": [_shown(one) for one in found if one["tags"].get(name.strip("`")) == value.strip("'")]}

    def _runs_create(self, asked: Plain) -> tuple[int, Any]:
        run_id = f"run{len(self.runs)}"
        root = f"{self.artifact_root}{asked['experiment_id']}/{run_id}/artifacts"
        info = {
            "run_id": run_id,
            "status": "RUNNING",
            "artifact_uri": root,
            "run_name": asked["run_name"],
            "start_time": asked["start_time"],
        }
        tags = {one["key"]: one["value"] for one in asked["tags"]}
        self.runs[run_id] = {
            "info": info, "experiment": asked["experiment_id"], "tags": tags, "params": {}, "metrics": [], "deleted": False
        }  # fmt: skip
        return _OK, {"run": _shown(self.runs[run_id])}

    def _runs_delete(self, asked: Plain) -> tuple[int, Any]:
        self.runs[asked["run_id"]]["deleted"] = True
        return _OK, {}

    def _runs_update(self, asked: Plain) -> tuple[int, Any]:
        self.runs[asked["run_id"]]["info"] |= {"status": asked["status"], "end_time": asked["end_time"]}
        return _OK, {"run_info": {}}

    def _runs_log_batch(self, asked: Plain) -> tuple[int, Any]:
        run = self.runs[asked["run_id"]]
        if len(asked["metrics"]) + len(asked["params"]) + len(asked["tags"]) > 1000:
            return _BAD_REQUEST, {
                "error_code": "INVALID_PARAMETER_VALUE",
                "message": "A batch logging request can contain at most 1000 items",
            }
        for one in asked["params"]:
            if run["params"].setdefault(one["key"], one["value"]) != one["value"]:
                return _BAD_REQUEST, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Changing param values is not allowed"}
        run["metrics"] += asked["metrics"]
        run["tags"] |= {one["key"]: one["value"] for one in asked["tags"]}
        return _OK, {}


def _shown(run: Plain) -> Plain:
    data = {name: [{"key": key, "value": value} for key, value in run[name].items()] for name in ("tags", "params")}
    return {"info": run["info"], "data": data}


@contextmanager
def running_stand_in(certificate: Path | None = None) -> Iterator[StandInMlflow]:
    """The stand-in, at its `url`; with TLS if it has a certificate."""
    stand_in = StandInMlflow()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = stand_in.answer(self.command, self.path, dict(self.headers), body)
            if answer is None:
                self.close_connection = True
                return
            content = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 -- the names that the base class calls

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    stand_in.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
