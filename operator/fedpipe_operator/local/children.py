"""A process of this machine that does a site's tasks: how it is started, told what to do, and ended."""

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
from fedpipe_operator.backend import Limits
from fedpipe_operator.local.memory_limit import resident_bytes

_LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(eq=False)
class Child:
    """A process, what it is allowed, and what it is at. Guarded by the door's lock."""

    place: str
    """The site it works for, or a word for what is no site's."""
    process: subprocess.Popen[str]
    limits: Limits
    serves: bool
    """Whether it takes one task after another; else it ends with its task."""
    group: Path | None = None
    cpus: frozenset[int] = frozenset()
    job: str | None = None
    kill_at: float | None = None
    """Set when it was asked to end: the moment (monotonic seconds) after which it is not asked any more."""
    over_limit: bool = False

    @property
    def input(self) -> IO[str]:
        """Where it is told its tasks."""
        return cast("IO[str]", self.process.stdin)  # `spawn` made a pipe

    @property
    def output(self) -> IO[str]:
        """Where it says how it gets on."""
        return cast("IO[str]", self.process.stdout)

    @property
    def is_idle(self) -> bool:
        """Whether it could take a task now."""
        return self.serves and self.job is None and self.kill_at is None and not self.over_limit


def environment(inherited: Mapping[str, str], limits: Limits, *, for_operator: bool) -> dict[str, str]:
    """A child's environment: ours, its limits, and the store's credentials only where it works for the operator."""
    own = openblas.environment() if for_operator else {}
    own |= {name: value for name, value in inherited.items() if for_operator or not name.startswith("AWS_")}
    if limits.memory_bytes is not None:
        own["FEDPIPE_MEMORY_LIMIT_BYTES"] = str(limits.memory_bytes)
    if limits.cpus is not None:
        own["OMP_NUM_THREADS"] = str(limits.cpus)
    return own


def spawn(command: Sequence[str], *, env: Mapping[str, str], log: Path, lock: int, group: Path | None) -> "subprocess.Popen[str]":
    """Start a process that ends with us, in a session of its own so that Ctrl-C does not reach it. `lock` is handed down."""
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(group or "")]
    with log.open("ab") as errors:
        return subprocess.Popen(  # noqa: S603 -- our own programs, from `ProcessSettings`
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
    """Write a line to its standard input, or close that where it takes no more."""
    # One that died meanwhile is reported by its reader.
    with contextlib.suppress(BrokenPipeError):
        if child.serves:
            child.input.write(line + "\n")
            child.input.flush()
        else:
            child.input.close()


def close_pipes(child: Child) -> None:
    """Close the pipes of a process that is gone."""
    child.output.close()
    _end_input(child)


def ask_to_end(child: Child, grace_seconds: float) -> None:
    """SIGTERM: it leaves a checkpoint and ends, or is killed after the grace. Asking again changes nothing."""
    if child.kill_at is None:
        child.kill_at = time.monotonic() + grace_seconds
        child.process.terminate()
        # One that was just about to wait for a line may sleep through the signal: the end of its input wakes it.
        _end_input(child)


def kill(child: Child) -> None:
    """SIGKILL to it and to all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


def is_over_limit(child: Child) -> bool:
    """Whether it holds more memory than it may, where no cgroup watches over that."""
    limit = child.limits.memory_bytes
    return limit is not None and child.group is None and resident_bytes(child.process.pid) > limit


def least_used(allowed: Collection[int], taken: Collection[frozenset[int]], wanted: int | None) -> frozenset[int]:
    """Which processors to use: the `wanted` ones on which the fewest others are; all when None are counted. Pure."""
    load = Counter(cpu for cpus in taken for cpu in cpus)
    return frozenset(sorted(allowed, key=lambda cpu: (load[cpu], cpu))[: wanted or None])


def pin(pid: int, cpus: frozenset[int]) -> None:
    """Let every thread of the process run on these processors only; threads it starts later follow."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 -- numbers, not paths
            os.sched_setaffinity(int(thread), cpus)


def _end_input(child: Child) -> None:
    # A line that a process which is gone never read is still in the buffer.
    with contextlib.suppress(BrokenPipeError):
        child.input.close()
