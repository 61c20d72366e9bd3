"""The same bounds within TLS, whose sockets and time-outs are others: a handshake, a record, and a certificate that is checked."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from certificates import certificate

from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.store import Credentials, Guard, S3Store
from fedpipe_operator.store.s3 import Limits

LIMITS = Limits(seconds=0.4, listing_seconds=0.4)
MARGIN = 1.2
Talk = Callable[[socket.socket, threading.Event], None]
Serve = Callable[[Talk], S3Store]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A store of a server that says this once a connection is accepted; the certificate is known."""
    file, stopped, listeners = certificate(tmp_path), threading.Event(), list[socket.socket]()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def start(talk: Talk) -> S3Store:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with closing(connection):
                    talk(connection, stopped)

        threading.Thread(target=accept, daemon=True).start()
        endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
        return S3Store("fedpipe", "runs", credentials=Credentials("a", "b"), endpoint=endpoint, limits=LIMITS)

    start.file = file  # type: ignore[attr-defined]
    yield start
    stopped.set()
    for listener in listeners:
        listener.close()


def in_tls(serve: Serve, say: Callable[[ssl.SSLSocket, threading.Event], None]) -> Talk:
    """The talk within TLS, after the request was read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(serve.file)  # type: ignore[attr-defined]

    def talk(connection: socket.socket, stopped: threading.Event) -> None:
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as encrypted:
            encrypted.recv(65536)
            say(encrypted, stopped)

    return talk


def error_of(store: S3Store) -> FedPipeError:
    with pytest.raises(FedPipeError) as failure:
        store.list()
    return failure.value


def test_a_store_with_a_certificate_is_read(serve: Serve) -> None:
    body = b"<ListBucketResult></ListBucketResult>"

    def answers(connection: ssl.SSLSocket, _: threading.Event) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    assert serve(in_tls(serve, answers)).list() == []


def test_a_certificate_that_nobody_vouches_for_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")

    assert "certificate" in error_of(serve(in_tls(serve, lambda _connection, _stopped: None))).message.lower()


def never_shakes_hands(_: socket.socket, stopped: threading.Event) -> None:
    stopped.wait()


def shakes_hands_a_byte_at_a_time(connection: socket.socket, stopped: threading.Event) -> None:
    record = b"\x16\x03\x03\x40\x00"  # the head of a record of 16 KiB
    with suppress(OSError):
        for byte in record + bytes(16384):
            connection.sendall(bytes([byte]))
            if stopped.wait(0.02):
                return


@pytest.mark.parametrize("talk", [never_shakes_hands, shakes_hands_a_byte_at_a_time])
def test_a_handshake_that_never_ends_holds_no_thread(serve: Serve, talk: Talk) -> None:
    store, began = serve(talk), time.monotonic()

    assert error_of(store).reason in {"StoreTooSlow", "StoreUnreachable", "StoreUnavailable"}
    assert time.monotonic() - began < LIMITS.listing_seconds + MARGIN


def test_an_answer_of_one_byte_a_second_holds_no_thread(serve: Serve) -> None:
    def drips(connection: ssl.SSLSocket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not stopped.wait(0.02):
            connection.sendall(b"x")

    store, began = serve(in_tls(serve, drips)), time.monotonic()

    assert error_of(store).reason == "StoreTooSlow"
    assert time.monotonic() - began < LIMITS.listing_seconds + MARGIN


def test_an_answer_that_never_ends_fills_no_memory(serve: Serve) -> None:
    def floods(connection: ssl.SSLSocket, _: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    assert error_of(serve(in_tls(serve, floods))).reason in {"AnswerTooLarge", "StoreTooSlow"}


def test_a_refused_address_is_refused_before_the_handshake(serve: Serve) -> None:
    store = serve(never_shakes_hands)
    endpoint = store.location.rpartition(" ")[2]
    guarded = S3Store("fedpipe", "runs", credentials=Credentials("a", "b"), endpoint=endpoint, guard=Guard(), limits=LIMITS)

    assert error_of(guarded).reason == "AddressRefused"
