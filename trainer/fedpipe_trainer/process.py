"""The trainer's process: its standard streams, and requests to stop by a signal.

Standard output is reserved for `Progress` and `TaskEnded` lines, one JSON document each. Everything that a library
prints goes to the log: standard error, or the log file of the current task in a serving trainer. Both streams are
redirected at the file descriptor, so that the output of C libraries and of crashes is captured, too.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, TextIO

from fedpipe_trainer.contract import ExitCode, Progress, TaskEnded

WriteLine = Callable[[Progress | TaskEnded], None]

_STDOUT: Final = 1
_STDERR: Final = 2
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_NOTICE_SECONDS: Final = 1.0
"""By so much later, at most, an idle process notices a signal that arrived just before it blocked."""


def reserve_stdout() -> TextIO:
    """Return standard output for the caller alone; all other output to it goes to standard error from now on."""
    sys.stdout.flush()
    reserved = os.fdopen(os.dup(_STDOUT), "w", encoding="utf-8")
    os.dup2(_STDERR, _STDOUT)
    return reserved


def json_line_writer(out: TextIO, on_broken_pipe: Callable[[], None]) -> WriteLine:
    """A function that writes one JSON line to `out`; it calls `on_broken_pipe` if the reader has closed the pipe."""

    def write_line(line: Progress | TaskEnded) -> None:
        try:
            out.write(line.model_dump_json(by_alias=True, exclude_none=True) + "\n")
            out.flush()
        except BrokenPipeError:
            on_broken_pipe()

    return write_line


@contextmanager
def redirect_output(log: int) -> Iterator[None]:
    """Redirect standard output and standard error to the file descriptor `log` in this context."""
    originals = [os.dup(_STDOUT), os.dup(_STDERR)]
    _redirect(log, log)
    try:
        yield
    finally:
        _redirect(*originals)
        for descriptor in originals:
            os.close(descriptor)


def _redirect(stdout: int, stderr: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, _STDOUT)
    os.dup2(stderr, _STDERR)


class StopRequest:
    """Whether this process was requested to stop. A running task is not interrupted: its recipe checks this between two steps."""

    def __init__(self) -> None:
        self.requested = False
        self._idle = False
        self._handles_signals = False

    def request(self) -> None:
        """Request the process to stop.

        Raises:
            SystemExit: with status 143, if the process is idle.
        """
        self.requested = True
        if self._idle:
            raise SystemExit(ExitCode.TERMINATED)

    def handle_signals(self) -> None:
        """Treat SIGTERM and SIGINT as requests to stop."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, lambda _number, _frame: None)
        self._handles_signals = True

    @contextmanager
    def idle(self) -> Iterator[None]:
        """In this context the process has no task: a request to stop ends it at once.

        A signal that arrives just before a read blocks is noticed only when the read ends. So reads are interrupted every second.
        """
        self._idle = True
        interval = _NOTICE_SECONDS if self._handles_signals else 0
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        try:
            if self.requested:
                raise SystemExit(ExitCode.TERMINATED)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._idle = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.request()
