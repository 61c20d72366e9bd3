"""How a site's memory limit is enforced: by a cgroup that was given to us, else by a watch on the resident set.

A cgroup is used only when its folder is named: it must be ours (systemd: `Delegate=yes`; a container's own), with no
process directly in it, and the memory controller on. Both versions of cgroups will do. The watch needs nothing; it
sees more than the kernel would charge (pages of mapped files count) and, between two looks, later.
"""

import logging
from pathlib import Path

import psutil

_LOG = logging.getLogger(__name__)

_V2_LIMIT = "memory.max"
_V1_LIMIT = "memory.limit_in_bytes"


def make_group(parent: Path, name: str, limit: int) -> Path | None:
    """A child cgroup that may use `limit` bytes, or None (and a line in the log) where that is not allowed."""
    group = parent / name
    try:
        if (parent / "cgroup.subtree_control").exists():
            (parent / "cgroup.subtree_control").write_text("+memory")
        group.mkdir(exist_ok=True)
        is_v2 = (group / _V2_LIMIT).exists()
        (group / (_V2_LIMIT if is_v2 else _V1_LIMIT)).write_text(str(limit))
        if is_v2:
            (group / "memory.swap.max").write_text("0")
            (group / "memory.oom.group").write_text("1")
    except OSError as error:
        _LOG.warning("cannot limit memory by the cgroup %s (%s): the resident set is watched instead", group, error.strerror)
        return None
    return group


def kills(group: Path) -> int:
    """How many processes of this cgroup the kernel ended for want of memory."""
    for name in ("memory.events", "memory.oom_control"):
        file = group / name
        for line in file.read_text().splitlines() if file.exists() else ():
            word, _, number = line.partition(" ")
            if word == "oom_kill":
                return int(number)
    return 0


def remove_group(group: Path) -> None:
    """Take the cgroup away. One whose processes are not all gone yet stays, and is used again under its name."""
    try:
        group.rmdir()
    except OSError as error:
        _LOG.warning("cannot remove the cgroup %s: %s", group, error.strerror)


def resident_bytes(pid: int) -> int:
    """The resident set of a process and all below it, in bytes; 0 when it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_resident(member) for member in family)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
