"""Servers that say to a store's client whatever a test wants: byte by byte, without end, or nothing."""

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from fedpipe_operator.store import Credentials, Guard, S3Store
from fedpipe_operator.store.s3 import Limits

SHORT = Limits(seconds=0.3, listing_seconds=0.3, object_bytes=2**16, keys=50, pages=5)
Talk = Callable[["Talking", socket.socket], None]


@dataclass
class Talking:
    """A server that says to every connection whatever a test wants, and counts the connections."""

    talk: Talk
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    connections: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        found: int = self.listener.getsockname()[1]
        return found

    def store(self, host: str = "127.0.0.1", guard: Guard | None = None, limits: Limits = SHORT) -> S3Store:
        endpoint = f"http://{host}:{self.port}"
        return S3Store("fedpipe", "runs", credentials=Credentials("a", "b"), endpoint=endpoint, guard=guard, limits=limits)

    def drip(self, connection: socket.socket, data: bytes = b"x", seconds: float = 0.02) -> None:
        """Send this again and again, never in a burst, until the client has gone."""
        while not self.stopped.wait(seconds):
            connection.sendall(data)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with closing(connection):
            try:
                connection.recv(65536)
                self.talk(self, connection)
            except OSError:
                return  # the client has gone, as it should
