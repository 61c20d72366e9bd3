"""A work queue as Kubernetes controllers have it: keys to reconcile, each when it is due, one reconcile of a key at a time.

A key that is enqueued while it is being reconciled is requeued afterwards. A reconcile that fails is retried after a back-off that
doubles with each failure in a row. Events that arrive meanwhile do not shorten it, unless they may have corrected the cause. The
queue does not know what a key stands for, only to which group it belongs: `fairness` says which key comes next.
It runs on one event loop; the reconciles themselves are in threads.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from fedpipe_operator.errors import OPERATOR_FAULT, FedPipeError, TransientError
from fedpipe_operator.fairness import DueKey, Load, Running, next_keys, next_release

Key = TypeVar("Key", bound=Hashable)

_LOG: Final = logging.getLogger(__name__)
_FIRST_BACKOFF_SECONDS: Final = 1.0
_LONGEST_BACKOFF_SECONDS: Final = 60.0
_HELD_SECONDS: Final = 5.0
"""Honest reconciles take a part of a second, those of the largest runs a few."""
SUCCESS: Final = "success"
TRANSIENT_ERROR: Final = "transient_error"
ERROR: Final = "error"
BATCH_SECONDS: Final = 0.05
"""Events come in groups (a Job, its pod): one reconcile serves all of them."""


@dataclass
class _Entry:
    due: float | None = None
    """Clock seconds of the next reconcile; None: none is wanted."""
    not_before: float = 0.0
    """Clock seconds at which the back-off ends."""
    started: float | None = None
    """Clock seconds at which its reconcile began; None: none is under way."""
    timed_from: float = 0.0
    """The same in seconds of the timer."""
    is_reset: bool = False
    """Whether the cause of a failure may have been corrected while the key was being reconciled."""
    failures: int = 0
    """In a row."""

    @property
    def in_progress(self) -> bool:
        """Whether it is being reconciled."""
        return self.started is not None

    def schedule(self, at: float) -> None:
        """Reconcile at this time or earlier, but not before the back-off ends."""
        wanted = max(at, self.not_before)
        self.due = wanted if self.due is None else min(self.due, wanted)


class QueueLoad(NamedTuple):
    """What a queue has to do now."""

    depth: int
    """Keys that are due or in progress."""
    oldest_seconds: float
    """Since the oldest of them became due, or began; 0 without any."""


def backoff_seconds(failures: int) -> float:
    """Seconds before the next attempt after this many failures in a row."""
    return min(_FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 1), _LONGEST_BACKOFF_SECONDS)


@dataclass
class WorkQueue(Generic[Key]):
    """Keys and when each is due."""

    reconcile: Callable[[Key, int], Awaitable[float | None]]
    """One reconcile of a key, given its failures in a row so far; returns when to requeue the key, None: only when an event does."""
    clock: Callable[[], float]
    """Unix seconds."""
    max_concurrent: int
    """Reconciles at once; those that a slow store holds up count for their group only."""
    group_of: Callable[[Key], Hashable] = lambda _key: None
    """Whose key it is: no group delays the others."""
    timer: Callable[[], float] = time.monotonic
    """Seconds that never jump, to measure how long a reconcile takes."""
    on_end: Callable[[Key, str, float], None] = lambda _key, _result, _seconds: None
    """Called after each reconcile: with `SUCCESS`, `TRANSIENT_ERROR` or `ERROR`, and its seconds."""
    _entries: dict[Key, _Entry] = field(default_factory=dict)
    _last_turns: dict[Hashable, float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def enqueue(self, key: Key, *, after: float = BATCH_SECONDS, reset_backoff: bool = False) -> None:
        """Reconcile this key within so many seconds, or when its back-off ends. Call it from the event loop's thread.

        Args:
            key: the key.
            after: seconds.
            reset_backoff: end the back-off, because the cause of the failures may have been corrected.
        """
        entry = self._entries.setdefault(key, _Entry())
        if reset_backoff:
            entry.not_before, entry.is_reset = 0.0, entry.in_progress
        entry.schedule(self.clock() + after)
        self._changed.set()

    def remove(self, key: Key) -> None:
        """Drop the key: its object is gone."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.due = None
            if not entry.in_progress:
                del self._entries[key]

    def in_progress(self) -> dict[Key, float]:
        """The keys that are being reconciled, with the seconds since each reconcile began."""
        now = self.timer()
        return {key: now - entry.timed_from for key, entry in self._entries.items() if entry.in_progress}

    def load(self, now: float) -> QueueLoad:
        """How many keys are due or in progress, and since when. From any thread."""
        # One call of C makes the list, so that no other thread changes the dict meanwhile.
        entries = list(self._entries.values())
        since = [one.started if one.started is not None else one.due for one in entries]
        late = [now - at for at in since if at is not None and at <= now]
        return QueueLoad(len(late), max(late, default=0.0))

    async def run(self) -> None:
        """Reconcile keys as they fall due, until cancelled."""
        async with asyncio.TaskGroup() as reconciles:
            while True:
                self._changed.clear()
                now = self.clock()
                for key in self._ready(now):
                    entry = self._entries[key]
                    entry.started, entry.timed_from, entry.is_reset, entry.due = now, self.timer(), False, None
                    reconciles.create_task(self._reconcile(key))
                await self._wait_for_change_or_due(now)

    def _ready(self, now: float) -> list[Key]:
        """The keys that are reconciled now."""
        groups = frozenset(map(self.group_of, self._entries))
        self._last_turns = {group: turn for group, turn in self._last_turns.items() if group in groups}
        due = [DueKey(at, key, self.group_of(key)) for key, at in self._idle().items() if at <= now]
        chosen = next_keys(
            due, Load(self._running(), groups, self._last_turns), limit=self.max_concurrent, held_seconds=_HELD_SECONDS, now=now
        )
        self._last_turns |= dict.fromkeys((one.group for one in chosen), now)
        return [one.key for one in chosen]

    async def _wait_for_change_or_due(self, now: float) -> None:
        idle = self._idle().values()
        times = [due for due in idle if due > now]
        release = next_release(self._running(), held_seconds=_HELD_SECONDS, now=now)
        if release is not None and len(times) < len(idle):  # keys are due that found nothing free
            times.append(release)
        timeout = min(times) - now if times else None
        try:
            async with asyncio.timeout(timeout):  # wait_for of Python 3.11 would drop a cancellation that comes with a change
                await self._changed.wait()
        except TimeoutError:
            return

    def _idle(self) -> dict[Key, float]:
        """Keys that are not in progress, with their times."""
        return {key: entry.due for key, entry in self._entries.items() if entry.due is not None and not entry.in_progress}

    def _running(self) -> list[Running]:
        return [Running(self.group_of(key), entry.started) for key, entry in self._entries.items() if entry.started is not None]

    async def _reconcile(self, key: Key) -> None:
        entry, result = self._entries[key], ERROR
        try:
            requeue_at = await self.reconcile(key, entry.failures)
        except FedPipeError as error:
            result = _result_of(error)
            level = logging.INFO if isinstance(error, TransientError) else logging.WARNING
            _LOG.log(level, "%s: %s; retry in %.0f s", key, error, self._back_off(entry))
        except Exception:  # noqa: BLE001 -- one run's fault must not end the others' reconciles; it is logged whole, counted, and retried
            _LOG.exception("%s: internal error of the operator; retry in %.0f s", key, self._back_off(entry))
        else:
            result = SUCCESS
            entry.failures, entry.not_before = 0, 0.0
            if requeue_at is not None:
                entry.schedule(requeue_at)
        if entry.started is not None:
            self.on_end(key, result, self.timer() - entry.timed_from)
        entry.started = None
        if entry.due is None:
            del self._entries[key]
        self._changed.set()

    def _back_off(self, entry: _Entry) -> float:
        """Requeue the key after its back-off, whatever events asked for meanwhile, unless one reset it; the seconds until then."""
        entry.failures += 1
        now = self.clock()
        if not entry.is_reset or entry.due is None:
            entry.due = entry.not_before = now + backoff_seconds(entry.failures)
        return max(0.0, entry.due - now)


def _result_of(error: FedPipeError) -> str:
    """Whether a retry alone may help. A run's reconcile has everything retried: then the cause of its error says it."""
    cause = error.__cause__ if isinstance(error.__cause__, FedPipeError) else error
    return TRANSIENT_ERROR if isinstance(cause, TransientError) and cause.reason != OPERATOR_FAULT else ERROR
