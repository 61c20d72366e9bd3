"""A lock that our processes inherit, so that whoever comes after a killed operator waits until they are gone.

The kernel frees a lock when the last process that holds it open ends. A trainer whose operator was killed is still
leaving its checkpoint: to start the same task beside it would use the memory twice and race for that checkpoint.
"""

import fcntl
import os
import time
from pathlib import Path

from fedpipe_operator.errors import UserError

PROCESSES_LOCK = "processes.lock"
"""Its name in a run's folder."""
_PAUSE_SECONDS = 0.05


def acquire_process_lock(file: Path, patience_seconds: float) -> int:
    """The locked descriptor, to be handed down to every process that is started.

    Raises:
        UserError: `StillAtWork`, processes of an earlier operator do not end within `patience_seconds`.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    give_up_at = time.monotonic() + patience_seconds
    while not _is_ours(descriptor):
        if time.monotonic() > give_up_at:
            os.close(descriptor)
            raise UserError("StillAtWork", f"processes of an earlier run hold {file}: find them with `fuser {file}` and end them")
        time.sleep(_PAUSE_SECONDS)
    return descriptor


def _is_ours(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
