"""A work queue as Kubernetes controllers have it: keys that are to be looked at, each at its time and by one turn at a time.

A key that is woken while its turn is made comes again right after. A turn that meets weather (`TransientError`) is made again after a
pause that doubles each time. Nothing here knows what a key stands for. Runs on one event loop; the turns themselves are in threads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fedpipe_operator.errors import FedPipeError, TransientError

Key = TypeVar("Key", bound=Hashable)

_LOG: Final = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_GATHER_SECONDS: Final = 0.05
"""Events come in groups (a Job, its pod): one turn for all of them."""


@dataclass
class _Entry:
    due: float | None = None
    """Clock seconds of the next turn; None: none is wanted."""
    is_turning: bool = False
    failures: int = 0


def backoff_seconds(failures: int) -> float:
    """Seconds before the next try after so many failures in a row."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** (failures - 1), _LONGEST_PAUSE_SECONDS)


@dataclass
class WorkQueue(Generic[Key]):
    """Keys and their times."""

    turn: Callable[[Key], Awaitable[float | None]]
    """One turn of a key; gives the time to look again, None for only when woken."""
    clock: Callable[[], float]
    """Unix seconds."""
    max_concurrent: int
    _entries: dict[Key, _Entry] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self, key: Key, *, after: float = _GATHER_SECONDS) -> None:
        """Have a turn of this key made, in so many seconds at the latest. From the event loop's own thread."""
        entry = self._entries.setdefault(key, _Entry())
        due = self.clock() + after
        entry.due = due if entry.due is None else min(entry.due, due)
        self._changed.set()

    def forget(self, key: Key) -> None:
        """No further turns of this key."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.due = None
            if not entry.is_turning:
                del self._entries[key]

    async def run(self) -> None:
        """Make turns as they fall due, until cancelled."""
        async with asyncio.TaskGroup() as turns:
            while True:
                self._changed.clear()
                now = self.clock()
                for key in self._ready(now):
                    self._entries[key].is_turning, self._entries[key].due = True, None
                    turns.create_task(self._make(key))
                await self._until_something_is_due(now)

    def _ready(self, now: float) -> list[Key]:
        """The keys to turn now: due, not at it, those that have waited longest first, as many as may be at it."""
        free = self.max_concurrent - sum(entry.is_turning for entry in self._entries.values())
        idle = [(entry.due, key) for key, entry in self._entries.items() if entry.due is not None and not entry.is_turning]
        return [key for due, key in sorted(idle, key=lambda pair: pair[0])[:free] if due <= now]

    async def _until_something_is_due(self, now: float) -> None:
        free = self.max_concurrent > sum(entry.is_turning for entry in self._entries.values())
        times = [entry.due for entry in self._entries.values() if entry.due is not None and not entry.is_turning]
        pause = max(0.0, min(times) - now) if times and free else None
        try:
            await asyncio.wait_for(self._changed.wait(), pause)
        except TimeoutError:
            return

    async def _make(self, key: Key) -> None:
        entry = self._entries[key]
        try:
            again = await self.turn(key)
            entry.failures = 0
        except FedPipeError as error:
            entry.failures += 1
            again = self.clock() + backoff_seconds(entry.failures)
            level = logging.INFO if isinstance(error, TransientError) else logging.WARNING
            _LOG.log(level, "%s: %s; the next try in %.0f s", key, error, backoff_seconds(entry.failures))
        except Exception:  # noqa: BLE001 -- one run's fault must not end all the others'; it is logged whole, counted, and tried again
            entry.failures += 1
            again = self.clock() + backoff_seconds(entry.failures)
            _LOG.exception("%s: a fault of the operator; the next try in %.0f s", key, backoff_seconds(entry.failures))
        entry.is_turning = False
        if again is not None:
            entry.due = again if entry.due is None else min(entry.due, again)
        elif entry.due is None:
            del self._entries[key]
        self._changed.set()
