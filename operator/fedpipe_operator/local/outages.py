"""Retries while the store is not reachable, with exponential backoff and a time limit.

`next_outage` decides and is pure; `retry_through_outages` acts, with the clock and the wait that it is given.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from fedpipe_operator.errors import TransientError, UserError

T = TypeVar("T")

MAX_OUTAGE_SECONDS = 600.0
"""How long a run waits, for a store that restarts or a network that is repaired. The deadlines of its jobs go on."""
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Outage:
    """A store that has not been reachable since `since` (Unix seconds), with the number of failed calls."""

    since: float
    failures: int = 1

    @property
    def pause(self) -> float:
        """Seconds until the next call."""
        return min(_FIRST_PAUSE_SECONDS * 2.0 ** (self.failures - 1), _MAX_PAUSE_SECONDS)


def next_outage(failure: TransientError, outage: Outage | None, now: float) -> Outage:
    """The outage after one more failed call; `outage` is None if this is the first.

    Raises:
        UserError: the outage has lasted too long. The reason is that of `failure`.
    """
    outage = Outage(now) if outage is None else replace(outage, failures=outage.failures + 1)
    if now - outage.since < MAX_OUTAGE_SECONDS:
        return outage
    advice = "correct this, then run the same command again: it continues from here"
    raise UserError(failure.reason, f"{failure.message}; waited {MAX_OUTAGE_SECONDS / 60:.0f} minutes; {advice}") from failure


def retry_through_outages(
    call: Callable[[], T], *, clock: Callable[[], float], wait: Callable[[float], None], report: Callable[[str], None]
) -> T:
    """The result of `call`, which is retried when it raises `TransientError`.

    Args:
        call: accesses the store; must be idempotent.
        clock: Unix seconds.
        wait: returns after this many seconds.
        report: shows a message to the user, when an outage begins and when it ends.

    Raises:
        UserError: from `call`, or the outage has lasted too long.
    """
    outage: Outage | None = None
    while True:
        try:
            result = call()
        except TransientError as failure:
            if outage is None:
                report(f"store not reachable since {_time_of_day(clock())}, retrying ({failure})")
            outage = next_outage(failure, outage, clock())
            wait(outage.pause)
        else:
            if outage is not None:
                report(f"the store is reachable again after {clock() - outage.since:.0f} s")
            return result


def _time_of_day(unix_seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_seconds))
