"""A store's server cannot hold a thread, fill the memory, or lead the operator elsewhere: real sockets, and very short deadlines."""

import socket
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from peak_memory import peak_memory
from s3_servers import CREDENTIALS, Server
from talking_servers import SHORT, Talk, Talking

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Credentials, Guard, S3Store
from fedpipe_operator.store.connections import _CALL, Call, TooSlowError, bounded, deadline
from fedpipe_operator.store.s3 import Limits

MARGIN = 1.2
"""Seconds between a deadline and the error: a write waits one second for a server's consent, and the machine may have other work."""
PATIENT = Limits(seconds=20, listing_seconds=20)
"""For a server that answers at once, on a machine with other work."""
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], Talking]]:
    """Starts a server of this talk."""
    started: list[Talking] = []

    def start(talk: Talk) -> Talking:
        server = Talking(talk)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stopped.set()
        server.listener.close()


Serve = Callable[[Talk], Talking]


def error_of(use: Callable[[], object]) -> FedPipeError:
    with pytest.raises(FedPipeError) as failure:
        use()
    return failure.value


def sends_a_byte_at_a_time(server: Talking, connection: socket.socket) -> None:
    connection.sendall(OK + b"Content-Length: 1000000\r\n\r\n")
    server.drip(connection)


def never_ends_its_headers(server: Talking, connection: socket.socket) -> None:
    connection.sendall(OK)
    server.drip(connection, b"X")


def never_begins(server: Talking, _: socket.socket) -> None:
    server.stopped.wait()


def says_continue_for_ever(server: Talking, connection: socket.socket) -> None:
    server.drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n")


