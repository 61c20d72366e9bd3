"""Keys are reconciled when they are due, one reconcile of a key at a time, and again after a back-off if one fails."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.handlers.workqueue import WorkQueue, backoff_seconds


@dataclass
class Reconciles:
    """Records every reconcile. A key with a gate is reconciled until its gate opens, and each returns or raises what was prepared."""

    made: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    results: dict[str, list[float | Exception | None]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, key: str, failures: int) -> float | None:
        self.made.append(key)
        self.failures.append(failures)
        self.changed.set()
        if key in self.gates:
            await self.gates[key].wait()
        result = self.results.get(key, [None]).pop(0) if self.results.get(key) else None
        if isinstance(result, Exception):
            raise result
        return result

    async def until(self, count: int) -> None:
        """Until so many reconciles have begun."""
        while len(self.made) < count:
            self.changed.clear()
            await self.changed.wait()


def in_a_loop(scenario: Callable[[Reconciles, WorkQueue[str]], Awaitable[None]], *, max_concurrent: int = 4) -> Reconciles:
    async def play() -> Reconciles:
        reconciles = Reconciles()
        queue = WorkQueue(reconciles, clock=asyncio.get_running_loop().time, max_concurrent=max_concurrent)
        running = asyncio.create_task(queue.run())
        async with asyncio.timeout(20):
            await scenario(reconciles, queue)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return reconciles

    return asyncio.run(play())


def test_a_key_that_is_enqueued_often_is_reconciled_once() -> None:
    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        for _ in range(10):
            queue.enqueue("a")
        await reconciles.until(1)
        queue.enqueue("b")
        await reconciles.until(2)

    assert in_a_loop(scenario).made == ["a", "b"]


def test_a_key_that_is_enqueued_during_its_reconcile_is_reconciled_again_after_it_and_never_beside_it() -> None:
    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        reconciles.gates["a"] = asyncio.Event()
        queue.enqueue("a", after=0)
        await reconciles.until(1)
        queue.enqueue("a", after=0)
        queue.enqueue("b", after=0)
        await reconciles.until(2)
        assert reconciles.made == ["a", "b"]
        reconciles.gates["a"].set()
        await reconciles.until(3)

    assert in_a_loop(scenario).made == ["a", "b", "a"]


def test_no_more_keys_are_reconciled_at_once_than_allowed_and_the_oldest_comes_first() -> None:
    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        reconciles.gates["a"] = asyncio.Event()
        queue.enqueue("a", after=0)
        await reconciles.until(1)
        queue.enqueue("late", after=0.02)
        queue.enqueue("early", after=0.01)
        await asyncio.sleep(0.05)
        assert reconciles.made == ["a"]
        reconciles.gates["a"].set()
        await reconciles.until(3)

    assert in_a_loop(scenario, max_concurrent=1).made == ["a", "early", "late"]


def test_a_reconcile_says_when_its_key_is_requeued() -> None:
    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        reconciles.results["a"] = [asyncio.get_running_loop().time() + 0.01]
        queue.enqueue("a", after=0)
        await reconciles.until(2)

    assert in_a_loop(scenario).made == ["a", "a"]


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_operator.handlers.workqueue._FIRST_BACKOFF_SECONDS", 0.01)


FAILURES = [TransientError("StoreUnavailable", "503"), UserError("SecretMissing", "create it"), KeyError("a fault of the operator")]


@pytest.mark.usefixtures("short_backoff")
@pytest.mark.parametrize("error", FAILURES)
def test_a_reconcile_that_fails_is_retried_and_delays_no_other(error: Exception) -> None:
    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        reconciles.results["a"] = [error]
        queue.enqueue("a", after=0)
        queue.enqueue("b", after=0)
        await reconciles.until(3)

    assert in_a_loop(scenario).made == ["a", "b", "a"]


@pytest.mark.usefixtures("short_backoff")
def test_a_reconcile_gets_how_often_its_key_failed_in_a_row() -> None:
    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        reconciles.results["a"] = [FAILURES[0], FAILURES[1], asyncio.get_running_loop().time()]
        queue.enqueue("a", after=0)
        await reconciles.until(4)

    assert in_a_loop(scenario).failures == [0, 1, 2, 0]


def after_a_failure(event: Callable[[WorkQueue[str]], None], *, during: bool) -> float:
    """Seconds from a failure to the next reconcile that the queue schedules, with an event during the reconcile or after it."""
    due: list[float] = []

    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        reconciles.results["a"] = [FAILURES[0]]
        reconciles.gates["a"] = asyncio.Event()
        queue.enqueue("a", after=0)
        await reconciles.until(1)
        if during:
            event(queue)
        reconciles.gates["a"].set()
        while queue._entries["a"].in_progress:  # noqa: ASYNC110 -- only a test waits for that
            await asyncio.sleep(0)
        if not during:
            event(queue)
        due.append((queue._entries["a"].due or 0.0) - asyncio.get_running_loop().time())

    in_a_loop(scenario)
    return due[0]


@pytest.mark.parametrize("during", [True, False])
def test_an_event_does_not_shorten_the_backoff(during: bool) -> None:
    assert after_a_failure(lambda queue: queue.enqueue("a", after=0), during=during) > 0.5


@pytest.mark.parametrize("during", [True, False])
def test_a_change_that_may_have_corrected_the_cause_ends_the_backoff(during: bool) -> None:
    assert after_a_failure(lambda queue: queue.enqueue("a", after=0, reset_backoff=True), during=during) <= 0


def test_a_key_that_is_removed_is_not_reconciled_any_more() -> None:
    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        queue.enqueue("a", after=0.01)
        queue.remove("a")
        queue.enqueue("b", after=0.02)
        await reconciles.until(1)

    assert in_a_loop(scenario).made == ["b"]


def test_the_backoff_doubles_up_to_a_minute() -> None:
    assert [backoff_seconds(failures) for failures in (1, 2, 3, 7, 50)] == [1.0, 2.0, 4.0, 60.0, 60.0]


def test_a_reconcile_takes_the_seconds_of_a_timer_that_never_jumps() -> None:
    took: list[float] = []

    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        times = iter((10.0, 12.5))
        queue.timer, queue.on_end = lambda: next(times), lambda _key, _result, seconds: took.append(seconds)
        reconciles.results = {"one": [None]}
        queue.enqueue("one", after=0.0)
        await reconciles.until(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    in_a_loop(scenario)

    assert took == [2.5]


def test_the_end_of_each_reconcile_is_told_with_its_result() -> None:
    ends: list[tuple[str, str]] = []

    def internal() -> TransientError:
        error = TransientError("OperatorFault", "what nobody foresaw")
        error.__cause__ = KeyError("x")
        return error

    def caused_by(cause: Exception) -> TransientError:
        error = TransientError("Reported", "as a reconcile of a run reports it")
        error.__cause__ = cause
        return error

    async def scenario(reconciles: Reconciles, queue: WorkQueue[str]) -> None:
        queue.on_end = lambda key, result, seconds: ends.append((key, result) if seconds >= 0 else ("", ""))
        reconciles.results = {
            "fine": [None],
            "busy": [TransientError("Unreachable", "away")],
            "lost": [caused_by(ConnectionError("closed"))],
            "full": [caused_by(UserError("StoreFull", "no space"))],
            "slow": [caused_by(TransientError("StoreTooSlow", "slow"))],
            "denied": [UserError("ApiForbidden", "no")],
            "fault": [internal()],
            "crash": [ValueError("x")],
        }
        for key in reconciles.results:
            queue.enqueue(key, after=0.0)
        await reconciles.until(8)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    in_a_loop(scenario, max_concurrent=8)

    transient = dict.fromkeys(("busy", "lost", "slow"), "transient_error")
    assert dict(ends) == {"fine": "success"} | transient | dict.fromkeys(("full", "denied", "fault", "crash"), "error")


def test_the_load_is_what_is_due_or_in_progress_and_the_age_of_the_oldest() -> None:
    queue = WorkQueue(Reconciles(), clock=lambda: 100.0, max_concurrent=1)
    queue.enqueue("due", after=0.0)
    queue.enqueue("later", after=60.0)

    assert WorkQueue(Reconciles(), clock=lambda: 0.0, max_concurrent=1).load(5.0) == (0, 0.0)
    assert queue.load(103.0) == (1, 3.0)
    assert queue.load(170.0) == (2, 70.0)

    queue._entries["due"].started, queue._entries["due"].due = 130.0, None
    assert queue.load(150.0) == (1, 20.0), "later is not due yet"
