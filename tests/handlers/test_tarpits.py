"""How soon honest runs are reconciled beside store endpoints that answer one byte a second: the real work queue, threads, store client and
sockets. The same in virtual time, for an hour: `test_fairness.py`."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from talking_servers import Talking

from fedpipe_operator.errors import TransientError
from fedpipe_operator.handlers.workqueue import WorkQueue
from fedpipe_operator.store import S3Store
from fedpipe_operator.store.s3 import Limits

PLACES: Final = 8
"""Reconciles at once, as the chart has it."""
TARPITS: Final = [f"tarpits/{number}" for number in range(PLACES)]
HONEST: Final = [f"wards/{number}" for number in range(3)]
PAUSE: Final = 0.02
"""Seconds between two reconciles of an honest run."""
EMPTY: Final = b"<ListBucketResult></ListBucketResult>"
LISTING: Final = f"HTTP/1.1 200 OK\r\nContent-Length: {len(EMPTY)}\r\nConnection: close\r\n\r\n".encode() + EMPTY


@dataclass
class Reactions:
    """Reconciles of honest runs and of those with tarpits, each of which lists its store in a thread."""

    stores: dict[str, S3Store]
    pool: ThreadPoolExecutor
    wanted: int
    """Of honest reconciles."""
    seconds: list[float] = field(default_factory=list)
    """From the time at which an honest run was due to the end of its reconcile."""
    due: dict[str, float] = field(default_factory=dict)
    is_done: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, key: str, _failures: int) -> float:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self.pool, self.stores[key].list)
        except TransientError:
            return loop.time()  # at once again, without the back-off that would leave the places to others
        self.seconds.append(loop.time() - self.due.get(key, loop.time()))
        if len(self.seconds) >= self.wanted:
            self.is_done.set()
        self.due[key] = loop.time() + PAUSE
        return self.due[key]


@contextmanager
def servers(count: int, talk: Callable[[Talking, socket.socket], None]) -> Iterator[list[Talking]]:
    """So many servers of this talk."""
    started = [Talking(talk) for _ in range(count)]
    try:
        yield started
    finally:
        for server in started:
            server.stopped.set()
            server.listener.close()


def drips(server: Talking, connection: socket.socket) -> None:
    """One byte a second."""
    server.drip(connection, seconds=1.0)


def answers(_: Talking, connection: socket.socket) -> None:
    """At once."""
    connection.sendall(LISTING)


def p99(tarpits: int, *, deadline: float, wanted: int, is_fair: bool = True) -> float:
    """The 99th percentile of the honest runs' reactions, in seconds, beside so many tarpits with this deadline of a call."""
    group_of = (lambda key: key.partition("/")[0]) if is_fair else (lambda _: None)

    async def measure(reconcile: Reactions) -> list[float]:
        queue = WorkQueue(reconcile, asyncio.get_running_loop().time, PLACES, group_of)
        running = asyncio.create_task(queue.run())
        for key in [*TARPITS[:tarpits], *HONEST]:
            reconcile.due[key] = asyncio.get_running_loop().time()
            queue.enqueue(key, after=0.0)
        await reconcile.is_done.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return sorted(reconcile.seconds)

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2 * PLACES))
        (honest,) = stack.enter_context(servers(1, answers))
        slow = stack.enter_context(servers(tarpits, drips))
        limits = Limits(seconds=deadline, listing_seconds=deadline)
        stores = dict.fromkeys(HONEST, honest.store(limits=Limits()))
        stores |= {key: server.store(limits=limits) for key, server in zip(TARPITS, slow, strict=False)}
        found = asyncio.run(measure(Reactions(stores, pool, wanted)))
    return found[len(found) * 99 // 100]


def test_the_p99_of_honest_runs_is_unchanged_beside_eight_endpoints_of_one_byte_a_second() -> None:
    """A quarter of a tarpit's deadline is what a machine with other work may add; a run that waits for a tarpit waits for all of it."""
    deadline, wanted = 8.0, 200
    alone = p99(0, deadline=deadline, wanted=wanted)

    beside = p99(PLACES, deadline=deadline, wanted=wanted)

    assert beside < alone + deadline / 4


def test_without_turns_of_namespaces_it_would_be_a_tarpits_deadline() -> None:
    assert p99(PLACES, deadline=2.0, wanted=30, is_fair=False) > 1.0
