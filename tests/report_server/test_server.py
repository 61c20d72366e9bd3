"""The server of the reports, as callers meet it: its bounds, its TLS, and a whole report of a finished run."""

import gzip
import http.client
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import pytest
from certificates import certificate
from report_servers import AUDIENCE, StandInReviews, ask, bearer, reporter_of, served
from stand_in_cluster import KubeWorld

from fedpipe_operator.report_server import server as module
from fedpipe_operator.report_server.answers import Answer, Reporter, Request
from fedpipe_operator.report_server.gate import Access
from fedpipe_operator.report_server.server import Tls, serve

REFUSING = Reporter(lambda *_: Access.UNKNOWN, lambda *_: None, AUDIENCE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server beside a cluster on which a run has finished."""
    folder = tmp_path_factory.mktemp("reports")
    world = KubeWorld(folder)
    world.settle()
    pages = folder / "pages"
    pages.mkdir()
    with served(reporter_of(world, StandInReviews(), pages)) as port:
        yield port


def test_a_report_of_a_finished_run_is_served_whole_packed_or_not(finished: int) -> None:
    status, page, headers = ask(finished, "/default/toy", headers=bearer("viewers-token"))
    _, packed, packed_headers = ask(finished, "/default/toy", headers=bearer("viewers-token") | {"Accept-Encoding": "br, gzip"})

    assert (status, headers["Content-Type"], packed_headers["Content-Encoding"]) == (200, "text/html; charset=utf-8", "gzip")
    assert gzip.decompress(packed) == page
    assert b"site-a" in page
    assert headers["Content-Security-Policy"].count("'sha256-") == 2


def test_nobody_else_gets_any_of_it(finished: int) -> None:
    statuses = {token: ask(finished, "/default/toy", headers=bearer(token))[0] for token in ("strangers-token", "no-token")}

    assert statuses == {"strangers-token": 403, "no-token": 401}
    assert ask(finished, "/default/toy")[0] == 401


def test_a_form_is_read_and_a_redirect_sent(finished: int) -> None:
    status, _, headers = ask(finished, "/default/toy?x=1", method="POST", body="token=viewers-token")

    assert (status, headers["Location"]) == (303, "/default/toy")
    assert headers["Set-Cookie"].startswith("__Host-fedpipe-report=viewers-token; ")


def test_the_server_says_neither_its_version_nor_that_of_python() -> None:
    with served(REFUSING) as port:
        _, _, headers = ask(port, "/")

    assert headers["Server"] == "fedpipe"


@pytest.mark.parametrize("length", ["8193", "-1", "x", ""])
def test_a_form_that_is_too_long_or_has_no_length_is_not_read(length: str) -> None:
    with served(REFUSING) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
        caller.sendall(f"POST /a/b HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())

        answer = caller.makefile("rb").read()

    assert answer.startswith(b"HTTP/1.0 413 ")
    assert b"send a form of at most 8192 bytes, with its length" in answer


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "TRACE"])
def test_nothing_but_reading_and_signing_in_is_supported(method: str) -> None:
    with served(REFUSING) as port:
        assert ask(port, "/default/toy", method=method)[0] == 501


def test_of_a_request_without_end_only_its_beginning_is_read() -> None:
    with served(REFUSING) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 40 + b"Z: " + b"z" * 40_000)

        assert caller.recv(1000).startswith(b"HTTP/1.0 ")


def test_a_connection_too_many_is_closed_and_the_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CONNECTIONS", 2)
    entered, leave = threading.Semaphore(0), threading.Event()

    def wait(_request: Request) -> Answer:
        entered.release()
        assert leave.wait(20)
        return Answer(HTTPStatus.OK, "done")

    server = serve(wait, 0, host="127.0.0.1")
    port, answers = server.server_address[1], list[int]()
    callers = [threading.Thread(target=lambda: answers.append(ask(port, "/")[0])) for _ in range(2)]
    for caller in callers:
        caller.start()
    assert all(entered.acquire(timeout=20) for _ in callers)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(port, "/")
    leave.set()
    for caller in callers:
        caller.join(20)
    server.shutdown()
    server.server_close()

    assert answers == [200, 200]


def test_who_sends_nothing_or_little_by_little_loses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECTION_SECONDS", 0.3)
    with served(REFUSING) as port, socket.create_connection(("127.0.0.1", port), timeout=8) as caller:
        caller.sendall(b"GET / HTT")

        assert caller.recv(100) in (b"", b"HTTP/1.0 400 Bad request syntax")


def test_a_fault_is_told_without_its_details_and_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(*_: str) -> Access:
        raise RuntimeError("a fault")

    with served(replace(REFUSING, access=faulty)) as port:
        status, body, headers = ask(port, "/default/toy", headers=bearer("a"))

    assert (status, body) == (500, b"the report cannot be served: see the operator's log\n")
    assert headers["Cache-Control"] == "no-store"
    assert "RuntimeError: a fault" in caplog.text


def test_no_token_is_ever_logged(caplog: pytest.LogCaptureFixture, finished: int) -> None:
    caplog.set_level(0)
    ask(finished, "/default/toy", headers=bearer("strangers-token"))
    ask(finished, "/default/toy", method="POST", body="token=strangers-token")

    assert "strangers-token" not in caplog.text


def a_tls_folder(folder: Path) -> Path:
    """As the kubelet mounts a Secret of the type kubernetes.io/tls."""
    both = certificate(folder)
    for name in ("tls.crt", "tls.key"):
        shutil.copy(both, folder / name)
    return folder


def ask_by_tls(port: int, trusted: Path) -> int:
    context = ssl.create_default_context(cafile=trusted)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    connection.request("GET", "/")
    status = connection.getresponse().status
    connection.close()
    return status


def test_it_is_served_by_tls_with_the_certificate_of_the_secret(tmp_path: Path) -> None:
    folder = a_tls_folder(tmp_path)
    with served(REFUSING, Tls(folder)) as port:
        assert ask_by_tls(port, folder / "tls.crt") == 200


def test_a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = a_tls_folder(tmp_path)
    with served(REFUSING, Tls(folder)) as port:
        assert ask_by_tls(port, folder / "tls.crt") == 200
        (folder / "tls.key").write_text("no key")
        assert ask_by_tls(port, folder / "tls.crt") == 200
        assert "the one before goes on" in caplog.text
        renewed = a_tls_folder(folder)
        assert ask_by_tls(port, renewed / "tls.crt") == 200


def test_who_speaks_no_tls_gets_nothing(tmp_path: Path) -> None:
    with served(REFUSING, Tls(a_tls_folder(tmp_path))) as port, pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(port, "/")


def test_a_certificate_that_cannot_be_read_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tls\.crt"):
        serve(REFUSING.answer, 0, Tls(tmp_path), "127.0.0.1")