def answers_an_error_a_byte_at_a_time(server: Talking, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 1000000\r\n\r\n")
    server.drip(connection)


TARPITS = [sends_a_byte_at_a_time, never_ends_its_headers, never_begins, says_continue_for_ever, answers_an_error_a_byte_at_a_time]


@pytest.mark.parametrize("talk", TARPITS, ids=lambda talk: talk.__name__)
@pytest.mark.parametrize("call", ["read", "list", "size", "read_range", "create", "delete", "write"])
def test_a_store_endpoint_that_answers_one_byte_a_second_holds_no_worker_thread(serve: Serve, talk: Any, call: str) -> None:
    store = serve(talk).store()
    arguments = {"read_range": (0, 100), "create": (b"{}",), "write": (b"{}",)}.get(call, ())
    began = time.monotonic()

    failure = error_of(lambda: getattr(store, call)("plan.json", *arguments))

    assert time.monotonic() - began < SHORT.seconds + MARGIN
    assert (type(failure), failure.reason) == (TransientError, "StoreTooSlow")
    assert failure.message.startswith(f"bucket fedpipe at {store.location.rpartition(' ')[2]}, plan.json: ")


def test_a_server_that_does_not_take_what_is_sent_holds_no_thread_either(serve: Serve, tmp_path: Path) -> None:
    def takes_nothing(server: Talking, _: socket.socket) -> None:
        server.stopped.wait()

    file = tmp_path / "adapter"
    file.write_bytes(bytes(20 * 2**20))
    began = time.monotonic()

    limits = Limits(seconds=0.3, bytes_per_second=1e12)
    failure = error_of(lambda: serve(takes_nothing).store(limits=limits).write_file("adapter", file))

    assert failure.reason == "StoreTooSlow"
    assert time.monotonic() - began < limits.seconds + 2 * MARGIN


def test_a_deadline_is_that_of_all_retries_together(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "100")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)

    def is_busy(_: Talking, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    failure = error_of(lambda: serve(is_busy).store(limits=Limits(seconds=0.1)).read("plan.json"))

    assert failure.reason in {"StoreTooSlow", "StoreUnavailable"}


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000000000", b"Transfer-Encoding: chunked", b"Connection: close"])
@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request", b"500 Internal Server Error"])
def test_an_answer_that_never_ends_fills_no_memory(serve: Serve, framing: bytes, status: bytes) -> None:
    sent = []

    def never_ends(_: Talking, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n\r\n")
        block = b"10000\r\n" + bytes(65536) + b"\r\n"
        while True:
            connection.sendall(block)
            sent.append(len(block))

    server = serve(never_ends)
    for use in (lambda store: store.read("plan.json"), lambda store: store.list()):
        sent.clear()
        failure = error_of(lambda use=use: use(server.store(limits=Limits(seconds=20, object_bytes=2**20))))

        assert failure.reason == "AnswerTooLarge"
        assert sum(sent) < 16 * 2**20


def test_a_range_that_is_answered_by_more_and_cut_again_and_again_fills_no_memory(serve: Serve) -> None:
    def sends_more_and_goes(_: Talking, connection: socket.socket) -> None:
        connection.sendall(OK + b'ETag: "e"\r\nContent-Length: 1000000000\r\n\r\n' + bytes(2**21))

    server = serve(sends_more_and_goes)

    failure = error_of(lambda: server.store(limits=Limits(seconds=5)).read_range("adapter", 0, 2**16))

    assert failure.reason == "ObjectTooShort"
    assert f"requested {2**16} bytes at offset 0, received {2**16 + 1}" in failure.message
    assert server.connections == 1


def test_headers_that_never_end_fill_no_memory(serve: Serve) -> None:
    def never_ends(_: Talking, connection: socket.socket) -> None:
        connection.sendall(OK)
        while True:
            connection.sendall(b"A: " + b"a" * 60_000 + b"\r\n")

    assert error_of(lambda: serve(never_ends).store(limits=Limits(seconds=20)).list()).reason in {"AnswerTooLarge", "StoreUnavailable"}


def page(keys: list[str], token: int) -> bytes:
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag></Contents>" for key in keys)
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    body = f"<ListBucketResult>{more}{entries}</ListBucketResult>".encode()
    return OK + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize("keys_of_a_page", [0, 40], ids=["empty pages", "full pages"])
def test_a_listing_that_never_ends_is_refused(serve: Serve, keys_of_a_page: int) -> None:
    numbers = count()

    def lists_for_ever(_: Talking, connection: socket.socket) -> None:
        number = next(numbers)
        connection.sendall(page([f"runs/{number}-{key}" for key in range(keys_of_a_page)], number))

    limits = Limits(listing_seconds=20, keys=50, pages=5)

    assert error_of(lambda: serve(lists_for_ever).store(limits=limits).list()).reason == "AnswerTooLarge"


@pytest.mark.parametrize("key", ["", "runs/plan.json"], ids=["no key", "the same key"])
def test_a_listing_of_one_key_again_and_again_is_refused_by_the_number_of_its_entries(serve: Serve, key: str) -> None:
    """They keep no memory, but each costs the operator's time to read."""
    numbers = count()

    def lists_one_key(_: Talking, connection: socket.socket) -> None:
        connection.sendall(page([key] * 60, next(numbers)))

    server = serve(lists_one_key)

    assert error_of(lambda: server.store(limits=Limits(listing_seconds=20, keys=50, pages=5)).list()).reason == "AnswerTooLarge"
    assert server.connections == 1


def test_a_listing_of_long_keys_is_refused_before_there_are_many(serve: Serve) -> None:
    numbers = count()

    def lists_long_keys(_: Talking, connection: socket.socket) -> None:
        number = next(numbers)
        connection.sendall(page([f"runs/{number}-{key}{'k' * 900}" for key in range(10)], number))

    limits = Limits(listing_seconds=20, listing_characters=2**14)

    failure = error_of(lambda: serve(lists_long_keys).store(limits=limits).list())
    assert failure.reason == "AnswerTooLarge"
    assert "the keys and ETags of the listing have more than 16384 characters" in failure.message


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + f"\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def junk_page(junk: bytes, token: int) -> bytes:
    """A page of a listing of some megabytes without a key, after which there are more."""
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>".encode()
    return answer(b"<ListBucketResult>" + more + junk + b"</ListBucketResult>")


JUNK = {
    "text": b"x" * 2**21,
    "lines": b"\n" * 2**21,
    "a comment": b"<!--" + b"x" * 2**21 + b"-->",
    "a key of no entry": b"<Key>" + b"k" * 2**21 + b"</Key>",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_a_listing_of_megabytes_without_keys_is_refused_at_its_first_page(serve: Serve, junk: bytes) -> None:
    """By the number of pages alone, a run's store could have the operator parse ten gigabytes in each reconcile."""
    numbers = count()

    def sends_junk(_: Talking, connection: socket.socket) -> None:
        connection.sendall(junk_page(junk, next(numbers)))

    server = serve(sends_junk)

    failure = error_of(lambda: server.store(limits=Limits(listing_seconds=20)).list())

    assert failure.reason == "AnswerTooLarge"
    assert "bytes for 0 keys" in failure.message
    assert server.connections == 1


def test_a_listing_of_keys_as_long_as_any_is_read(serve: Serve) -> None:
    keys = [f"runs/{number}/{'%20' * 330}" for number in range(1000)]

    def lists_long_keys(_: Talking, connection: socket.socket) -> None:
        entries = "".join(f"<Contents><Key>{key}</Key><Owner><ID>{'i' * 64}</ID></Owner><Size>1</Size></Contents>" for key in keys)
        connection.sendall(answer(f"<ListBucketResult>{entries}</ListBucketResult>".encode()))

    assert len(serve(lists_long_keys).store(limits=Limits()).list()) == len(keys)


LAST = b"<a/>" * 50 + b"</ListBucketResult>"
COSTLY = {
    "a default attribute of 3 MB": b"<!DOCTYPE l [<!ATTLIST a b CDATA '" + b"x" * 3 * 2**20 + b"'>]><ListBucketResult>" + LAST,
    "an entity of 3 MB": b"<!DOCTYPE l [<!ENTITY e '" + b"x" * 3 * 2**20 + b"'>]><ListBucketResult>" + b"&e;" * 50 + LAST,
    "both in UTF-16": (
        "\ufeff<!DOCTYPE l [<!ATTLIST a b CDATA '" + "x" * 2**20 + "'>]><ListBucketResult>" + "<a/>" * 50 + "</ListBucketResult>"
    ).encode("utf-16-be"),
    "a million tags": b"<ListBucketResult>" + b"<a/>" * 2**20,
    "half a million attributes": b"<ListBucketResult " + b" ".join(b"a%d=''" % number for number in range(400_000)) + b">",
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY.keys())
@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
def test_an_answer_that_grows_when_it_is_parsed_fills_no_memory(serve: Serve, status: bytes, body: bytes) -> None:
    """Four megabytes of XML can say that each of a million elements has an attribute of a megabyte."""

    def grows(_: Talking, connection: socket.socket) -> None:
        connection.sendall(answer(body, status))

    store, failures = serve(grows).store(limits=Limits()), []
    before = peak_memory(lambda: None)

    after = peak_memory(lambda: failures.append(error_of(store.list)))

    assert failures[0].reason in {"StoreRefused", "AnswerTooLarge"}
    assert after - before < 5 * 4 * 2**20


def test_the_page_of_a_web_server_that_is_being_started_is_a_transient_error(serve: Serve) -> None:
    def starts(_: Talking, connection: socket.socket) -> None:
        connection.sendall(answer(b"<!DOCTYPE html><html><body>starting</body></html>", b"503 Service Unavailable"))

    failure = error_of(serve(starts).store(limits=PATIENT).list)

    assert (type(failure), failure.reason) == (TransientError, "StoreUnavailable")


def test_an_object_larger_than_any_of_the_run_is_refused(nanio: Server) -> None:
    nanio.store("large").write("plan.json", bytes(2**23))
    small = S3Store("fedpipe", "large", credentials=CREDENTIALS, endpoint=nanio.endpoint, limits=Limits(object_bytes=2**20))

    assert error_of(lambda: small.read("plan.json")).reason == "AnswerTooLarge"
    assert len(small.read_range("plan.json", 0, 2**22)) == 2**22


def test_a_servers_words_in_a_message_are_short_and_printable(serve: Serve) -> None:
    def is_verbose(_: Talking, connection: socket.socket) -> None:
        body = b"<Error><Code>Wrong</Code><Message>" + "\u202e\u0007".encode() + b"m" * 100_000 + b"</Message></Error>"
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body)

    message = error_of(serve(is_verbose).store(limits=PATIENT).list).message

    assert len(message) < 600
    assert message.isprintable()


NO_LISTINGS = [b"<html><p>", b"{}", b"<ListBucketResult><Contents><Size>many</Size></Contents></ListBucketResult>", b"<a/>", b"\xff\xfe"]


@pytest.mark.parametrize("body", NO_LISTINGS)
@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"999 No"])
def test_an_answer_of_no_store_is_an_error_of_the_run_and_never_a_fault_of_the_operator(serve: Serve, status: bytes, body: bytes) -> None:
    def is_a_web_site(_: Talking, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 " + status + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    store = serve(is_a_web_site).store(limits=PATIENT)
    if (status, body) == (b"200 OK", b"<a/>"):
        assert store.list() == []
    else:
        assert error_of(store.list).reason in {"StoreRefused", "StoreUnavailable"}


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Names resolve to one of these addresses after another, the last one for ever; the names that were asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, *_: object, **__: object) -> list[Any]:
        address = addresses[min(len(asked), len(addresses) - 1)]
        asked.append(host)
        return [(socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in address.split(",")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def answers_once(_: Talking, connection: socket.socket) -> None:
    body = b"<ListBucketResult></ListBucketResult>"
    connection.sendall(OK + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


LOOPBACK = ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"]  # noqa: S104
LINK_LOCAL = ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "2852039166", "0xa9.254.169.254"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_addresses_are_not_called(serve: Serve, host: str) -> None:
    server = serve(answers_once)

    failure = error_of(server.store(host, Guard()).list)

    assert (type(failure), failure.reason) == (UserError, "AddressRefused")
    assert server.connections == 0


@pytest.fixture
def connected_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were connected to; none of them answers."""
    found: list[str] = []

    def connect(addresses: list[tuple[socket.AddressFamily, str]], *_: object) -> None:
        found.extend(address for _, address in addresses)
        raise ConnectionRefusedError

    monkeypatch.setattr("fedpipe_operator.store.connections._connect", connect)
    return found


def listed(endpoint: str, *api_servers: str) -> FedPipeError:
    """Why the store at this endpoint cannot be listed on a cluster with these API servers."""
    store = S3Store("fedpipe", "runs", credentials=CREDENTIALS, endpoint=endpoint, guard=Guard(api_servers), limits=PATIENT)
    return error_of(store.list)


@pytest.mark.parametrize("host", LINK_LOCAL)
def test_link_local_addresses_are_not_called(connected_to: list[str], host: str) -> None:
    failure = listed(f"http://{host}")

    assert (type(failure), failure.reason, connected_to) == (UserError, "AddressRefused", [])


API = ("10.96.0.1", "192.0.2.10:6443", "[fd00::a]:443", "198.51.100.0/24", "203.0.113.1:80")
API_ENDPOINTS = [
    "https://10.96.0.1",
    "http://10.96.0.1:9000",
    "https://192.0.2.10:6443",
    "http://192.0.2.10:6443",
    "https://[::ffff:192.0.2.10]:6443",
    "https://[fd00::a]",
    "https://198.51.100.7:16443",
    "http://203.0.113.1",
]


@pytest.mark.parametrize("endpoint", API_ENDPOINTS)
def test_the_api_server_is_called_neither_at_its_service_nor_at_its_endpoints(connected_to: list[str], endpoint: str) -> None:
    failure = listed(endpoint, *API)

    assert (type(failure), failure.reason, connected_to) == (UserError, "AddressRefused", [])
    assert "the Kubernetes API server's" in failure.message


def test_a_name_of_the_api_servers_endpoint_is_not_called(connected_to: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, "192.0.2.10")

    assert listed("https://minio.evil:6443", *API).reason == "AddressRefused"
    assert connected_to == []


def test_a_store_on_another_port_of_the_api_servers_node_is_called(connected_to: list[str]) -> None:
    failure = listed("http://192.0.2.10:30900", *API)

    assert (failure.reason, set(connected_to)) == ("StoreUnreachable", {"192.0.2.10"})


def test_a_name_with_one_refused_address_among_others_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, "192.0.2.1,169.254.169.254")

    assert error_of(serve(answers_once).store("minio.evil", Guard()).list).reason == "AddressRefused"


def test_a_name_that_resolves_to_another_address_at_the_next_connection_is_refused_then(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(answers_once)
    monkeypatch.setattr("fedpipe_operator.store.connections.refused", lambda address, *_: "bad" if address == "127.0.0.2" else None)
    asked = resolves_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    store = server.store("rebinding.evil", Guard(), PATIENT)

    assert store.list() == []
    assert error_of(store.list).reason == "AddressRefused"
    assert (asked, server.connections) == (["rebinding.evil"] * 2, 1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_leads_to_a_refused_address(serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    target = serve(answers_once)

    def redirects(_: Talking, connection: socket.socket) -> None:
        location = f"http://localhost:{target.port}/"
        answer = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nx-amz-bucket-region: eu-west-1\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(answer.encode())

    monkeypatch.setattr("fedpipe_operator.store.connections.refused", lambda address, *_: "bad" if address == "127.0.0.9" else None)
    resolves_to(monkeypatch, "127.0.0.1", "127.0.0.9")

    error_of(serve(redirects).store("moved.evil", Guard()).list)

    assert target.connections == 0


def test_behind_a_proxy_the_targets_name_is_checked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(answers_once)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", "")
    endpoint = "http://169.254.169.254"
    store = S3Store("fedpipe", "runs", credentials=Credentials("a", "proxied"), endpoint=endpoint, guard=Guard(), limits=SHORT)

    assert error_of(store.list).reason == "AddressRefused"
    assert proxy.connections == 0


@pytest.mark.parametrize(("endpoint", "asked"), [("http://192.0.2.10:6443", 0), ("http://192.0.2.10:30900", 1), ("http://203.0.113.1", 0)])
def test_behind_a_proxy_the_targets_port_is_checked(serve: Serve, monkeypatch: pytest.MonkeyPatch, endpoint: str, asked: int) -> None:
    proxy = serve(answers_once)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", "")
    store = S3Store("fedpipe", "runs", credentials=Credentials("a", "proxied"), endpoint=endpoint, guard=Guard(API), limits=PATIENT)

    if asked:
        assert store.list() == []
    else:
        assert error_of(store.list).reason == "AddressRefused"
    assert proxy.connections == asked


def test_behind_a_proxy_a_name_that_only_the_proxy_knows_is_left_to_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(answers_once)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", "")
    endpoint = "http://no-such-name.invalid"
    store = S3Store("fedpipe", "runs", credentials=Credentials("a", "proxied"), endpoint=endpoint, guard=Guard(), limits=Limits(seconds=9))

    assert store.list() == []
    assert proxy.connections == 1


def test_on_one_machine_its_user_may_name_any_address(serve: Serve) -> None:
    assert serve(answers_once).store("localhost", limits=PATIENT).list() == []


def test_a_connection_that_was_not_checked_is_not_shared_with_a_store_whose_connections_are(nanio: Server) -> None:
    assert nanio.store("shared").list() == []
    guarded = S3Store(
        "fedpipe", "shared", credentials=Credentials("operator", "a-secret-of-the-tests"), endpoint=nanio.endpoint, guard=Guard()
    )

    assert error_of(guarded.list).reason == "AddressRefused"


def test_a_name_server_that_does_not_answer_holds_no_thread(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(answers_once)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [server.stopped.wait()][:0])
    began = time.monotonic()

    failure = error_of(server.store("slow.evil").list)

    assert isinstance(failure, TransientError)
    assert time.monotonic() - began < SHORT.listing_seconds + MARGIN


def test_a_call_within_a_call_has_the_earlier_deadline() -> None:
    now = [100.0]
    outer = Call(ends_at=110.0, receives=1, clock=lambda: now[0])
    inner = Call(ends_at=200.0, receives=1, clock=lambda: now[0])

    with bounded(outer), bounded(inner):
        assert _CALL.get().seconds(5.0) == 5.0
        now[0] = 108.0
        assert _CALL.get().seconds(5.0) == 2.0
        now[0] = 110.0
        with pytest.raises(TooSlowError):
            _CALL.get().seconds(5.0)


def test_all_calls_of_a_reconcile_share_a_deadline_and_those_after_it_are_not_made(serve: Serve) -> None:
    server, began = serve(never_begins), time.monotonic()
    store = server.store(limits=Limits(seconds=60, listing_seconds=60))

    with deadline(0.3):
        first, made = error_of(lambda: store.read("a")), server.connections
        second = error_of(lambda: store.list("b"))

    assert time.monotonic() - began < 0.3 + MARGIN
    assert [first.reason, second.reason] == ["StoreTooSlow"] * 2
    assert server.connections == made
