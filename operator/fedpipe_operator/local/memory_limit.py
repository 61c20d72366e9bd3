"""How a site's memory limit is enforced: by a cgroup where we may make one, else by a watch on the resident set.

Both versions of cgroups will do, where the folder is ours to write to: root has it, and with version 2 whoever is logged in
under systemd. The watch needs nothing; it sees more than the kernel would charge (pages of mapped files count) and, between
two looks, later.
"""

import logging
import os
from pathlib import Path

import psutil

_LOG = logging.getLogger(__name__)

_V2_LIMIT = "memory.max"
_V1_LIMIT = "memory.limit_in_bytes"


def own_group(membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """Where a cgroup with a memory limit can be made for a process that this one starts; None where that is not allowed.

    Version 1: in the group this process is in. Version 2: beside it, for a group with processes of its own may not divide
    its memory.
    """
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _if_ours(mounted / "memory" / path.lstrip("/"))
        above = mounted / path.lstrip("/") / ".."
        if not controllers and path != "/" and "memory" in _words(above / "cgroup.subtree_control"):
            return _if_ours(above.resolve())
    return None


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def _if_ours(group: Path) -> Path | None:
    return group if os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK) else None


def make_group(parent: Path, name: str, limit: int) -> Path | None:
    """A child cgroup that may use `limit` bytes, or None (and a line in the log) where that is not allowed."""
    group = parent / name
    try:
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
