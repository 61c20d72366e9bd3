"""Bounds on every call of a store: where it connects to, how long it takes in total, and how much it receives.

A run's author chooses the server. boto3's time-outs are for single operations on a socket: a server that sends one byte a second holds
a thread for ever, one that never ends fills the memory, and one whose name resolves to the cluster's own addresses is called. So each
call of `s3` is a `Call` with a deadline, and boto3's connections of that thread look it up: before they resolve a name, before each
operation on a socket, and after each byte that they receive.
"""

import io
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool, AWSHTTPSConnection, AWSHTTPSConnectionPool
from botocore.exceptions import HTTPClientError
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from fedpipe_operator.store.addresses import refused

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection

_CONNECT_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 20.0
"""The longest wait for the next byte, after which boto3 tries again while the call's deadline permits."""
_SEND_BYTES: Final = 2**18
_ERROR_STATUS: Final = 300
_PORTS: Final = {"http": 80, "https": 443}
ANSWER_BYTES: Final = 4 * 2**20
"""The longest answer that is not an object: a page of a listing has at most 1000 keys of 1 KiB, which XML and URL encoding triple."""
_MARKUP: Final = (b"<", b"=")
"""What each element and each attribute of XML has one of at least."""
_MOST_MARKUP: Final = 100_000
"""In an answer: a key of a page has some 25 tags. As elements, 4 MiB of the shortest take hundreds."""
_NO_STORES: Final = (b"<!DOCTYPE", b"\0")
"""What XML of no store has. A document type may give each element attributes or text as long as the answer itself; a NUL stands in the
encodings in which one would not be found."""

P = ParamSpec("P")
T = TypeVar("T")


class BoundError(Exception):
    """A call met one of its bounds. No error of a socket, so that neither urllib3 nor boto3 tries again."""


class AddressRefusedError(BoundError):
    """The server's name resolves to an address that the operator never connects to."""


class TooSlowError(BoundError):
    """The call was not done by its deadline."""


class TooLargeError(BoundError):
    """The server sent more than the call may receive."""


class NoStoreError(BoundError):
    """The server sent what no store sends, and what it costs to parse has no bound."""


@dataclass(frozen=True)
class Guard:
    """On a cluster: the operator connects to no address that `addresses.refused` refuses."""

    api_servers: tuple[str, ...] = ()
    """Where the Kubernetes API server is, as `addresses.parse_api_server` reads it."""

    def check(self, host: str, port: int | None, addresses: list[str]) -> None:
        """Check all addresses of a name: one that is refused among others is what a rebinding name has.

        Raises:
            AddressRefusedError: one is refused.
        """
        for address in addresses:
            if (why := refused(address, self.api_servers, port)) is not None:
                raise AddressRefusedError(f"{host} resolves to {address}, to which the operator does not connect: {why}")


@dataclass(frozen=True)
class Call:
    """The bounds of one call of the store, its retries and all of its requests included."""

    ends_at: float
    """In seconds of `clock`."""
    receives: int
    """Bytes of one answer, its headers included."""
    guard: Guard | None = None
    """None: any address may be connected to, as on one machine."""
    clock: Callable[[], float] = time.monotonic

    def seconds(self, at_most: float) -> float:
        """Seconds until the deadline, or `at_most`.

        Raises:
            TooSlowError: the deadline has passed.
        """
        left = self.ends_at - self.clock()
        if left <= 0:
            raise TooSlowError("the store did not answer completely by the call's deadline")
        return min(left, at_most)


@dataclass
class _Answer:
    """How much of the answer to one request may still be received."""

    left: int
    received: int = 0

    def count(self, received: int) -> None:
        self.left -= received
        self.received += received
        if self.left < 0:
            raise TooLargeError("the store sends more than such an answer has")


_CALL: Final[ContextVar[Call]] = ContextVar("call")
_ANSWER: Final[ContextVar[_Answer]] = ContextVar("answer")


def answer_bytes() -> int:
    """How much this thread received of the last answer, its headers included."""
    return _ANSWER.get().received


