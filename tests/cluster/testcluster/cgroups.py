"""Control groups, version 1 or 2. Every process of the cluster is in one of ours, so that `down` finds all of them."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
_NEEDED = ("cpu", "cpuset", "memory", "pids")


def hierarchies(mounts: str) -> dict[str, Path]:
    """The mount points of control groups: of version 1 by controller, of version 2 as "unified"; some machines have both."""
    rows = [line.split() for line in mounts.splitlines()]
    return {Path(row[1]).name if row[2] == "cgroup" else "unified": Path(row[1]) for row in rows if row[2] in ("cgroup", "cgroup2")}


def missing_controllers(mounts: str) -> list[str]:
    """The controllers that the kubelet needs and this machine lacks."""
    found = hierarchies(mounts)
    if list(found) == ["unified"]:
        available = (found["unified"] / "cgroup.controllers").read_text().split()
        return [name for name in _NEEDED if name not in available]
    offered = {controller for name in found for controller in name.split(",")}
    return [name for name in _NEEDED if name not in offered]


def create(name: str) -> None:
    """Create the group under every controller."""
    for root in hierarchies(MOUNTS.read_text()).values():
        group = root
        for part in Path(name).parts:
            group /= part
            group.mkdir(exist_ok=True)
            _inherit(group, "cpuset.cpus")
            _inherit(group, "cpuset.mems")


def _inherit(group: Path, setting: str) -> None:
    """Copy the setting from the parent: in version 1 a new group has no processors and no memory nodes."""
    file = group / setting
    if file.exists() and not file.read_text().strip() and (above := (group.parent / setting).read_text().strip()):
        file.write_text(above)


def enter(name: str, pid: int) -> None:
    """Move a process into the group under the controller pids alone, which finds the process again and limits nothing."""
    found = hierarchies(MOUNTS.read_text())
    root = found.get("pids") or found["unified"]
    (root / name / "cgroup.procs").write_text(str(pid))


def _groups(name: str) -> list[Path]:
    """The group and its descendants under every controller, deepest first."""
    roots = [root / name for root in hierarchies(MOUNTS.read_text()).values()]
    return [Path(folder) for root in roots if root.exists() for folder, _, _ in os.walk(root, topdown=False)]


def named(name: str, *, below: str) -> set[str]:
    """The descendants of the group `below` that have this name."""
    roots = hierarchies(MOUNTS.read_text()).values()
    return {str(group.relative_to(root)) for root in roots for group in (root / below).rglob(name)}


def members(name: str) -> set[int]:
    """The processes of the group and of its descendants."""
    found: set[int] = set()
    for group in _groups(name):
        try:
            found.update(map(int, (group / "cgroup.procs").read_text().split()))
        except OSError:
            continue  # the group was removed meanwhile
    return found


def kill(name: str, *, seconds: float = 15) -> set[int]:
    """Kill every process of the group; return those that are left after `seconds`."""
    until = time.monotonic() + seconds
    while (left := members(name)) and time.monotonic() < until:
        for pid in left:
            _kill(pid)
        time.sleep(0.05)
    return left


def send_signal(names: Iterable[str], which: signal.Signals) -> None:
    """Send this signal to every process of these groups."""
    for pid in {pid for name in names for pid in members(name)}:
        with suppress(ProcessLookupError):
            os.kill(pid, which)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)
    except (ProcessLookupError, ChildProcessError):
        return


def remove(name: str) -> None:
    """Remove the group, which must have no processes."""
    for group in _groups(name):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.2)  # the kernel releases the last process a moment later
            group.rmdir()
