"""How a site's memory limit is enforced: by a cgroup where this process may make one, otherwise by watching the resident set.

Both versions of cgroups work where the folder is writable: for root and, with version 2, for users logged in under systemd.
Watching needs no rights. It counts more than the kernel would charge (pages of mapped files count), and it notices an excess
only at its next check.
"""

import logging
import os
from pathlib import Path

import psutil

_LOG = logging.getLogger(__name__)

_V2_LIMIT = "memory.max"
_V1_LIMIT = "memory.limit_in_bytes"


def own_group(membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """The folder in which a cgroup with a memory limit can be made for a child process; None where that is not allowed.

    Version 1: the cgroup of this process. Version 2: its parent, because a cgroup that has processes may not have child
    cgroups with a memory limit.
    """
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _if_writable(mounted / "memory" / path.lstrip("/"))
        parent = mounted / path.lstrip("/") / ".."
        if not controllers and path != "/" and "memory" in _words(parent / "cgroup.subtree_control"):
            return _if_writable(parent.resolve())
    return None


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def _if_writable(group: Path) -> Path | None:
    return group if os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK) else None


def make_group(parent: Path, name: str, limit: int) -> Path | None:
    """Make a child cgroup with a limit of `limit` bytes; None, and a line in the log, where that is not allowed."""
    group = parent / name
    try:
        group.mkdir(exist_ok=True)
        is_v2 = (group / _V2_LIMIT).exists()
        (group / (_V2_LIMIT if is_v2 else _V1_LIMIT)).write_text(str(limit))
        if is_v2:
            (group / "memory.swap.max").write_text("0")
            (group / "memory.oom.group").write_text("1")
    except OSError as error:
        _LOG.warning("cannot limit memory with the cgroup %s (%s): the resident set is watched instead", group, error.strerror)
        return None
    return group


def count_kills(group: Path) -> int:
    """How many processes of this cgroup the kernel killed because they ran out of memory."""
    for name in ("memory.events", "memory.oom_control"):
        file = group / name
        for line in file.read_text().splitlines() if file.exists() else ():
            key, _, number = line.partition(" ")
            if key == "oom_kill":
                return int(number)
    return 0


def remove_group(group: Path) -> None:
    """Remove the cgroup. One that still has processes stays, and is reused under its name."""
    try:
        group.rmdir()
    except OSError as error:
        _LOG.warning("cannot remove the cgroup %s: %s", group, error.strerror)


def resident_bytes(pid: int) -> int:
    """The resident set of a process and all its descendants, in bytes; 0 if it ended."""
    try:
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_resident(member) for member in processes)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