@contextmanager
def bounded(call: Call) -> Iterator[None]:
    """Bound everything that this thread does with a bound client. Within another call, the earlier deadline holds."""
    outer = _CALL.get(None)
    ends_at = call.ends_at if outer is None else min(call.ends_at, outer.ends_at)
    token = _CALL.set(Call(ends_at, call.receives, call.guard, call.clock))
    try:
        yield
    finally:
        _CALL.reset(token)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Have all calls of stores that this thread makes end within so many seconds together. Those that come later fail at once."""
    with bounded(Call(time.monotonic() + seconds, receives=0)):
        yield


def bind(client: Any) -> None:  # noqa: ANN401 -- boto3 makes the classes of its clients at run time
    """Have this client connect, send and receive within the bounds of the current `Call`; without one, it fails.

    botocore takes no session of another class, but it lets others send its requests (the event before-send), and it gives its dict of
    pool classes to urllib3.
    """
    session = client._endpoint.http_session  # noqa: SLF001 -- see above; test_bounds.py fails if this changes
    bind_session(session)
    client.meta.events.register(f"before-send.{client.meta.service_model.service_name}", partial(_send_to_store, session))


def bind_session(session: Any) -> None:  # noqa: ANN401 -- botocore's own, untyped
    """Have this session of botocore connect, send and receive within the bounds of the current `Call`."""
    session._pool_classes_by_scheme.update(http=_BoundedPool, https=_BoundedTLSPool)  # noqa: SLF001 -- see `bind`


def send(client: Any, request: Any) -> Any:  # noqa: ANN401 -- botocore's own, untyped
    """Send a request of another API than the client's, without a retry, within the bounds of the current `Call`; the answer, read."""
    return _send_to_store(client._endpoint.http_session, request)  # noqa: SLF001 -- see `bind`


class ContextExecutor(ThreadPoolExecutor):
    """Threads that share the bounds of the call that submits work to them: a large upload sends its parts side by side."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the base class."""
        return super().submit(partial(copy_context().run, fn, *args, **kwargs))


def send_bounded(session: Any, request: Any, **_: object) -> Any:  # noqa: ANN401 -- botocore's own, untyped
    """Send one request by a session that `bind_session` has bound, a retry of boto3 or a redirect like a first one; the answer."""
    call = _CALL.get()
    call.seconds(_IDLE_SECONDS)
    _ANSWER.set(_Answer(call.receives))
    if call.guard is not None and session._proxy_config.proxy_url_for(request.url):  # noqa: SLF001 -- see `bind`
        host = urlsplit(request.url).hostname or ""
        with suppress(socket.gaierror, TimeoutError):  # a name that only the proxy knows
            call.guard.check(host, port_of(request.url), [address for _, address in _resolve(host, 0, call)])
    try:
        answer = session.send(request)
    except HTTPClientError as error:
        cause = error.kwargs.get("error")
        if isinstance(cause, BoundError):
            raise cause from error
        raise
    if answer.status_code >= _ERROR_STATUS:  # its body is an error's, however long an object may be
        _ANSWER.get().left = min(_ANSWER.get().left, ANSWER_BYTES)
    return answer


def _send_to_store(session: Any, request: Any, **_: object) -> Any:  # noqa: ANN401 -- botocore's own, untyped
    """Send one request to an S3 store, whose answer botocore parses: only one of which that costs no more than its bytes allow."""
    answer = send_bounded(session, request)
    is_error = answer.status_code >= _ERROR_STATUS
    if request.stream_output and not is_error:
        return answer  # an object
    problem = _parsing_problem(answer.content)
    if problem is not None and not is_error:
        raise problem
    if problem is not None:
        answer._content = b""  # noqa: SLF001 -- so that only its status counts, as of a web server's page that is no XML
    return answer


def _parsing_problem(body: bytes) -> BoundError | None:
    """Why this body of an answer is not parsed; None if that costs a bounded multiple of its bytes."""
    if any(mark in body for mark in _NO_STORES):
        return NoStoreError("the answer is not that of an S3 store")
    found = sum(map(body.count, _MARKUP))
    return TooLargeError(f"the answer has {found} tags and attributes, expected at most {_MOST_MARKUP}") if found > _MOST_MARKUP else None


