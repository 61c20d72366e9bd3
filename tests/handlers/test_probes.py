"""The endpoints of the probes, as the kubelet calls them."""

import asyncio
import socket
import time
from collections.abc import Callable

import aiohttp
import pytest
from s3_servers import free_port

from fedpipe_operator.handlers import probes
from fedpipe_operator.handlers.health import Vitals, WatchAge

STARTING, STOPPED = Vitals(), Vitals(queues_ended=True, is_watching=True, is_leader=True)
READY = Vitals(watches=(WatchAge("jobs", 1.0, is_established=True),), is_watching=True, is_leader=True)


def answers(vitals: Callable[[], Vitals]) -> list[tuple[int, str]]:
    """Status and body of /healthz and of /readyz."""

    async def ask() -> list[tuple[int, str]]:
        port = free_port()
        async with probes.served(port, vitals, host="127.0.0.1"), aiohttp.ClientSession() as session:
            found = []
            for path in ("healthz", "readyz"):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                    found.append((response.status, await response.text()))
            return found

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("vitals", "expected"),
    [
        (READY, [(200, "ok\n"), (200, "ok\n")]),
        (STARTING, [(200, "ok\n"), (503, "the API server has not answered yet\n")]),
        (
            STOPPED,
            [
                (503, "the work queues have ended\n"),
                (503, "the work queues have ended\n"),
            ],
        ),
    ],
    ids=["ready", "starting", "stopped"],
)
def test_an_endpoint_says_what_is_wrong(vitals: Vitals, expected: list[tuple[int, str]]) -> None:
    assert answers(lambda: vitals) == expected


def test_a_blocked_event_loop_does_not_answer() -> None:
    async def ask() -> None:
        port = free_port()
        async with probes.served(port, lambda: READY, host="127.0.0.1"):
            asking = asyncio.create_task(asyncio.to_thread(_get, port, 0.2))
            await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251 -- the fault that the probe finds
            with pytest.raises(TimeoutError):
                await asking

    asyncio.run(ask())


def _get(port: int, seconds: float) -> bytes:
    """As the kubelet does, from another process: here, from another thread."""

    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: pod\r\n\r\n")
        return connection.recv(100)
