"""The operator's own work (planning, aggregation) in processes of its pod: no reconcile waits for one, and none outlives the operator."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fedpipe_operator.aggregation import openblas
from fedpipe_operator.api import Reason
from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.fairness import DueKey, Load, Running, next_keys
from fedpipe_operator.store.s3 import CREDENTIAL_VARIABLES

_MAX_CONCURRENT: Final = 2
_HELD_SECONDS: Final = 30.0
"""After which a process, whose store may be slow, no longer delays those of other namespaces."""
_MAX_PROCESSES: Final = 6
"""Of which each has a few hundred MiB."""
_SURE_SECONDS: Final = 600.0
"""A process has its place so long, however many wait. What takes longer is work for a Job."""
_COMMAND: Final = (sys.executable, "-m", "fedpipe_operator.worker")
_STOPPED: Final = -9
_MESSAGE_MAX: Final = 1000
_NICENESS: Final = 10
"""Reconciles have priority over this work, which takes seconds anyway."""
_LONGEST: Final = 86400.0
"""Seconds that a process may take, whatever the run's deadline: a wait for 25 days or more raises, and would leave it without one."""
_EVICTED: Final = (
    f"it had taken more than {_SURE_SECONDS / 60:.0f} minutes when another namespace waited, and all {_MAX_PROCESSES} places were taken:"
    " see whether the store is slow; a Job takes what time it needs (aggregationJobThreshold)"
)
_FAILED: Final = {TaskKind.PLAN: Reason.PLANNING_FAILED, TaskKind.AGGREGATE: Reason.AGGREGATION_FAILED}


@dataclass(frozen=True)
class _Launch:
    """What a process is started with."""

    task_json: str
    environment: Mapping[str, str]
    seconds: float
    """The deadline, counted from its start."""


@dataclass(frozen=True)
class _Place:
    """A job that waits for a process, or has one."""

    namespace: str
    since: float
    """Clock seconds."""
    launch: _Launch


