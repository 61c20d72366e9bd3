"""What a tracker's server may answer, or not: each ends as a reason with a sentence, within bounds, and no answer leads anywhere else."""

import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from certificates import certificate
from mlflow_servers import running_stand_in

from fedpipe_operator.api import MlflowSpec
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Guard, http_server
from fedpipe_operator.store.http_server import HttpServer
from fedpipe_operator.tracking import mlflow
from fedpipe_operator.tracking.login import Login, login_in
from fedpipe_operator.tracking.mlflow import MlflowClient

SHORT = 0.5
MARGIN = 2.0
"""Seconds between a deadline and the error: the machine may have other work."""


def request_on(connection: socket.socket) -> bytes:
    """A whole request: a connection that is closed before its body was read is reset, and the answer with it. Of TLS, its first bytes."""
    heard = connection.recv(65536)
    while heard[:1].isalpha() and not _is_whole(heard) and (more := connection.recv(65536)):
        heard += more
    return heard


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


@dataclass
class Server:
    """Says the same to every connection, and keeps what it was sent."""

    says: Callable[[socket.socket, threading.Event], None]
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    heard: list[bytes] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with closing(connection), suppress(OSError):
            self.heard.append(request_on(connection))
            self.says(connection, self.stopped)


Serve = Callable[[Callable[[socket.socket, threading.Event], None]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server."""
    started: list[Server] = []

    def start(says: Callable[[socket.socket, threading.Event], None]) -> Server:
        started.append(Server(says))
        return started[-1]

    yield start
    for server in started:
        server.stopped.set()
        server.listener.close()


def answering(status: int, body: bytes, *headers: str) -> Callable[[socket.socket, threading.Event], None]:
    def says(connection: socket.socket, _: threading.Event) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close", *headers]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return says


def error_of(server: Server, *, guard: Guard | None = None, login: Login | None = None, url: str = "") -> FedPipeError:
    """Of a client that looks for an experiment."""
    with HttpServer(url or server.url, (login or Login()).headers, guard) as called, pytest.raises(FedPipeError) as failure:
        MlflowClient(called).experiment_id("wards")
    return failure.value


PROBLEM = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "the experiment is deleted"}).encode()


MOST = http_server.ANSWER_BYTES
MANY_TAGS = b'{"runs": [{"info": {"run_id": "a"}, "data": {"tags": [' + b",".join([b'{"key":""}'] * 300_000) + b"]}}]}"
MANY_RUNS = b'{"runs": [' + b",".join([b'{"info":{"run_id":"a"}}'] * 150_000) + b"]}"
TOO_MANY_TAGS = b'{"runs": [{"info": {"run_id": "a"}, "data": {"tags": [' + b",".join([b'{"key":""}'] * 1_001) + b"]}}]}"
TOO_MANY_RUNS = b'{"runs": [' + b",".join([b'{"info":{"run_id":"a"}}'] * 11) + b"]}"


@pytest.mark.parametrize("body", [MANY_TAGS, MANY_RUNS, TOO_MANY_TAGS, TOO_MANY_RUNS])
def test_an_answer_of_very_many_small_values_is_refused_before_they_are_made(serve: Serve, body: bytes) -> None:
    assert len(body) < MOST
    with HttpServer(serve(answering(200, body)).url) as called:
        answer = called.request("POST", "/runs/search", b"{}")
    tracemalloc.start()
    try:
        assert mlflow._read(answer, mlflow._Runs) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "words"),
    [
        (answering(401, b""), UserError, "TrackerDenied", "answers 401; check the Secret"),
        (answering(403, b"Invalid Host header"), UserError, "TrackerDenied", "answers 403; check the Secret"),
        (answering(404, b"<html>not found</html>"), UserError, "TrackerRefused", "is it an MLflow server"),
        (answering(400, PROBLEM), UserError, "TrackerRefused", "answers 400: the experiment is deleted (INVALID_PARAMETER_VALUE)"),
        (answering(429, b""), TransientError, "TrackerUnavailable", "answers 429"),
        (answering(500, b"oops"), TransientError, "TrackerUnavailable", "answers 500; the server may recover"),
        (answering(503, b""), TransientError, "TrackerUnavailable", "answers 503"),
        (answering(200, b"<html>welcome</html>"), UserError, "TrackerRefused", "does not answer as MLflow does"),
        (answering(200, b'{"experiment": {"experiment_id": "../../x"}}'), UserError, "TrackerRefused", "does not answer as MLflow does"),
        (answering(200, b'{"experiment": {"experiment_id": 10}}'), UserError, "TrackerRefused", "does not answer as MLflow does"),
        (answering(200, b"[" * 100_000), UserError, "TrackerRefused", "does not answer as MLflow does"),
        (answering(200, b"\xff\xfe"), UserError, "TrackerRefused", "does not answer as MLflow does"),
        (answering(200, b"{}"), UserError, "TrackerRefused", "does not answer as MLflow does"),
        (answering(200, b"x" * (5 * 2**20)), UserError, "TrackerRefused", "answers more than 4 MiB"),
        (answering(500, b"x" * (5 * 2**20)), UserError, "TrackerRefused", "answers more than 4 MiB"),
        (lambda connection, _: connection.sendall(b"no http\r\n\r\n"), TransientError, "TrackerUnreachable", "check its address"),
        (lambda _, __: None, TransientError, "TrackerUnreachable", "check its address"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_mlflow_s_is_a_reason_with_a_sentence(
    serve: Serve, answer: Callable[[socket.socket, threading.Event], None], kind: type[FedPipeError], reason: str, words: str
) -> None:
    error = error_of(serve(answer))

    assert (type(error), error.reason) == (kind, reason)
    assert words in error.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_shows_nobody_the_login(serve: Serve, status: int) -> None:
    elsewhere = serve(answering(200, b"{}"))
    error = error_of(serve(answering(status, b"", f"Location: {elsewhere.url}/")), login=Login("fedpipe", "a-password"))

    assert error.reason == "TrackerRefused"
    assert "a redirect, which is not followed; name the URL that it leads to" in error.message
    assert elsewhere.heard == []


def drips(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not stopped.wait(0.02):
        connection.sendall(b"x")


def never_answers(_: socket.socket, stopped: threading.Event) -> None:
    stopped.wait()


@pytest.mark.parametrize("says", [drips, never_answers], ids=lambda one: one.__name__)
def test_a_server_that_answers_a_byte_at_a_time_holds_no_thread(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, says: Callable[[socket.socket, threading.Event], None]
) -> None:
    monkeypatch.setattr(http_server, "SECONDS", SHORT)
    began = time.monotonic()

    error = error_of(serve(says))

    assert time.monotonic() - began < SHORT + MARGIN
    assert (type(error), error.reason) == (TransientError, "TrackerTooSlow")


def test_an_answer_that_never_ends_fills_no_memory(serve: Serve) -> None:
    def floods(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not stopped.is_set():
            connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    error = error_of(serve(floods))

    assert (error.reason, "answers more than 4 MiB" in error.message) == ("TrackerRefused", True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "0.0.0.0"])  # noqa: S104 -- as a run's author may write it
def test_on_a_cluster_no_loopback_and_no_metadata_address_is_called(serve: Serve, host: str) -> None:
    server = serve(answering(200, b"{}"))
    port = server.url.rpartition(":")[2]

    error = error_of(server, guard=Guard(), url=f"http://{host}:{port}")

    assert (type(error), error.reason) == (UserError, "AddressRefused")
    assert server.heard == []


def test_on_a_cluster_the_api_server_is_not_called(serve: Serve) -> None:
    error = error_of(serve(answering(200, b"{}")), guard=Guard(("192.0.2.1",)), url="http://192.0.2.1:6443")

    assert error.reason == "AddressRefused"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the server, whose client went away
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_private_ca_is_trusted_where_the_environment_names_it_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    file = certificate(tmp_path)
    with running_stand_in(file) as stand_in:
        with HttpServer(stand_in.url) as server, pytest.raises(TransientError) as untrusted:
            MlflowClient(server).experiment_id("wards")
        monkeypatch.setenv(variable, str(file))
        with HttpServer(stand_in.url) as server:
            assert MlflowClient(server).experiment_id("wards") == "1"

    assert untrusted.value.reason == "TrackerUnreachable"
    assert "its certificate is not trusted" in untrusted.value.message
    assert "add its CA to the chart's caBundle" in untrusted.value.message


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is the proxy, which is asked for the whole URL of a server that only it knows."""
    with running_stand_in() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        with HttpServer("http://mlflow.elsewhere.example") as server:
            assert MlflowClient(server).experiment_id("wards") == "1"

    assert all(one["Host"] == "mlflow.elsewhere.example" for one in proxy.headers)


def test_the_words_of_a_server_are_short_and_printable(serve: Serve) -> None:
    body = json.dumps({"error_code": "BAD_REQUEST", "message": "\x1b[31m" + "x" * 10_000}).encode()
    error = error_of(serve(answering(400, body)))

    assert error.message.isprintable()
    assert len(error.message) < 700


@pytest.mark.parametrize(
    ("login", "header"),
    [
        (Login("", "", "abc"), b"Authorization: Bearer abc"),
        (Login("fedpipe", "pass:word"), b"Authorization: Basic ZmVkcGlwZTpwYXNzOndvcmQ="),
    ],
)
def test_the_login_is_shown_to_the_server_and_in_no_message(serve: Serve, login: Login, header: bytes) -> None:
    server = serve(answering(401, b""))
    error = error_of(server, login=login)

    assert header in server.heard[0]
    assert not any(secret and secret in f"{error} {login!r}" for secret in (login.password, login.token))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "SecretIncomplete"),
        ({"MLFLOW_TRACKING_USERNAME": "a"}, "SecretIncomplete"),
        ({"MLFLOW_TRACKING_PASSWORD": "a", "MLFLOW_TRACKING_USERNAME": " \n"}, "SecretIncomplete"),
        ({"MLFLOW_TRACKING_TOKEN": "a\r\nX-Other: b"}, "SecretInvalid"),
        ({"MLFLOW_TRACKING_TOKEN": "a" * 10_000}, "SecretInvalid"),
    ],
)
def test_a_login_that_is_incomplete_or_no_line_of_text_is_refused(values: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError) as refused:
        login_in(values, "the Secret wards/mlflow")

    assert refused.value.reason == reason
    assert refused.value.message.startswith("the Secret wards/mlflow has ")
    assert "X-Other" not in refused.value.message


def test_the_end_of_a_line_that_a_file_leaves_is_not_part_of_a_login() -> None:
    assert login_in({"MLFLOW_TRACKING_TOKEN": "abc\n"}, "") == Login("", "", "abc")


@pytest.mark.parametrize("url", ["http://[::1::2]:80", "http://[....]"])
def test_a_url_without_a_host_is_a_fault_of_the_url_and_not_of_the_operator(url: str) -> None:
    with pytest.raises(UserError, match=r"correct the URL") as failure:
        HttpServer(MlflowSpec(tracking_uri=url).tracking_uri)

    assert failure.value.reason == "TrackerRefused"
