"""The endpoints of the probes, as the kubelet calls them."""

import asyncio
import socket
import time
from collections.abc import Callable

import aiohttp
import pytest
from free_ports import free_port

from fedpipe_operator.handlers import probes
from fedpipe_operator.handlers.health import Vitals, WatchAge

STARTING, STOPPED = Vitals(), Vitals(queues_ended=True, is_watching=True, is_leader=True)
READY = Vitals(watches=(WatchAge("jobs", 1.0, is_established=True),), is_watching=True, is_leader=True)


def answers(vitals: Callable[[], Vitals]) -> list[tuple[int, str]]:
    """Status and body of /healthz and of /readyz."""

    async def ask() -> list[tuple[int, str]]:
        port = free_port()
        async with probes.served(port, vitals, host="127.0.0.1"):
            return await answers_at(port)

    return asyncio.run(ask())


async def answers_at(port: int) -> list[tuple[int, str]]:
    found = []
    async with aiohttp.ClientSession() as session:
        for path in ("healthz", "readyz"):
            async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                found.append((response.status, await response.text()))
    return found


def test_while_a_problem_is_waited_for_the_pod_is_alive_and_not_ready_and_says_why() -> None:
    problems = ["no certificate"]

    async def observe() -> list[tuple[int, str]]:
        port, asks, asked_again = free_port(), iter(range(9**9)), asyncio.Event()

        def problem() -> str | None:
            if next(asks):  # it was asked once before it serves
                asked_again.set()
            return problems[0] if problems else None

        waiting = asyncio.create_task(probes.wait_while(problem, port, poll_seconds=0.01, host="127.0.0.1"))
        await asked_again.wait()
        found = await answers_at(port)
        problems.clear()
        await waiting
        return found

    assert asyncio.run(observe()) == [(200, "ok\n"), (503, "no certificate\n")]


def test_without_a_problem_nothing_is_waited_for_or_served() -> None:
    asyncio.run(probes.wait_while(lambda: None, -1, poll_seconds=0.0))


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
