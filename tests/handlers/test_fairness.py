"""No namespace delays another: which work comes next, and an hour of a work queue in virtual time."""

import asyncio
import selectors
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator.errors import TransientError
from fedpipe_operator.fairness import DueKey, Load, Running, next_keys, next_release
from fedpipe_operator.handlers.workqueue import WorkQueue

NOW = 100.0


Due = list[tuple[str, float]]


def chosen(
    due: Due, running: list[Running] | None = None, *, idle: str = "", turns: dict[Hashable, float] | None = None, limit: int = 8
) -> list[str]:
    """The groups of the chosen keys, in order; `idle` are groups whose keys are not due."""
    keys = [DueKey(at, number, group) for number, (group, at) in enumerate(due)]
    groups: frozenset[Hashable] = frozenset({*idle, *(group for group, _ in due), *(one.group for one in running or ())})
    load = Load(running or [], groups, turns or {})
    return [str(one.group) for one in next_keys(keys, load, limit=limit, held_seconds=5.0, now=NOW)]


def test_a_group_that_is_alone_has_all_places() -> None:
    assert chosen([("a", 0.0)] * 10) == ["a"] * 8


def test_a_group_that_is_not_alone_has_half_of_the_places_even_while_the_others_have_nothing_to_do() -> None:
    assert chosen([("a", 0.0)] * 10, idle="b") == ["a"] * 4


def test_groups_take_turns_however_many_keys_each_has() -> None:
    assert chosen([("a", 0.0)] * 10 + [("b", 1.0)] * 2) == ["a", "b", "a", "b", "a", "a"]


def test_of_groups_with_as_much_under_way_the_one_that_waited_longest_comes_first() -> None:
    assert chosen([("a", 0.0), ("b", 1.0)], turns={"a": 90.0, "b": 80.0}, limit=1) == ["b"]
    assert chosen([("a", 0.0), ("b", 1.0)], turns={"a": 90.0}, limit=1) == ["b"]
    assert chosen([("a", 0.0), ("b", 1.0)], limit=1) == ["a"]


def test_what_is_blocked_counts_for_its_own_group_only() -> None:
    held = [Running("a", NOW - 6.0)] * 4 + [Running("b", NOW - 6.0)] * 4

    assert chosen([("a", 0.0), ("b", 0.0), ("c", 1.0)], held) == ["c"]
    assert chosen([("c", 1.0)], [one._replace(started=NOW - 4.0) for one in held]) == []


def test_a_queue_with_one_place_still_has_it_for_every_group() -> None:
    assert chosen([("a", 0.0), ("b", 1.0)], limit=1) == ["a"]


def test_the_next_place_is_free_when_what_is_under_way_counts_as_held_up() -> None:
    running = [Running("a", 90.0), Running("a", 97.0), Running("b", 98.0)]

    assert next_release(running, held_seconds=5.0, now=NOW) == 102.0
    assert next_release(running[:1], held_seconds=5.0, now=NOW) is None


GROUPS = st.sampled_from("abcd")


@given(
    st.lists(st.tuples(GROUPS, st.floats(0, NOW)), max_size=30),
    st.lists(st.builds(Running, GROUPS, st.floats(0, NOW)), max_size=20),
    st.integers(1, 12),
)
def test_a_due_group_without_a_place_gets_one_whenever_one_is_free(due: Due, running: list[Running], limit: int) -> None:
    found = chosen(due, running, limit=limit)
    fresh = sum(NOW - one.started < 5.0 for one in running)
    empty = {group for group, _ in due} - {one.group for one in running}

    assert len(found) <= max(0, limit - fresh)
    assert len(empty & set(found)) == min(len(empty), max(0, limit - fresh))


class _Skipping(selectors.SelectSelector):
    """Time passes at once: what a loop would wait for is over."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everything waits for ever"
            self.now += max(timeout, 1e-7)  # some time always passes, as in a real loop
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which an hour takes no time, and nothing else than its timers makes time pass."""

    def __init__(self) -> None:
        self.selector = _Skipping()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


@dataclass
class Namespaces:
    """Reconciles of honest runs, which take 50 ms, and of runs whose stores answer one byte a second."""

    latencies: list[float] = field(default_factory=list)
    """Seconds from the time at which an honest run was due to the begin of its reconcile."""
    due: dict[str, float] = field(default_factory=dict)

    async def __call__(self, key: str, _failures: int) -> float:
        now = asyncio.get_running_loop().time()
        if key.startswith("tarpit"):
            await asyncio.sleep(30.0)  # the deadline of a call
            raise TransientError("StoreTooSlow", "one byte a second")
        self.latencies.append(now - self.due.get(key, now))
        await asyncio.sleep(0.05)
        self.due[key] = now + 3.0
        return self.due[key]


def latencies(honest: int, tarpits: list[str], *, hours: float = 1.0, is_fair: bool = True) -> list[float]:
    """Of the honest runs (of the namespace `wards`), beside these tarpits, ascending."""
    namespaces = Namespaces()

    async def play() -> None:
        group_of = (lambda key: key.rpartition("/")[0]) if is_fair else (lambda _: None)
        queue = WorkQueue(namespaces, asyncio.get_running_loop().time, 8, group_of)
        for key in [*tarpits, *(f"wards/{number}" for number in range(honest))]:
            queue.enqueue(key, after=0.0)
        running = asyncio.create_task(queue.run())
        await asyncio.sleep(hours * 3600.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play())
    return sorted(namespaces.latencies)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL"):
        yield


EIGHT = [f"tarpit/{number}" for number in range(8)]


def test_eight_slow_store_endpoints_of_one_namespace_do_not_stop_the_others() -> None:
    alone, beside = latencies(3, []), latencies(3, EIGHT)

    assert len(beside) == len(alone) > 3000
    assert beside == pytest.approx(alone, abs=1e-3)


def test_without_turns_of_namespaces_they_would() -> None:
    beside = latencies(3, EIGHT, is_fair=False)

    assert beside[len(beside) * 99 // 100] > 1.0


def test_many_namespaces_of_slow_endpoints_delay_an_honest_run_by_some_seconds_and_never_stop_it() -> None:
    beside = latencies(3, [f"tarpit-{namespace}/{number}" for namespace in range(8) for number in range(8)])

    assert len(beside) > 2500
    assert beside[-1] <= 10.5
    assert beside[len(beside) // 2] < 0.1