class _Bounded:
    """What both kinds of connection do differently from botocore's."""

    _dns_host: str
    port: int
    proxy: object
    socket_options: Any
    sock: Any

    def _new_conn(self) -> socket.socket:
        """A connection to one of the host's addresses, each of which is checked first; a proxy's are the administrator's choice."""
        call, host, this = _CALL.get(), self._dns_host, cast("HTTPConnection", self)
        try:
            found = _resolve(host, self.port, call)
        except socket.gaierror as error:
            raise NameResolutionError(host, this, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(this, f"the name {host} was not resolved in time") from error
        if call.guard is not None and self.proxy is None:
            call.guard.check(host, self.port, [address for _, address in found])
        try:
            return _connect(found, self.port, call, self.socket_options)
        except TimeoutError as error:
            raise ConnectTimeoutError(this, f"no connection to {host} in time") from error
        except OSError as error:
            raise NewConnectionError(this, f"no connection to {host}: {error}") from error

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock = _BoundedSocket(self.sock)


class _BoundedConnection(_Bounded, AWSHTTPConnection):  # type: ignore[misc]  # urllib3's and botocore's own types disagree
    pass


class _BoundedTLSConnection(_Bounded, AWSHTTPSConnection):  # type: ignore[misc]  # as above
    pass


class _BoundedPool(AWSHTTPConnectionPool):
    ConnectionCls = _BoundedConnection


class _BoundedTLSPool(AWSHTTPSConnectionPool):
    ConnectionCls = _BoundedTLSConnection


@dataclass
class _BoundedSocket:
    """A connected socket, with TLS or without. What is not here is the socket's own."""

    _socket: Any

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever a socket has
        return getattr(self._socket, name)

    def sendall(self, data: Any, *_: object) -> None:  # noqa: ANN401 -- any bytes-like object
        """Send everything before the deadline. TLS counts its time-out anew for every record, so it is set before each."""
        rest = memoryview(data).cast("B")
        while rest:
            self._socket.settimeout(_CALL.get().seconds(_IDLE_SECONDS))
            rest = rest[self._socket.send(rest[:_SEND_BYTES]) :]

    def makefile(self, _mode: str, buffering: int = -1) -> io.RawIOBase | io.BufferedReader:
        """The stream from which http.client reads the answer."""
        raw = _BoundedReader(self._socket, self._socket.makefile("rb", buffering=0))
        return raw if buffering == 0 else io.BufferedReader(raw)


class _BoundedReader(io.RawIOBase):
    """The unbuffered stream of a socket."""

    def __init__(self, connected: Any, raw: io.RawIOBase) -> None:  # noqa: ANN401 -- any kind of socket
        super().__init__()
        self._socket, self._raw = connected, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:  # noqa: ANN401 -- any writable bytes-like object
        call = _CALL.get()
        self._socket.settimeout(call.seconds(_IDLE_SECONDS))
        try:
            received = self._raw.readinto(buffer)
        except TimeoutError:
            call.seconds(_IDLE_SECONDS)
            raise
        _ANSWER.get().count(received or 0)
        return received

    def close(self) -> None:
        self._raw.close()
        super().close()


def port_of(url: str) -> int | None:
    """The port that this URL leads to; None if it cannot be told."""
    try:
        parts = urlsplit(url)
        return parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None


def addresses_of(host: str) -> list[str]:
    """The addresses of a host; none if there is no such name."""
    try:
        return [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def _resolve(host: str, port: int, call: Call) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of a host. In a thread of its own, as the C library's resolver knows no deadline.

    Raises:
        TimeoutError: the name server does not answer in time.
        socket.gaierror: there is no such name.
    """
    found: queue.SimpleQueue[list[tuple[socket.AddressFamily, str]] | OSError | ValueError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
            found.put([(family, str(address[0])) for family, _, _, _, address in infos])
        except (OSError, ValueError) as error:
            found.put(error)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        answer = found.get(timeout=call.seconds(_CONNECT_SECONDS))
    except queue.Empty:
        raise TimeoutError(host) from None
    if isinstance(answer, ValueError):
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is no name") from answer
    if isinstance(answer, OSError):
        raise answer
    return answer


def _connect(found: list[tuple[socket.AddressFamily, str]], port: int, call: Call, options: Any) -> socket.socket:  # noqa: ANN401
    """A connection to the first of these addresses that accepts one. The socket's time-out then bounds a TLS handshake."""
    problem: OSError = OSError("the name has no address")
    for family, address in found:
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            for option in options or ():
                connecting.setsockopt(*option)
            connecting.settimeout(call.seconds(_CONNECT_SECONDS))
            connecting.connect((address, port))
            connecting.settimeout(call.seconds(_IDLE_SECONDS))
        except OSError as error:
            connecting.close()
            problem = error
        except BoundError:
            connecting.close()
            raise
        else:
            return connecting
    raise problem