@dataclass
class Workers:
    """Processes by the uid of their run and the name of their job. Thread-safe."""

    clock: Callable[[], float]
    command: tuple[str, ...] = _COMMAND
    memory_bytes: int = resource.RLIM_INFINITY
    """What each process may allocate: the kernel would end the whole container at its limit, and all runs' reconciles with it."""
    on_end: Callable[[str], None] = lambda _uid: None
    """Called with the uid of the run whose process ended."""
    _statuses: dict[tuple[str, str], JobStatus] = field(default_factory=dict)
    _processes: dict[tuple[str, str], subprocess.Popen[str]] = field(default_factory=dict)
    _waiting: dict[tuple[str, str], _Place] = field(default_factory=dict)
    _running: dict[tuple[str, str], _Place] = field(default_factory=dict)
    _last_turns: dict[Hashable, float] = field(default_factory=dict)
    """By namespace."""
    _evicted: set[tuple[str, str]] = field(default_factory=set)
    """Those that were ended for others."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_MAX_PROCESSES, "worker"))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(  # noqa: PLR0913 -- whose job, what it does, and with what
        self, namespace: str, uid: str, job: Job, task_json: str, *, environment: Mapping[str, str], seconds: float
    ) -> None:
        """Queue the task, unless a job of this name exists."""
        key = (uid, job.name)
        with self._lock:
            if key not in self._statuses:
                waits_for = "an earlier process of the operator to end"
                self._statuses[key] = JobStatus(job=job, state=JobState.PENDING, started_at=self.clock(), message=waits_for)
                self._waiting[key] = _Place(namespace, self.clock(), _Launch(task_json, environment, seconds))
            self._start_next()

    def statuses(self, uid: str) -> dict[str, JobStatus]:
        """The jobs of a run by name; ended ones too."""
        with self._lock:
            return {name: status for (of, name), status in self._statuses.items() if of == uid}

    def discard(self, uid: str, name: str = "") -> None:
        """End and forget a job of the run, or all of them."""
        with self._lock:
            for key in [key for key in self._statuses if key[0] == uid and name in ("", key[1])]:
                del self._statuses[key]
                self._waiting.pop(key, None)
                if key in self._processes:
                    self._processes[key].kill()

    def close(self) -> None:
        """End all of them."""
        self.kill()
        self._pool.shutdown(cancel_futures=True)

    def kill(self) -> None:
        """End all of them without waiting for that."""
        with self._lock:
            self._statuses.clear()
            self._waiting.clear()
            for process in self._processes.values():
                process.kill()

    def _start_next(self) -> None:
        """Give places to those that come next. The caller holds the lock; a reconcile of a run that waits comes by again."""
        now = self.clock()
        places = [*self._waiting.values(), *self._running.values()]
        due = [DueKey(place.since, key, place.namespace) for key, place in self._waiting.items()]
        running = [Running(place.namespace, place.since) for place in self._running.values()]
        load = Load(running, frozenset(place.namespace for place in places), self._last_turns)
        for one in next_keys(due, load, limit=_MAX_CONCURRENT, held_seconds=_HELD_SECONDS, now=now)[: _MAX_PROCESSES - len(running)]:
            place = self._waiting.pop(one.key)
            self._running[one.key] = replace(place, since=now)
            self._last_turns[place.namespace] = now
            self._pool.submit(self._run, one.key, place.launch)
        self._make_room(now)

    def _make_room(self, now: float) -> None:
        """End the process that began first, if its time is over, no place is left, and a namespace that has none waits for one."""
        served = {place.namespace for place in self._running.values()}
        if len(self._running) < _MAX_PROCESSES or all(place.namespace in served for place in self._waiting.values()):
            return
        key, place = min(self._running.items(), key=lambda item: item[1].since)
        if now - place.since >= _SURE_SECONDS and key in self._processes:
            self._evicted.add(key)
            self._processes[key].kill()

    def _run(self, key: tuple[str, str], launch: _Launch) -> None:
        try:
            self._execute(key, launch)
        except OSError as error:  # no space for the task file, or no memory for a process: the next attempt may succeed
            self._end(key, 1, f"it could not be started: {error}")
        finally:
            with self._lock:
                self._running.pop(key, None)
                self._start_next()

    def _execute(self, key: tuple[str, str], launch: _Launch) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "task.json"
            path.write_text(launch.task_json, encoding="utf-8")
            started = self._spawn(key, path, launch)
            if started is not None:
                status, message = _result(started, launch.seconds)
                self._end(key, status, _EVICTED if key in self._evicted else message)

    def _spawn(self, key: tuple[str, str], path: Path, launch: _Launch) -> "subprocess.Popen[str] | None":
        """The process, or None if the job was discarded."""
        with self._lock:
            if key not in self._statuses:
                return None
            process = subprocess.Popen(  # noqa: S603 -- our own module
                [*self.command, str(path)],
                env=openblas.environment() | without_key_pair(os.environ) | dict(launch.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._processes[key] = process
            with suppress(OSError):  # it may have ended already
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (self.memory_bytes, self.memory_bytes))
            with suppress(OSError):  # where that is forbidden, it runs at normal priority
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
            self._statuses[key] = replace(self._statuses[key], state=JobState.RUNNING, message="")
            return process

    def _end(self, key: tuple[str, str], status: int, message: str) -> None:
        with self._lock:
            self._processes.pop(key, None)
            self._evicted.discard(key)
            if key not in self._statuses:
                return
            state = JobState.FAILED if status else JobState.SUCCEEDED
            before = self._statuses[key]
            reason = ("Killed" if status < 0 else _FAILED[before.job.kind]) if status else ""
            self._statuses[key] = replace(
                before, state=state, exit_code=abs(status) + 128 * (status < 0), reason=str(reason), message=message
            )
        self.on_end(key[0])


def without_key_pair(environ: Mapping[str, str]) -> dict[str, str]:
    """The operator's environment without its own key pair: a worker process signs with the run's, or not at all."""
    return {name: value for name, value in environ.items() if name not in CREDENTIAL_VARIABLES}


def _result(process: "subprocess.Popen[str]", seconds: float) -> tuple[int, str]:
    """The exit status (negative for a signal), and the end of the process's stderr."""
    try:
        _, stderr = process.communicate(timeout=min(seconds, _LONGEST))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return _STOPPED, f"exceeded the deadline of {min(seconds, _LONGEST):.0f} s"
    return process.returncode, stderr.strip()[-_MESSAGE_MAX:]
