"""Aggregation in processes of the operator's own pod: the event loop never waits for one, and none outlives the operator."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fedpipe_operator.aggregation import openblas
from fedpipe_operator.backend import Job, JobState, JobStatus

_MAX_CONCURRENT: Final = 2
_COMMAND: Final = (sys.executable, "-m", "fedpipe_operator.aggregation.worker")
_STOPPED: Final = -9
_KEPT_CHARACTERS: Final = 1000
_NICENESS: Final = 10
"""The operator's own turns come first: what its processes take seconds for, nobody waits for by the second."""


@dataclass(frozen=True)
class _Work:
    """What a process is started with."""

    task_json: str
    environment: Mapping[str, str]
    seconds: float
    """After which it is ended."""


@dataclass
class Workers:
    """Processes by the run they work for and the name of their job. Safe for several threads."""

    clock: Callable[[], float]
    command: tuple[str, ...] = _COMMAND
    on_end: Callable[[str], None] = lambda _uid: None
    """Told the uid of the run whose process ended."""
    _seen: dict[tuple[str, str], JobStatus] = field(default_factory=dict)
    _processes: dict[tuple[str, str], subprocess.Popen[str]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_MAX_CONCURRENT, "aggregation"))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, uid: str, job: Job, task_json: str, *, environment: Mapping[str, str], seconds: float) -> None:
        """Have the task done when its turn comes, unless a job of this name is there already."""
        key = (uid, job.name)
        with self._lock:
            if key in self._seen:
                return
            self._seen[key] = JobStatus(job=job, state=JobState.PENDING, started_at=self.clock(), message="an aggregation before it to end")
        self._pool.submit(self._work, key, _Work(task_json, environment, seconds))

    def seen(self, uid: str) -> dict[str, JobStatus]:
        """The jobs of a run, by name, those that ended included."""
        with self._lock:
            return {name: seen for (of, name), seen in self._seen.items() if of == uid}

    def discard(self, uid: str, name: str = "") -> None:
        """End and forget a job of the run, or all of them."""
        with self._lock:
            for key in [key for key in self._seen if key[0] == uid and name in ("", key[1])]:
                del self._seen[key]
                if key in self._processes:
                    self._processes[key].kill()

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._seen.clear()
            for process in self._processes.values():
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    def _work(self, key: tuple[str, str], work: _Work) -> None:
        try:
            self._do(key, work)
        except OSError as error:  # no room for the task, or none for a process: the next attempt may have it
            self._end(key, 1, f"it could not be started: {error}")

    def _do(self, key: tuple[str, str], work: _Work) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "task.json"
            path.write_text(work.task_json, encoding="utf-8")
            started = self._spawn(key, path, work)
            if started is not None:
                self._end(key, *_result(started, work.seconds))

    def _spawn(self, key: tuple[str, str], path: Path, work: _Work) -> "subprocess.Popen[str] | None":
        """The process, or None if nobody wants its result any more."""
        with self._lock:
            if key not in self._seen:
                return None
            process = subprocess.Popen(  # noqa: S603 -- our own module
                [*self.command, str(path)],
                env=openblas.environment() | os.environ | dict(work.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._processes[key] = process
            with suppress(OSError):  # where that is forbidden, it takes its share like any other
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
            self._seen[key] = replace(self._seen[key], state=JobState.RUNNING, message="")
            return process

    def _end(self, key: tuple[str, str], status: int, said: str) -> None:
        with self._lock:
            self._processes.pop(key, None)
            if key not in self._seen:
                return
            state = JobState.FAILED if status else JobState.SUCCEEDED
            reason = ("Killed" if status < 0 else "AggregationFailed") if status else ""
            self._seen[key] = replace(self._seen[key], state=state, exit_code=abs(status) + 128 * (status < 0), reason=reason, message=said)
        self.on_end(key[0])


def _result(process: "subprocess.Popen[str]", seconds: float) -> tuple[int, str]:
    """The exit status (negative for a signal), and the end of what the process said."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return _STOPPED, f"not done within {seconds:.0f} s"
    return process.returncode, said.strip()[-_KEPT_CHARACTERS:]
