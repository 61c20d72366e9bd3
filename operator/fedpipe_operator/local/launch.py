"""Run by path, as `python -I -S launch.py PARENT GROUP COMMAND…`: ties the process to its parent, then becomes the command.

It does between fork and exec what `subprocess` cannot do safely in a process with threads: it asks the kernel for
SIGTERM when the operator dies, and joins its cgroup while it is still small. Standard library only, for any Python.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CANNOT_RUN = 126  # as a shell has it; `exit_status` gives it its reason


def main(parent: str, group: str, *command: str) -> None:
    """Become `command`. `parent` is the process to die with, `group` a cgroup's folder or empty."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot ask for a signal at the parent's death")
    if os.getppid() != int(parent):
        sys.exit(128 + signal.SIGTERM)  # it died before we asked
    if group:
        Path(group, "cgroup.procs").write_text("0")
    try:
        os.execvp(command[0], command)  # noqa: S606 -- to become the command is the point
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.exit(_CANNOT_RUN)


if __name__ == "__main__":
    main(*sys.argv[1:])
