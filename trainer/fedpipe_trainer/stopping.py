"""SIGTERM and SIGINT ask a trainer to stop. A task is never cut in its work: its recipe looks at the flag between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from fedpipe_trainer.contract import ExitCode

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._idle = False

    def request(self) -> None:
        """Ask it to stop.

        Raises:
            SystemExit: with 143, when the process only waits for work.
        """
        self.requested = True
        if self._idle:
            raise SystemExit(ExitCode.TERMINATED)

    def listen(self) -> None:
        """Take the signals of this process as requests to stop."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """While the block runs there is nothing to finish: a request ends the process at once."""
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.request()
