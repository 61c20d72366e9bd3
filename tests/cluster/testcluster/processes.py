"""The cluster's processes: started in the background, found again by later commands, and checked for health."""

import os
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testcluster import cgroups
from testcluster.layout import CGROUP, Layout
from testcluster.shell import ClusterError, without_proxies

DAEMONS = f"{CGROUP}/daemons"


@dataclass(frozen=True)
class Daemon:
    """A process that runs until it is stopped."""

    name: str
    argv: tuple[str, ...]
    is_healthy: Callable[[], bool]
    group: str = DAEMONS


def answers(url: str) -> bool:
    """Whether this health endpoint returns 200."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # components use self-signed certificates on loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=3) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def log_of(layout: Layout, name: str) -> Path:
    """The log file of the process with this name."""
    return layout.logs / f"{name}.log"


def _pid_file(layout: Layout, name: str) -> Path:
    return layout.run / "pids" / name


def _stat(pid: int) -> tuple[str, str] | None:
    """State and start time of a process; the start time tells it from a later one with the same PID. None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


def pid_of(layout: Layout, name: str) -> int | None:
    """The PID of the running process with this name."""
    file = _pid_file(layout, name)
    if not file.exists():
        return None
    pid, started = file.read_text().split()
    _reap(int(pid))
    match _stat(int(pid)):
        case (state, start) if start == started and (state != "Z" or _has_threads(int(pid))):
            return int(pid)
    return None


def _has_threads(pid: int) -> bool:
    """Whether a thread of a process whose first one has ended is still there: with it, its open files and ports are."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by an earlier command


def running(layout: Layout) -> list[str]:
    """The names of the running processes."""
    folder = layout.run / "pids"
    return sorted(file.name for file in folder.iterdir() if pid_of(layout, file.name)) if folder.exists() else []


def start(layout: Layout, daemon: Daemon) -> None:
    """Start the process unless it runs; it continues after this command ends."""
    if pid_of(layout, daemon.name):
        return
    log, file = log_of(layout, daemon.name), _pid_file(layout, daemon.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, str(log), appended, 0o644)]
    pid = os.posix_spawnp(daemon.argv[0], daemon.argv, without_proxies(), file_actions=[*actions, (os.POSIX_SPAWN_DUP2, 1, 2)], setsid=True)
    started = _stat(pid)
    file.write_text(f"{pid} {started[1] if started else 0}")
    cgroups.create(daemon.group)
    cgroups.enter(daemon.group, pid)


def wait(layout: Layout, daemon: Daemon, *, seconds: float = 90) -> None:
    """Wait until the process is healthy; else raise an error with the end of its log and its path."""
    until = time.monotonic() + seconds
    while not daemon.is_healthy():
        if pid_of(layout, daemon.name) is None:
            raise ClusterError(_failure(layout, daemon.name, "ended"))
        if time.monotonic() > until:
            raise ClusterError(_failure(layout, daemon.name, f"is not healthy after {seconds:.0f} s"))
        time.sleep(0.1)


def _failure(layout: Layout, name: str, what: str) -> str:
    log = log_of(layout, name)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""
    return f"{name} {what}. The end of its log, {log}:\n{end}"


def stop(layout: Layout, name: str, *, seconds: float = 10, at_once: bool = False) -> None:
    """Send SIGTERM to the process, and SIGKILL if it has not ended after `seconds`."""
    until = time.monotonic() + (0 if at_once else seconds)
    sent = None
    while pid := pid_of(layout, name):
        wanted = signal.SIGKILL if time.monotonic() >= until else signal.SIGTERM
        if wanted != sent:
            os.kill(pid, wanted)
            sent = wanted
        time.sleep(0.05)
    _pid_file(layout, name).unlink(missing_ok=True)
