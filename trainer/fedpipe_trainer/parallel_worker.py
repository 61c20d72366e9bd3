"""The entry point of a worker: `python -m fedpipe_trainer.parallel_worker PIPE RANK PROCESSES PARENT`, with a descriptor's number as PIPE.

It imports no large library before it has made sure that it ends with its parent. What it does then is in `parallel.worker`.
"""

import ctypes
import gc
import logging
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from fedpipe_trainer import logs
from fedpipe_trainer import settings as environment

_PR_SET_PDEATHSIG: Final = 1


def main(pipe: str, rank: str, processes: str, parent: str) -> None:
    """Serve the process at the other end of this pipe, until that closes it or ends."""
    _end_with(int(parent))
    # The first process decides what a request to stop means.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logs.configure(environment.read(os.environ).log_format)
    logging.getLogger().setLevel(logging.WARNING)
    gc.disable()  # as in `tasks.import_recipe`
    from fedpipe_trainer.parallel.worker import Worker  # noqa: PLC0415 -- it imports torch

    gc.freeze()
    gc.enable()
    with suppress(EOFError, BrokenPipeError):
        Worker(Connection(int(pipe)), int(rank), int(processes)).serve()


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, even while it computes or waits for a GPU."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot set the signal for the parent's death")
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
