"""A work queue as Kubernetes controllers have it: keys to reconcile, each when it is due, one reconcile of a key at a time.

A key that is enqueued while it is being reconciled is requeued afterwards. A reconcile that fails is retried after a back-off that
doubles with each failure in a row. Events that arrive meanwhile do not shorten it, unless they may have corrected the cause. The
queue does not know what a key stands for.
It runs on one event loop; the reconciles themselves are in threads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fedpipe_operator.errors import FedPipeError, TransientError

Key = TypeVar("Key", bound=Hashable)

_LOG: Final = logging.getLogger(__name__)
_FIRST_BACKOFF_SECONDS: Final = 1.0
_LONGEST_BACKOFF_SECONDS: Final = 60.0
BATCH_SECONDS: Final = 0.05
"""Events come in groups (a Job, its pod): one reconcile serves all of them."""


@dataclass
class _Entry:
    due: float | None = None
    """Clock seconds of the next reconcile; None: none is wanted."""
    not_before: float = 0.0
    """Clock seconds at which the back-off ends."""
    in_progress: bool = False
    is_reset: bool = False
    """Whether the cause of a failure may have been corrected while the key was being reconciled."""
    failures: int = 0
    """In a row."""

    def schedule(self, at: float) -> None:
        """Reconcile at this time or earlier, but not before the back-off ends."""
        wanted = max(at, self.not_before)
        self.due = wanted if self.due is None else min(self.due, wanted)


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
    _entries: dict[Key, _Entry] = field(default_factory=dict)
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

    async def run(self) -> None:
        """Reconcile keys as they fall due, until cancelled."""
        async with asyncio.TaskGroup() as reconciles:
            while True:
                self._changed.clear()
                now = self.clock()
                for key in self._ready(now):
                    entry = self._entries[key]
                    entry.in_progress, entry.is_reset, entry.due = True, False, None
                    reconciles.create_task(self._reconcile(key))
                await self._wait_for_change_or_due(now)

    def _ready(self, now: float) -> list[Key]:
        """Due keys that are not in progress, oldest first, up to the limit."""
        free = self.max_concurrent - sum(entry.in_progress for entry in self._entries.values())
        idle = [(entry.due, key) for key, entry in self._entries.items() if entry.due is not None and not entry.in_progress]
        return [key for due, key in sorted(idle, key=lambda pair: pair[0])[:free] if due <= now]

    async def _wait_for_change_or_due(self, now: float) -> None:
        has_capacity = self.max_concurrent > sum(entry.in_progress for entry in self._entries.values())
        times = [entry.due for entry in self._entries.values() if entry.due is not None and not entry.in_progress]
        timeout = max(0.0, min(times) - now) if times and has_capacity else None
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return

    async def _reconcile(self, key: Key) -> None:
        entry = self._entries[key]
        try:
            requeue_at = await self.reconcile(key, entry.failures)
        except FedPipeError as error:
            level = logging.INFO if isinstance(error, TransientError) else logging.WARNING
            _LOG.log(level, "%s: %s; retry in %.0f s", key, error, self._back_off(entry))
        except Exception:  # noqa: BLE001 -- one run's fault must not end the others' reconciles; it is logged whole, counted, and retried
            _LOG.exception("%s: internal error of the operator; retry in %.0f s", key, self._back_off(entry))
        else:
            entry.failures, entry.not_before = 0, 0.0
            if requeue_at is not None:
                entry.schedule(requeue_at)
        entry.in_progress = False
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
