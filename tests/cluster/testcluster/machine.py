"""The machine's state before `up`, to be restored: settings that kubelet and pods change, and folders that programs create outside ours."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from testcluster import network
from testcluster.layout import NODES, Layout
from testcluster.shell import run, try_to_run

_SETTINGS = (
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_FOLDERS = (
    "/etc/cni",
    "/run/containerd",
    "/run/mount",
    "/run/netns",
    "/run/xtables.lock",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/containers",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/var/run/kubernetes",
)
"""Fixed paths of some programs; `down` removes those that did not exist before."""


@dataclass(frozen=True)
class Before:
    """The machine's state before `up`."""

    settings: dict[str, str]
    absent: list[str]
    tables: list[str]


def current_state() -> Before:
    """Read the machine's current state."""
    settings = {name: file.read_text().strip() for name in _SETTINGS if (file := Path("/proc/sys") / name).exists()}
    return Before(settings, [folder for folder in _FOLDERS if not Path(folder).exists()], network.tables())


def save_state(layout: Layout) -> None:
    """Save the machine's current state, unless one is saved."""
    file = layout.run / "before.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(current_state()), indent=2))


def restore(layout: Layout) -> None:
    """Remove the bridge and the rules, restore the settings, and remove what the programs left outside our folder."""
    file = layout.run / "before.json"
    if not file.exists():
        return
    before = Before(**json.loads(file.read_text()))
    network.tear_down(before.tables)
    for name, value in before.settings.items():
        (Path("/proc/sys") / name).write_text(f"{value}\n")
    for folder in before.absent:
        _remove(Path(folder))
    _remove_traces(layout)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_traces(layout: Layout) -> None:
    """Remove our files from folders that existed before."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(layout.run) in str(link.readlink()):
            link.unlink()
    for node in NODES:
        for result in Path("/var/lib/cni/results").glob(f"fedpipe-{node.name}-*"):
            result.unlink()


def mounts_below(folder: Path, mounts: str) -> list[str]:
    """The mount points in this folder, the latest first."""
    points = [line.split()[1].encode().decode("unicode_escape") for line in mounts.splitlines()]
    return [point for point in reversed(points) if Path(point).is_relative_to(folder)]


def unmount(folder: Path) -> None:
    """Unmount everything in this folder."""
    for point in mounts_below(folder, Path("/proc/self/mounts").read_text()):
        try_to_run("umount", "--lazy", point)
    if left := mounts_below(folder, Path("/proc/self/mounts").read_text()):
        run("umount", *left)
