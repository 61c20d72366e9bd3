"""Checks what a machine needs to run a cluster, by trying it; the trials leave nothing behind."""

import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testcluster import cgroups, network
from testcluster.layout import CHAINS, Layout
from testcluster.shell import ClusterError, run, try_to_run
from testcluster.versions import DEBIAN_PACKAGES

_ADD_BRIDGE, _DELETE_BRIDGE = 0x89A0, 0x89A1
_TRIAL_BRIDGE = b"fedpipe-trial\0"
_NETFILTER = 12
_DISK_GIB = 36
"""22 for the images, which are in the builder's store, in the registry and on each node; the rest for Go's caches."""


@dataclass(frozen=True)
class Lack:
    """Something the machine lacks, and what would help."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


def lacks(layout: Layout) -> list[Lack]:
    """Everything the machine lacks; empty if it can run a cluster."""
    if sys.platform != "linux":
        return [Lack("Linux", f"this is {sys.platform}")]
    if os.geteuid() != 0:
        return [Lack("root", "only root can create bridges, mounts and control groups; run it as root")]
    trials = (_packages, _disk, _control_groups, _bridge, _overlay, _packet_rules, _addresses)
    return [lack for trial in trials if (lack := trial(layout))]


def require(layout: Layout) -> None:
    """Raise an error that lists everything the machine lacks."""
    if missing := lacks(layout):
        raise CannotRunError("This machine cannot run a cluster:\n" + "\n".join(f"  {lack}" for lack in missing))


class CannotRunError(ClusterError):
    """The machine lacks something that these tools cannot install."""


def missing_packages(exists: Callable[[str], bool]) -> list[str]:
    """The Debian packages whose program or file does not exist."""
    return [package for package, shown_by in DEBIAN_PACKAGES.items() if not exists(shown_by)]


def is_there(program: str) -> bool:
    """Whether the program is on the PATH, or the file exists."""
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def _packages(_: Layout) -> Lack | None:
    missing = missing_packages(is_there)
    if missing and not is_there("apt-get"):
        return Lack("packages", f"install {', '.join(missing)}: this machine has no apt-get to install them with")
    return None


def _disk(layout: Layout) -> Lack | None:
    if layout.registry.exists():
        return None
    layout.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(layout.cache).free
    return disk_for(free >> 30, str(layout.cache))


def disk_for(free_gib: int, folder: str) -> Lack | None:
    """Whether this much space is enough for programs, images and caches."""
    if free_gib < _DISK_GIB:
        return Lack("disk", f"{free_gib} GiB are free in {folder}; {_DISK_GIB} are needed; set FEDPIPE_CACHE to another folder")
    return None


def _control_groups(_: Layout) -> Lack | None:
    mounts = cgroups.MOUNTS.read_text()
    if not cgroups.hierarchies(mounts):
        return Lack("control groups", "none are mounted below /sys/fs/cgroup")
    if missing := cgroups.missing_controllers(mounts):
        return Lack("control groups", f"the controllers {', '.join(missing)} are missing")
    try:
        cgroups.create("fedpipe-trial")
        cgroups.remove("fedpipe-trial")
    except OSError as error:
        return Lack("control groups", f"none can be created ({error})")
    return None


def _bridge(_: Layout) -> Lack | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _ADD_BRIDGE, _TRIAL_BRIDGE)
            fcntl.ioctl(control, _DELETE_BRIDGE, _TRIAL_BRIDGE)
        except OSError as error:
            return Lack("network bridge", f"none can be created ({error}); the kernel needs CONFIG_BRIDGE, a container NET_ADMIN")
    return None


def _overlay(layout: Layout) -> Lack | None:
    layout.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.cache) as folder:
        lower, upper, work, merged = (Path(folder) / name for name in ("lower", "upper", "work", "merged"))
        for path in (lower, upper, work, merged):
            path.mkdir()
        try:
            run("mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", merged)
        except (ClusterError, OSError) as error:
            return Lack("overlay mounts", f"none work in {layout.cache}; set FEDPIPE_CACHE to a folder on ext4 or xfs ({error})")
        run("umount", merged)
    return None


def _packet_rules(_: Layout) -> Lack | None:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER).close()
        if is_there("iptables-save"):
            run("iptables-save")
    except (OSError, ClusterError) as error:
        return Lack("iptables", f"the kernel accepts no rules ({error})")
    return None


def _addresses(_: Layout) -> Lack | None:
    if network.bridge_exists():
        return None
    if taken := network.overlapping(Path("/proc/net/route").read_text()):
        return Lack("addresses", f"{taken} is in use on this machine, and the cluster needs it")
    if network.other_kubernetes(try_to_run("iptables-save") if is_there("iptables-save") else ""):
        return Lack(
            "iptables",
            f"another Kubernetes on this machine has chains named {CHAINS[0]}…; stop it, or run the tests with its KUBECONFIG",
        )
    return None
