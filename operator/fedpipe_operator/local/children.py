"""A child process that runs a site's tasks: how it is started, receives its tasks, and is ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from fedpipe_operator.aggregation import openblas
from fedpipe_operator.backend import JobResources
from fedpipe_operator.local.memory_limit import resident_bytes

_LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(eq=False)
class Child:
    """A child process, its limits and its current job. Guarded by the lock of `LocalBackend`."""

    slot: str
    """Its process slot: see `scheduling.slot_of`."""
    process: subprocess.Popen[str]
    resources: JobResources
    serves: bool
    """Whether it takes one task after another; otherwise it ends with its task."""
    group: Path | None = None
    cpus: frozenset[int] = frozenset()
    job: str | None = None
    kill_at: float | None = None
    """Set when SIGTERM was sent: the time (monotonic seconds) after which it is killed."""
    over_limit: bool = False

    @property
    def stdin(self) -> IO[str]:
        """The pipe from which it reads its tasks."""
        return cast("IO[str]", self.process.stdin)  # `spawn` made a pipe

    @property
    def stdout(self) -> IO[str]:
        """The pipe to which it writes its progress."""
        return cast("IO[str]", self.process.stdout)

    @property
    def is_idle(self) -> bool:
        """Whether it can take a task now."""
        return self.serves and self.job is None and self.kill_at is None and not self.over_limit


def environment(inherited: Mapping[str, str], resources: JobResources, *, for_operator: bool) -> dict[str, str]:
    """A child's environment: the inherited one and its limits; the store's credentials only for the operator's own work."""
    variables = openblas.environment() if for_operator else {}
    variables |= {name: value for name, value in inherited.items() if for_operator or not name.startswith("AWS_")}
    if resources.memory_bytes is not None:
        variables["FEDPIPE_MEMORY_LIMIT_BYTES"] = str(resources.memory_bytes)
    if resources.cpus is not None:
        variables["OMP_NUM_THREADS"] = str(resources.cpus)
    if resources.cache is not None:
        variables["FEDPIPE_CACHE"] = resources.cache
    return variables


def spawn(command: Sequence[str], *, env: Mapping[str, str], log: Path, lock: int, group: Path | None) -> "subprocess.Popen[str]":
    """Start a process that ends with this one, in its own session so that Ctrl-C does not reach it. It inherits the descriptor `lock`."""
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(group or "")]
    with log.open("ab") as errors:
        return subprocess.Popen(  # noqa: S603 -- the programs of `ProcessSettings`
            [*launcher, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env=env,
            pass_fds=(lock,),
            start_new_session=True,
        )


def send_line(child: Child, line: str) -> None:
    """Write a line to its standard input; if it does not serve, close its standard input instead."""
    # The thread that reads its output reports a process that died in the meantime.
    with contextlib.suppress(BrokenPipeError):
        if child.serves:
            child.stdin.write(line + "\n")
            child.stdin.flush()
        else:
            child.stdin.close()


def close_pipes(child: Child) -> None:
    """Close the pipes of a process that ended."""
    child.stdout.close()
    _close_stdin(child)


def terminate(child: Child, grace_seconds: float) -> None:
    """Send SIGTERM: the process leaves a checkpoint and ends, or is killed after the grace period. A second call changes nothing."""
    if child.kill_at is None:
        child.kill_at = time.monotonic() + grace_seconds
        child.process.terminate()
        # A process that is just about to wait for a line may miss the signal; the end of its input wakes it.
        _close_stdin(child)


def kill(child: Child) -> None:
    """Send SIGKILL to the process and to all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


def is_over_limit(child: Child) -> bool:
    """Whether its resident set exceeds the limit; always False where a cgroup enforces the limit."""
    limit = child.resources.memory_bytes
    return limit is not None and child.group is None and resident_bytes(child.process.pid) > limit


def least_loaded(allowed: Collection[int], used: Collection[frozenset[int]], wanted: int | None) -> frozenset[int]:
    """The `wanted` processors that the fewest other processes use; all of `allowed` if `wanted` is None. Pure."""
    load = Counter(cpu for cpus in used for cpu in cpus)
    return frozenset(sorted(allowed, key=lambda cpu: (load[cpu], cpu))[: wanted or None])


def pin(pid: int, cpus: frozenset[int]) -> None:
    """Restrict every thread of the process to these processors; threads that it starts later inherit that."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 -- numbers, not paths
            os.sched_setaffinity(int(thread), cpus)


def _close_stdin(child: Child) -> None:
    # The buffer may still hold a line that the ended process never read.
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
