"""Whether this process may act. The elector extends it; every call that changes something in the cluster asks it first.

It ends by the clock, whatever the elector does: a process that was paused, or whose API server does not answer, changes nothing when it
goes on, and no check between reconciles could promise that of a reconcile that is under way.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fedpipe_operator.errors import TransientError


def boot_time() -> float:
    """Seconds since the machine started. Unlike the monotonic clock, it goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Leadership:
    """Until when this process is the one that acts. Thread-safe."""

    clock: Callable[[], float] = boot_time
    _until: float | None = None
    _is_behind: bool = False
    _acting: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def until(self) -> float | None:
        """Seconds of the clock; None: it never led, or gave up."""
        return self._until

    def is_leader(self) -> bool:
        """Whether this process may act now."""
        until = self._until
        return until is not None and self.clock() < until

    def extend(self, until: float) -> bool:
        """This process may act until then; whether it could not for a while before, and so may only once it has caught up.

        Its API server did not answer, or it was paused. Then its cache may lack what it made itself just before, longer than it remembers.
        """
        with self._changed:
            has_lapsed = self._until is not None and self.clock() >= self._until
            self._is_behind = self._is_behind or has_lapsed
            self._until = until
            return has_lapsed

    def caught_up(self) -> None:
        """The cache has everything that existed when this process could act again."""
        with self._changed:
            self._is_behind = False

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Around a call that changes something.

        Raises:
            TransientError: `NotLeading`, this process may not act.
        """
        with self._changed:
            if not self.is_leader():
                raise TransientError("NotLeading", "this replica of the operator does not hold the Lease: the one that holds it goes on")
            if self._is_behind:
                raise TransientError("NotLeading", "this replica has the Lease again, and first sees what there is: it is retried")
            self._acting += 1
        try:
            yield
        finally:
            with self._changed:
                self._acting -= 1
                self._changed.notify_all()

    def give_up(self, *, seconds: float = 0.0) -> bool:
        """Act no more; whether the calls that were under way have ended within these seconds."""
        with self._changed:
            self._until = None
            return self._changed.wait_for(lambda: self._acting == 0, seconds)
