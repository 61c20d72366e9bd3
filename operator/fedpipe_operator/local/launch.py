"""Run by path, as `python -I -S launch.py PARENT GROUP COMMAND…`: sets up the process, then executes the command in it.

It does what `subprocess` cannot do safely between fork and exec in a process with threads: it asks the kernel for SIGTERM
when the parent dies, and joins the cgroup before it uses much memory. Standard library only, for any Python.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CANNOT_RUN = 126  # as in a shell; `job_folder` maps it to its reason


def main(parent: str, group: str, *command: str) -> None:
    """Execute `command` in this process. `parent` is the process whose death ends it; `group` is the folder of a cgroup, or empty."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot set the signal for the parent's death")
    if os.getppid() != int(parent):
        sys.exit(128 + signal.SIGTERM)  # the parent died before the call above
    if group:
        Path(group, "cgroup.procs").write_text("0")
    try:
        os.execvp(command[0], command)  # noqa: S606 -- replacing this process is the purpose
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.exit(_CANNOT_RUN)


if __name__ == "__main__":
    main(*sys.argv[1:])
