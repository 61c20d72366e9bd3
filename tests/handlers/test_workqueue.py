"""Keys are turned when they are due, one turn of a key at a time, and again after weather."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from fedpipe_operator.errors import TransientError
from fedpipe_operator.handlers.workqueue import WorkQueue, backoff_seconds


@dataclass
class Turns:
    """Notes every turn; a key's turn ends when it is let go, and gives what was prepared for it."""

    made: list[str] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    results: dict[str, list[float | Exception | None]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, key: str) -> float | None:
        self.made.append(key)
        self.changed.set()
        if key in self.gates:
            await self.gates[key].wait()
        result = self.results.get(key, [None]).pop(0) if self.results.get(key) else None
        if isinstance(result, Exception):
            raise result
        return result

    async def until(self, count: int) -> None:
        """Until so many turns have begun."""
        while len(self.made) < count:
            self.changed.clear()
            await self.changed.wait()


def in_a_loop(scenario: Callable[[Turns, WorkQueue[str]], Awaitable[None]], *, max_concurrent: int = 4) -> Turns:
    async def play() -> Turns:
        turns = Turns()
        queue = WorkQueue(turns, clock=asyncio.get_running_loop().time, max_concurrent=max_concurrent)
        running = asyncio.create_task(queue.run())
        async with asyncio.timeout(20):
            await scenario(turns, queue)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return turns

    return asyncio.run(play())


def test_a_key_that_is_woken_often_is_turned_once() -> None:
    async def scenario(turns: Turns, queue: WorkQueue[str]) -> None:
        for _ in range(10):
            queue.wake("a")
        await turns.until(1)
        queue.wake("b")
        await turns.until(2)

    assert in_a_loop(scenario).made == ["a", "b"]


def test_a_key_that_is_woken_during_its_turn_comes_again_after_it_and_never_beside_it() -> None:
    async def scenario(turns: Turns, queue: WorkQueue[str]) -> None:
        turns.gates["a"] = asyncio.Event()
        queue.wake("a", after=0)
        await turns.until(1)
        queue.wake("a", after=0)
        queue.wake("b", after=0)
        await turns.until(2)
        assert turns.made == ["a", "b"]
        turns.gates["a"].set()
        await turns.until(3)

    assert in_a_loop(scenario).made == ["a", "b", "a"]


def test_no_more_keys_are_turned_side_by_side_than_allowed_and_the_longest_waiting_comes_first() -> None:
    async def scenario(turns: Turns, queue: WorkQueue[str]) -> None:
        turns.gates["a"] = asyncio.Event()
        queue.wake("a", after=0)
        await turns.until(1)
        queue.wake("late", after=0.02)
        queue.wake("early", after=0.01)
        await asyncio.sleep(0.05)
        assert turns.made == ["a"]
        turns.gates["a"].set()
        await turns.until(3)

    assert in_a_loop(scenario, max_concurrent=1).made == ["a", "early", "late"]


def test_a_turn_says_when_to_look_again() -> None:
    async def scenario(turns: Turns, queue: WorkQueue[str]) -> None:
        turns.results["a"] = [asyncio.get_running_loop().time() + 0.01]
        queue.wake("a", after=0)
        await turns.until(2)

    assert in_a_loop(scenario).made == ["a", "a"]


@pytest.mark.parametrize("error", [TransientError("StoreUnavailable", "503"), KeyError("a fault of ours")])
def test_a_turn_that_fails_is_made_again_and_holds_up_no_other(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_operator.handlers.workqueue._FIRST_PAUSE_SECONDS", 0.01)

    async def scenario(turns: Turns, queue: WorkQueue[str]) -> None:
        turns.results["a"] = [error]
        queue.wake("a", after=0)
        queue.wake("b", after=0)
        await turns.until(3)

    assert in_a_loop(scenario).made == ["a", "b", "a"]


def test_a_key_that_is_forgotten_is_not_turned_any_more() -> None:
    async def scenario(turns: Turns, queue: WorkQueue[str]) -> None:
        queue.wake("a", after=0.01)
        queue.forget("a")
        queue.wake("b", after=0.02)
        await turns.until(1)

    assert in_a_loop(scenario).made == ["b"]


def test_pauses_double_up_to_a_minute() -> None:
    assert [backoff_seconds(failures) for failures in (1, 2, 3, 7, 50)] == [1.0, 2.0, 4.0, 60.0, 60.0]
