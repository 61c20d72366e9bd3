"""Waiting through a store that does not answer: asked again after growing pauses, and given up after a bounded time.

`after` decides and is pure; `through_outages` acts, by the clock and the wait it is given.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from fedpipe_operator.errors import TransientError, UserError

T = TypeVar("T")

LONGEST_SECONDS = 600.0
"""How long a run waits: a store that is started anew, a network that is mended. Jobs meanwhile use up their own deadlines."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Outage:
    """A store that has not answered since `since` (Unix seconds), as often as it was asked."""

    since: float
    failures: int = 1

    @property
    def pause(self) -> float:
        """Seconds until it is asked again."""
        return min(_FIRST_PAUSE_SECONDS * 2.0 ** (self.failures - 1), _LONGEST_PAUSE_SECONDS)


def after(failure: TransientError, before: Outage | None, now: float) -> Outage:
    """The outage with one more failure in it.

    Raises:
        UserError: it has lasted too long. The reason is the failure's.
    """
    outage = Outage(now) if before is None else replace(before, failures=before.failures + 1)
    if now - outage.since < LONGEST_SECONDS:
        return outage
    waited = f"waited {LONGEST_SECONDS / 60:.0f} minutes for it; mend this, then the same command goes on from here"
    raise UserError(failure.reason, f"{failure.message}; {waited}") from failure


def through_outages(call: Callable[[], T], *, clock: Callable[[], float], wait: Callable[[float], None], say: Callable[[str], None]) -> T:
    """What `call` gives, however often it says to try again.

    Args:
        call: asks the store; asking again does no harm.
        clock: Unix seconds.
        wait: comes back after so many seconds.
        say: tells people, once when an outage begins and once when it ends.

    Raises:
        UserError: the call's own, or the outage has lasted too long.
    """
    outage: Outage | None = None
    while True:
        try:
            result = call()
        except TransientError as failure:
            if outage is None:
                say(f"store not reachable since {_hour(clock())}, waiting ({failure})")
            outage = after(failure, outage, clock())
            wait(outage.pause)
        else:
            if outage is not None:
                say(f"the store answers again after {clock() - outage.since:.0f} s")
            return result


def _hour(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
