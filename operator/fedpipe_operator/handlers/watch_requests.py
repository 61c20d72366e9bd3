"""When kopf last requested each watch: it renews them by itself, and only its HTTP requests tell that it still does.

kopf passes no event to a handler while nothing changes, so the age of the last event says nothing on a quiet cluster.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Final

import aiohttp

from fedpipe_operator.cluster.api import JOBS, NODES, RUNS, SITES, Kind
from fedpipe_operator.handlers.health import WatchAge

_OK: Final = 200


@dataclass
class WatchRequests:
    """The watches that there must be, by the path of their requests. For the event loop's thread."""

    paths: Sequence[str]
    clock: Callable[[], float] = time.monotonic
    established: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once every watch was granted, and so every object was listed."""
    _requested: dict[str, float] = field(default_factory=dict)
    _granted: set[str] = field(default_factory=set)

    def requested(self, path: str) -> None:
        """The objects of this path are requested: their list, or their watch."""
        if (found := self._watch_of(path)) is not None:
            self._requested[found] = self.clock()

    def granted(self, path: str) -> None:
        """The API server grants the watch of this path."""
        if (found := self._watch_of(path)) is not None:
            self._granted.add(found)
            if len(self._granted) == len(self.paths):
                self.established.set()

    def ages(self) -> list[WatchAge]:
        """Each watch, and how long ago it was requested."""
        now = self.clock()
        requested = {path: now - at for path, at in self._requested.items()}
        return [WatchAge(path, requested.get(path), path in self._granted) for path in self.paths]

    def trace(self) -> aiohttp.TraceConfig:
        """What has a session of aiohttp report its requests here."""
        trace = aiohttp.TraceConfig()

        async def started(_session: object, _context: SimpleNamespace, sent: aiohttp.TraceRequestStartParams) -> None:
            self.requested(sent.url.path)

        async def ended(_session: object, _context: SimpleNamespace, received: aiohttp.TraceRequestEndParams) -> None:
            if received.url.query.get("watch") == "true" and received.response.status == _OK:
                self.granted(received.url.path)

        trace.on_request_start.append(started)
        trace.on_request_end.append(ended)
        return trace

    def _watch_of(self, path: str) -> str | None:
        """The watch with this path; None for any other request. An API server may be served below a path of its own."""
        return next((known for known in self.paths if path.endswith(known)), None)


def watched_paths(namespaces: Sequence[str], *, with_nodes: bool) -> list[str]:
    """The paths of all watches; no namespaces: those of the whole cluster."""
    kinds: tuple[Kind, ...] = (RUNS, SITES, JOBS)
    found = [kind.path(namespace) for namespace in namespaces or ("",) for kind in kinds]
    return [*found, NODES.path("")] if with_nodes else found
