"""A proxy that cuts every connection whenever so many more bytes have passed, as a bad line does, and counts them."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_CHUNK = 1 << 14


class CuttingProxy:
    """Forwards to one server."""

    def __init__(self, endpoint: str, every: int) -> None:
        parts = urlsplit(endpoint)
        assert parts.hostname
        assert parts.port
        self._server, self.every = (parts.hostname, parts.port), every
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.up = self.down = self.cuts = 0
        """Bytes to the server and from it, and how often all connections were cut."""

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept connections until it is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                with self._lock:
                    self._open |= {client, server}
                for source, sink, is_up in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._forward, args=(source, sink, is_up), daemon=True).start()

    def close(self) -> None:
        """Accept no more, and cut what is open."""
        self._listener.close()
        self._cut()

    def _forward(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if self._count(len(data), is_up):
                    self._cut()
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _count(self, size: int, is_up: bool) -> bool:
        """Whether the line is cut now."""
        with self._lock:
            before = self.up + self.down
            self.up, self.down = self.up + size * is_up, self.down + size * (not is_up)
            return before // self.every != (before + size) // self.every

    def _cut(self) -> None:
        with self._lock:
            self.cuts += 1
            cut, self._open = self._open, set()
        for one in cut:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def cutting_proxy(endpoint: str, *, every: int) -> Iterator[CuttingProxy]:
    """A proxy in front of this server that cuts all connections after `every` bytes, again and again."""
    proxy = CuttingProxy(endpoint, every)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    yield proxy
    proxy.close()
