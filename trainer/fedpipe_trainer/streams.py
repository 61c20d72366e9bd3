"""Standard output and error of the process: who may write where.

Standard output belongs to `Progress` and `Ended` lines, one JSON document each. Whatever a library prints lands in the
log, which is standard error, or a task's own file while a serving trainer is at that task. Both are switched at the
file descriptor, so that C libraries and crashes are caught too.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from fedpipe_trainer.contract import Ended, Progress

Say = Callable[[Progress | Ended], None]

_OUT: Final = 1
_ERR: Final = 2


def claim_stdout() -> TextIO:
    """Standard output for the caller alone; from now on everyone else's goes to standard error."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(_OUT), "w", encoding="utf-8")
    os.dup2(_ERR, _OUT)
    return own


def speaker(out: TextIO, on_broken_pipe: Callable[[], None]) -> Say:
    """A function that writes one JSON line to `out`; it calls `on_broken_pipe` once nobody reads there any more."""

    def say(line: Progress | Ended) -> None:
        try:
            out.write(line.model_dump_json(by_alias=True, exclude_none=True) + "\n")
            out.flush()
        except BrokenPipeError:
            on_broken_pipe()

    return say


@contextmanager
def logging_into(log: int) -> Iterator[None]:
    """Send standard output and error to the file descriptor `log` while the block runs."""
    before = [os.dup(_OUT), os.dup(_ERR)]
    _redirect(log, log)
    try:
        yield
    finally:
        _redirect(*before)
        for handle in before:
            os.close(handle)


def _redirect(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, _OUT)
    os.dup2(err, _ERR)
