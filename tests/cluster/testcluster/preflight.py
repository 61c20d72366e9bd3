"""What a machine must be able to do for a cluster to run on it, tried out one by one; nothing of the trials is left behind."""

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
_ROOM_GIB = 36
"""22 for the images, which lie in the builder's store, in the registry and on each node; the rest for what Go keeps."""


@dataclass(frozen=True)
class Lack:
    """What the machine cannot do, and what would help."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


def lacks(layout: Layout) -> list[Lack]:
    """Everything that is missing; nothing on a machine that can run a cluster."""
    if sys.platform != "linux":
        return [Lack("Linux", f"this is {sys.platform}")]
    if os.geteuid() != 0:
        return [Lack("root", "bridges, mounts and control groups are made by root alone; run it as root")]
    trials = (_packages, _room, _control_groups, _bridge, _overlay, _packet_rules, _addresses)
    return [lack for trial in trials if (lack := trial(layout))]


def require(layout: Layout) -> None:
    """Stop with all that is missing."""
    if missing := lacks(layout):
        raise CannotRunError("This machine cannot run a cluster:\n" + "\n".join(f"  {lack}" for lack in missing))


class CannotRunError(ClusterError):
    """The machine lacks something that no script of ours can give it."""


def missing_packages(exists: Callable[[str], bool]) -> list[str]:
    """The Debian packages whose program or file is not there."""
    return [package for package, shown_by in DEBIAN_PACKAGES.items() if not exists(shown_by)]


def is_there(program: str) -> bool:
    """Whether a program is on the PATH, or a file at its place."""
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def _packages(_: Layout) -> Lack | None:
    missing = missing_packages(is_there)
    if missing and not is_there("apt-get"):
        return Lack("packages", f"install {', '.join(missing)}: there is no apt-get here to do it with")
    return None


def _room(layout: Layout) -> Lack | None:
    if layout.registry.exists():
        return None
    layout.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(layout.cache).free
    return room_for(free >> 30, str(layout.cache))


def room_for(free_gib: int, folder: str) -> Lack | None:
    """Whether so much room holds programs, images and what is left over from making them."""
    if free_gib < _ROOM_GIB:
        return Lack("disk", f"{free_gib} GiB are free in {folder}; {_ROOM_GIB} are needed; name another folder by FEDPIPE_CACHE")
    return None


def _control_groups(_: Layout) -> Lack | None:
    mounts = cgroups.MOUNTS.read_text()
    if not cgroups.hierarchies(mounts):
        return Lack("control groups", "none are mounted below /sys/fs/cgroup")
    if missing := cgroups.missing_controllers(mounts):
        return Lack("control groups", f"the controllers {', '.join(missing)} are not there")
    try:
        cgroups.create("fedpipe-trial")
        cgroups.remove("fedpipe-trial")
    except OSError as error:
        return Lack("control groups", f"none can be made ({error})")
    return None


def _bridge(_: Layout) -> Lack | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        try:
            fcntl.ioctl(door, _ADD_BRIDGE, _TRIAL_BRIDGE)
            fcntl.ioctl(door, _DELETE_BRIDGE, _TRIAL_BRIDGE)
        except OSError as error:
            return Lack("network bridge", f"none can be made ({error}); the kernel needs CONFIG_BRIDGE, a container NET_ADMIN")
    return None


def _overlay(layout: Layout) -> Lack | None:
    layout.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.cache) as folder:
        below, above, work, seen = (Path(folder) / name for name in ("below", "above", "work", "seen"))
        for path in (below, above, work, seen):
            path.mkdir()
        try:
            run("mount", "-t", "overlay", "-o", f"lowerdir={below},upperdir={above},workdir={work}", "overlay", seen)
        except (ClusterError, OSError) as error:
            return Lack("overlay mounts", f"none in {layout.cache}; name a folder on ext4 or xfs by FEDPIPE_CACHE ({error})")
        run("umount", seen)
    return None


def _packet_rules(_: Layout) -> Lack | None:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER).close()
        if is_there("iptables-save"):
            run("iptables-save")
    except (OSError, ClusterError) as error:
        return Lack("iptables", f"the kernel takes no rules ({error})")
    return None


def _addresses(_: Layout) -> Lack | None:
    if network.bridge_exists():
        return None
    if taken := network.taken(Path("/proc/net/route").read_text()):
        return Lack("addresses", f"{taken} is in use on this machine, and the cluster needs it")
    if network.other_kubernetes(try_to_run("iptables-save") if is_there("iptables-save") else ""):
        return Lack(
            "iptables",
            f"there are chains named {CHAINS[0]}… of another Kubernetes on this machine; stop it, or give its KUBECONFIG to the tests",
        )
    return None
