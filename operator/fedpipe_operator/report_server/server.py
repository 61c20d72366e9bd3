"""The sockets of the report's server, each with bounds: how many at once, how long, how many bytes. From threads of its own."""

import gzip
import io
import logging
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from fedpipe_operator.report_server.answers import Answer, Request

_LOG: Final = logging.getLogger(__name__)
_MAX_CONNECTIONS: Final = 32
"""At once; one more is closed. Browsers open some ahead of need, and a request may wait for a drawing, which is no work of this process."""
_CONNECTION_SECONDS: Final = 60.0
"""Of a whole connection, which has one request: who sends or reads a byte now and then holds it no longer."""
_IDLE_SECONDS: Final = 10.0
_REQUEST_BYTES: Final = 32 * 2**10
_FORM_BYTES: Final = 8 * 2**10

Answering = Callable[[Request], Answer]


@dataclass
class Tls:
    """Certificate and key of a folder, as the kubelet mounts a Secret of the type kubernetes.io/tls. Read again when they change."""

    folder: Path
    _context: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    _read: tuple[int, int] = (0, 0)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def context(self) -> ssl.SSLContext:
        """The context with the present certificate.

        Raises:
            OSError: they cannot be read, or do not belong together; once they were read, the last ones go on.
        """
        certificate, key = self.folder / "tls.crt", self.folder / "tls.key"
        with self._lock:
            try:
                found = (certificate.stat().st_mtime_ns, key.stat().st_mtime_ns)
                if found != self._read:
                    self._context.load_cert_chain(certificate, key)
                    self._read = found
            except OSError:
                if self._read == (0, 0):
                    raise
                _LOG.exception("the new certificate in %s cannot be read: the one before goes on", self.folder)
            return self._context


class _Bounded(io.RawIOBase):
    """The start of a stream."""

    def __init__(self, raw: io.RawIOBase, left: int) -> None:
        super().__init__()
        self._raw, self._left = raw, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:  # noqa: ANN401 -- any writable bytes-like object
        received = self._raw.readinto(memoryview(buffer)[: self._left])
        self._left -= received or 0
        return received

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_SECONDS
    answering: Answering

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Bounded(self.connection.makefile("rb", buffering=0), _REQUEST_BYTES))

    def do_GET(self) -> None:
        self._answer("")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _FORM_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send a form of at most {_FORM_BYTES} bytes, with its length")
            return
        self._answer(self.rfile.read(int(length)).decode("ascii", errors="replace"))

    def _answer(self, form: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            answer = self.answering(Request(self.command, self.path.partition("?")[0], headers, form))
        except Exception:  # noqa: BLE001 -- the caller is told, and the log has it whole
            _LOG.exception("a report cannot be served")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the report cannot be served: see the operator's log")
            return
        if isinstance(answer.content, Path):
            self._send_file(answer, answer.content)
        else:
            content = answer.content.encode()
            self._send_headers(answer, {"Content-Length": str(len(content))})
            self.wfile.write(content)

    def _send_file(self, answer: Answer, file: Path) -> None:
        try:
            packed = file.open("rb")
        except OSError:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "the report is being drawn anew: ask again")
            return
        with packed:
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                size = os.fstat(packed.fileno()).st_size
                self._send_headers(answer, {"Content-Encoding": "gzip", "Content-Length": str(size)})
                shutil.copyfileobj(packed, self.wfile)
                return
            self._send_headers(answer, {})  # without a length: the connection ends with the page
            with gzip.GzipFile(fileobj=packed) as unpacked:
                shutil.copyfileobj(unpacked, self.wfile)

    def _send_headers(self, answer: Answer, more: dict[str, str]) -> None:
        self.send_response(answer.status)
        for name, value in (dict(answer.headers) | more).items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A sentence instead of the base class's page, also for what is no HTTP."""
        del explain
        content = f"{message or HTTPStatus(code).phrase}\n".encode(errors="replace")
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        self._send_headers(Answer(HTTPStatus(code), "", headers), {"Content-Length": str(len(content)), "Connection": "close"})
        self.wfile.write(content)

    def version_string(self) -> str:
        """Which versions serve is not told."""
        return "fedpipe"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 -- the base class's own
        """A request is no news; the API server's audit log has its reviews."""


class _Server(ThreadingHTTPServer):
    """Closes what is too much or takes too long."""

    daemon_threads = True
    tls: Tls | None = None

    def __init__(self, *args: Any) -> None:  # noqa: ANN401 -- the base class's own
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 -- as above
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 -- as above
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 -- as above
        """Answer one request. The handshake of TLS is done here, in the connection's own thread."""
        request.settimeout(_IDLE_SECONDS)
        secured = request if self.tls is None else self.tls.context().wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        end = threading.Timer(_CONNECTION_SECONDS, _shut, (secured,))
        end.daemon = True
        end.start()
        try:
            if self.tls is not None:
                secured.do_handshake()
            super().finish_request(secured, client_address)
        finally:
            end.cancel()
            if self.tls is not None:
                secured.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 -- as above
        """A caller that ends its connection, or speaks no TLS, is no news."""
        del request
        _LOG.debug("the connection of %s ended", client_address, exc_info=True)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        _LOG.debug("the connection has ended")


def serve(answering: Answering, port: int, tls: Tls | None = None, host: str = "0.0.0.0") -> ThreadingHTTPServer:  # noqa: S104 -- callers are other pods
    """Serve until the process ends; port 0: any that is free.

    Raises:
        OSError: the port is not free, or the certificate cannot be read.
    """
    if tls is not None:
        tls.context()
    handler = type("_HandlerOfReports", (_Handler,), {"answering": staticmethod(answering)})
    server = _Server((host, port), handler)
    server.tls = tls
    threading.Thread(target=server.serve_forever, name="reports", daemon=True).start()
    return server
