"""`LocalBackend`: jobs as processes of this machine, one long-lived trainer for each site.

One thread (`_supervise`) starts every process, because the kernel sends the parent-death signal when the thread that started
the process ends; it also enforces memory limits and kills processes that do not end in time. For each process, one thread reads
its output. All state is guarded by one condition, which every change notifies.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedpipe_operator.backend import Job, JobResources, JobState, JobStatus
from fedpipe_operator.formatting import bytes_text
from fedpipe_operator.local import children, job_folder, memory_limit
from fedpipe_operator.local.children import Child
from fedpipe_operator.local.run_folder import PROCESSES_LOCK, acquire_process_lock
from fedpipe_operator.local.scheduling import Assign, Evict, MachineLimits, Spawn, next_decision, slot_of
from fedpipe_trainer.contract import Progress, TaskEnded

_LINE: TypeAdapter[TaskEnded | Progress] = TypeAdapter(TaskEnded | Progress)
_WATCH_SECONDS = 0.2  # one check costs about 2 ms of processor time for each process
_KILL_SECONDS = 10.0
"""How long `close` waits after SIGKILL for a process to end."""


@dataclass(frozen=True)
class ProcessSettings:
    """How the processes of jobs are run."""

    trainer: tuple[str, ...] = (sys.executable, "-m", "fedpipe_trainer", "--serve")
    """Command that reads the paths of task files from its standard input."""
    worker: tuple[str, ...] = (sys.executable, "-m", "fedpipe_operator.worker")
    """Command that takes the path of one task file as its last argument."""
    reuse: bool = True
    """Whether the process of a site takes the next task of that site."""
    grace_seconds: float = 60.0
    """Seconds from SIGTERM to SIGKILL, in which a trainer leaves its checkpoint."""
    cgroup: Path | None = field(default_factory=memory_limit.own_group)
    """The folder of the cgroup in which sites get child cgroups; None: their resident set is watched instead."""
    processors: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """How many processors the active sites share."""


class LocalBackend:
    """A `JobBackend` with the folders of its jobs in `<folder>/jobs/`, and what processes log between tasks in `<folder>/processes/`.

    `max_concurrent` is how many sites may be active at the same time. `clock` gives Unix seconds, for the records only.

    Raises:
        UserError: `ProcessesRunning`, another operator or the trainers of a killed one still run in this folder;
            `JobUnreadable`, a record of an ended job is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_concurrent: int,
        processes: ProcessSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._max_concurrent, self._clock = folder.resolve(), max_concurrent, clock
        self._settings = processes or ProcessSettings()
        for name in ("jobs", "processes"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self._statuses = job_folder.read_ended_jobs(self._folder / "jobs")
        self._lock = acquire_process_lock(self._folder / PROCESSES_LOCK, self._settings.grace_seconds)
        self._waiting: dict[str, JobResources] = {}
        self._children: dict[str, Child] = {}
        self._condition = threading.Condition()
        self._changed = bool(self._statuses)
        self._is_closing = False
        self._supervisor = threading.Thread(target=self._supervise, name="local-backend", daemon=True)
        self._supervisor.start()

    def start(self, job: Job, task_json: str, resources: JobResources) -> None:
        """Queue the task, unless a job of this name exists."""
        with self._condition:
            if job.name in self._statuses:
                return
            job_folder.write_task(self._job_folder(job.name), task_json)
            self._waiting[job.name] = resources
            self._update(JobStatus(job=job, state=JobState.PENDING, started_at=self._clock()))

    def observe(self) -> Mapping[str, JobStatus]:
        """Every job that was started and not discarded, by name, including those that ended before a restart."""
        with self._condition:
            self._changed = False
            return dict(self._statuses)

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until a job starts or ends after the last `observe`; whether one did."""
        with self._condition:
            return self._condition.wait_for(lambda: self._changed, timeout)

    def discard(self, name: str) -> None:
        """End a job and remove its record; its log stays."""
        with self._condition:
            self._waiting.pop(name, None)
            if self._statuses.pop(name, None) is not None:
                (self._job_folder(name) / job_folder.EXIT).unlink(missing_ok=True)
            for child in self._children.values():
                if child.job == name:
                    child.job = None
                    children.terminate(child, self._settings.grace_seconds)
            self._condition.notify_all()

    def close(self) -> None:
        """Terminate every process, kill those that do not end within the grace period, and release the lock of the folder."""
        with self._condition:
            if self._is_closing:
                return
            self._is_closing = True
            for child in self._children.values():
                children.terminate(child, self._settings.grace_seconds)
            self._condition.notify_all()
        self._supervisor.join(self._settings.grace_seconds + _KILL_SECONDS)
        os.close(self._lock)

    def _supervise(self) -> None:
        with self._condition:
            while self._children or not self._is_closing:
                while not self._is_closing and self._schedule():
                    pass
                for child in self._children.values():
                    self._enforce_limits(child)
                self._condition.wait(_WATCH_SECONDS if self._children else None)

    def _schedule(self) -> bool:
        """Carry out the next scheduling decision; whether there was one."""
        waiting = [(self._statuses[name].job, resources) for name, resources in self._waiting.items()]
        decision = next_decision(waiting, self._children, MachineLimits(self._max_concurrent, self._settings.processors))
        match decision:
            case Spawn(job, slot):
                self._spawn(job, slot)
            case Assign(job, slot):
                self._assign(job, self._children[slot])
            case Evict(slot):
                children.terminate(self._children[slot], self._settings.grace_seconds)
        return decision is not None

    def _spawn(self, name: str, slot: str) -> None:
        """Start a process for a job and assign the job to it."""
        job, resources = self._statuses[name].job, self._waiting[name]
        serves = not job.kind.is_operators
        command = self._settings.trainer if serves else (*self._settings.worker, str(self._job_folder(name) / job_folder.TASK))
        log = self._process_log(slot) if serves else self._job_folder(name) / job_folder.LOG
        try:
            group = self._group(slot, resources)
            env = children.environment(os.environ, resources, for_operator=not serves)
            process = children.spawn(command, env=env, log=log, lock=self._lock, group=group)
        except OSError as error:
            del self._waiting[name]
            job_folder.append_to_log(self._job_folder(name) / job_folder.LOG, f"cannot start {command[0]}: {error}")
            self._finish(name, job_folder.task_exit_status(job_folder.CANNOT_RUN))
            return
        child = Child(slot=slot, process=process, resources=resources, serves=serves, group=group)
        self._children[slot] = child
        self._assign(name, child)
        threading.Thread(target=self._read_output, args=(child,), name=f"local-backend-{slot}", daemon=True).start()

    def _group(self, slot: str, resources: JobResources) -> Path | None:
        if self._settings.cgroup is None or resources.memory_bytes is None:
            return None
        return memory_limit.make_group(self._settings.cgroup, f"fedpipe-{os.getpid()}-{slot}", resources.memory_bytes)

    def _assign(self, name: str, child: Child) -> None:
        del self._waiting[name]
        child.job = name
        used = [other.cpus for other in self._children.values() if other is not child and other.job]
        child.cpus = children.least_loaded(os.sched_getaffinity(0), used, child.resources.cpus)
        children.pin(child.process.pid, child.cpus)
        children.send_line(child, str(self._job_folder(name) / job_folder.TASK))
        self._update(replace(self._statuses[name], state=JobState.RUNNING, running_since=self._clock()))

    def _enforce_limits(self, child: Child) -> None:
        if child.kill_at is not None and time.monotonic() > child.kill_at:
            children.kill(child)
        if not child.over_limit and children.is_over_limit(child):
            child.over_limit = True
            message = f"the resident set exceeded the limit of {child.resources.memory_bytes} bytes: the process was killed (SIGKILL)"
            job_folder.append_to_log(self._log_file(child), message)
            children.kill(child)

    def _read_output(self, child: Child) -> None:
        """Read the output of a process until it ends."""
        for line in child.stdout:
            with self._condition:
                self._handle_line(child, line)
        returncode = child.process.wait()
        with self._condition:
            self._on_exit(child, returncode)

    def _handle_line(self, child: Child, line: str) -> None:
        try:
            message = _LINE.validate_json(line)
        except ValidationError:
            job_folder.append_to_log(self._log_file(child), line)
            return
        if child.job is None:
            return
        if isinstance(message, Progress):
            self._statuses[child.job] = replace(self._statuses[child.job], progress=message)
        elif message.ended == str(self._job_folder(child.job) / job_folder.TASK):
            name, child.job = child.job, None
            # A process whose task failed, or that belongs to no site, gets no further task, which would inherit its state.
            if message.exit_code or not self._settings.reuse or not self._statuses[name].job.site:
                children.terminate(child, self._settings.grace_seconds)
            self._finish(name, job_folder.task_exit_status(message.exit_code))

    def _on_exit(self, child: Child, returncode: int) -> None:
        children.kill(child)  # the processes that it may have started
        children.close_pipes(child)
        out_of_memory = child.over_limit
        if child.group is not None:
            if memory_limit.count_kills(child.group):
                out_of_memory = True
                limit = bytes_text(child.resources.memory_bytes)
                message = f"the kernel killed the process at the memory limit of its cgroup, {limit}"
                job_folder.append_to_log(self._log_file(child), message)
            memory_limit.remove_group(child.group)
        if child.job is not None:
            self._finish(child.job, job_folder.process_exit_status(returncode, out_of_memory=out_of_memory, serves=child.serves))
        del self._children[child.slot]
        self._condition.notify_all()

    def _finish(self, name: str, ended: job_folder.ExitStatus) -> None:
        folder, slot = self._job_folder(name), slot_of(self._statuses[name].job)
        status = job_folder.with_exit_status(self._statuses[name], ended, (folder / job_folder.LOG, self._process_log(slot)))
        job_folder.record_end(folder, status, self._clock())
        self._update(status)

    def _update(self, status: JobStatus) -> None:
        self._statuses[status.job.name] = status
        self._changed = True
        self._condition.notify_all()

    def _log_file(self, child: Child) -> Path:
        """The log for messages about a process: that of its job, or between jobs its own."""
        return self._job_folder(child.job) / job_folder.LOG if child.job else self._process_log(child.slot)

    def _process_log(self, slot: str) -> Path:
        return self._folder / "processes" / f"{slot}.log"

    def _job_folder(self, name: str) -> Path:
        return self._folder / "jobs" / name
