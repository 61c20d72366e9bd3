"""`LocalBackend`: jobs as processes of this machine, one long-lived trainer for each site.

One thread (`_supervise`) starts every process, because the kernel counts the thread that started a process as the parent
whose death ends it; it also watches memory and kills what does not end. One thread a process reads what it says.
All state is guarded by one condition, which every change notifies.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedpipe_operator.backend import Job, JobState, JobStatus, Limits, TaskKind
from fedpipe_operator.local import children, exit_status, job_folder, memory_limit
from fedpipe_operator.local.children import Child
from fedpipe_operator.local.process_lock import PROCESSES_LOCK, acquire_process_lock
from fedpipe_operator.local.scheduling import Give, MakeRoom, Room, Spawn, next_turn, place_of
from fedpipe_trainer.contract import Progress, TaskEnded

_LINE: TypeAdapter[TaskEnded | Progress] = TypeAdapter(TaskEnded | Progress)
_WATCH_SECONDS = 0.2  # a look costs about 2 ms of processor time a process
_UNKILLABLE_SECONDS = 10.0
"""How long a process that was killed may stay in the kernel before we leave it there."""


@dataclass(frozen=True)
class ProcessSettings:
    """How processes are run and kept."""

    trainer: tuple[str, ...] = (sys.executable, "-m", "fedpipe_trainer", "--serve")
    """Takes task files on its standard input."""
    worker: tuple[str, ...] = (sys.executable, "-m", "fedpipe_operator.aggregation.worker")
    """Takes one task file as its argument."""
    reuse: bool = True
    """Whether a site's trainer outlives its task."""
    grace_seconds: float = 60.0
    """How long a process that is asked to end has to leave its checkpoint."""
    cgroup: Path | None = field(default_factory=memory_limit.own_group)
    """The cgroup's folder in which sites get cgroups of their own; None: their resident set is watched."""
    processors: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """How many the sites at work have among them."""


class LocalBackend:
    """A `JobBackend` whose jobs leave their folders in `<folder>/jobs/`, and its processes what they log between tasks in `processes/`.

    `max_concurrent` is how many sites may be at work at once. `clock` gives Unix seconds, for the records only.

    Raises:
        UserError: `StillAtWork`, another operator or the trainers of a killed one are at work in this folder;
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
        for part in ("jobs", "processes"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        self._seen = job_folder.ended_jobs(self._folder / "jobs")
        self._lock = acquire_process_lock(self._folder / PROCESSES_LOCK, self._settings.grace_seconds)
        self._waiting: dict[str, Limits] = {}
        self._children: dict[str, Child] = {}
        self._condition = threading.Condition()
        self._has_news = bool(self._seen)
        self._is_closing = False
        self._supervisor = threading.Thread(target=self._supervise, name="local-door", daemon=True)
        self._supervisor.start()

    def start(self, job: Job, task_json: str, limits: Limits) -> None:
        """Have the task done when its turn comes, unless a job of this name is there already."""
        with self._condition:
            if job.name in self._seen:
                return
            job_folder.lay_out(self._job_folder(job.name), task_json)
            self._waiting[job.name] = limits
            self._see(JobStatus(job=job, state=JobState.PENDING, started_at=self._clock()))

    def observe(self) -> Mapping[str, JobStatus]:
        """Every job that was started and not discarded, by name; those that ended before a restart included."""
        with self._condition:
            self._has_news = False
            return dict(self._seen)

    def wait(self, timeout: float) -> bool:
        """Wait until a job began or ended since the last `observe`, at most `timeout` seconds; whether one did."""
        with self._condition:
            return self._condition.wait_for(lambda: self._has_news, timeout)

    def discard(self, name: str) -> None:
        """End a job and forget it; its log stays."""
        with self._condition:
            self._waiting.pop(name, None)
            if self._seen.pop(name, None) is not None:
                (self._job_folder(name) / job_folder.EXIT).unlink(missing_ok=True)
            for child in self._children.values():
                if child.job == name:
                    child.job = None
                    children.ask_to_end(child, self._settings.grace_seconds)
            self._condition.notify_all()

    def close(self) -> None:
        """Ask every process to end, kill those that do not within the grace, and let go of the folder."""
        with self._condition:
            if self._is_closing:
                return
            self._is_closing = True
            for child in self._children.values():
                children.ask_to_end(child, self._settings.grace_seconds)
            self._condition.notify_all()
        self._supervisor.join(self._settings.grace_seconds + _UNKILLABLE_SECONDS)
        os.close(self._lock)

    def _supervise(self) -> None:
        with self._condition:
            while self._children or not self._is_closing:
                while not self._is_closing and self._take_turn():
                    pass
                for child in self._children.values():
                    self._watch(child)
                self._condition.wait(_WATCH_SECONDS if self._children else None)

    def _take_turn(self) -> bool:
        """Do the next thing that can be done; whether there was one."""
        waiting = [(self._seen[name].job, limits) for name, limits in self._waiting.items()]
        turn = next_turn(waiting, self._children, Room(self._max_concurrent, self._settings.processors))
        match turn:
            case Spawn(job, place):
                self._spawn(job, place)
            case Give(job, place):
                self._give(job, self._children[place])
            case MakeRoom(place):
                children.ask_to_end(self._children[place], self._settings.grace_seconds)
        return turn is not None

    def _spawn(self, name: str, place: str) -> None:
        """Start the process in which a job is done, and give it the job."""
        job, limits = self._seen[name].job, self._waiting[name]
        serves = job.kind is not TaskKind.AGGREGATE
        command = self._settings.trainer if serves else (*self._settings.worker, str(self._job_folder(name) / job_folder.TASK))
        log = self._process_log(place) if serves else self._job_folder(name) / job_folder.LOG
        try:
            group = self._group(place, limits)
            env = children.environment(os.environ, limits, for_operator=not serves)
            process = children.spawn(command, env=env, log=log, lock=self._lock, group=group)
        except OSError as error:
            del self._waiting[name]
            job_folder.add_to_log(self._job_folder(name) / job_folder.LOG, f"cannot start {command[0]}: {error}")
            self._end(name, exit_status.end_of_task(exit_status.CANNOT_RUN))
            return
        child = Child(place=place, process=process, limits=limits, serves=serves, group=group)
        self._children[place] = child
        self._give(name, child)
        threading.Thread(target=self._listen, args=(child,), name=f"local-door-{place}", daemon=True).start()

    def _group(self, place: str, limits: Limits) -> Path | None:
        if self._settings.cgroup is None or limits.memory_bytes is None:
            return None
        return memory_limit.make_group(self._settings.cgroup, f"fedpipe-{os.getpid()}-{place}", limits.memory_bytes)

    def _give(self, name: str, child: Child) -> None:
        del self._waiting[name]
        child.job = name
        taken = [other.cpus for other in self._children.values() if other is not child and other.job]
        child.cpus = children.least_used(os.sched_getaffinity(0), taken, child.limits.cpus)
        children.pin(child.process.pid, child.cpus)
        children.send_line(child, str(self._job_folder(name) / job_folder.TASK))
        self._see(replace(self._seen[name], state=JobState.RUNNING))

    def _watch(self, child: Child) -> None:
        if child.kill_at is not None and time.monotonic() > child.kill_at:
            children.kill(child)
        if not child.over_limit and children.is_over_limit(child):
            child.over_limit = True
            said = f"the resident set passed the limit of {child.limits.memory_bytes} bytes: ended as the kernel would, by SIGKILL"
            job_folder.add_to_log(self._log_of(child), said)
            children.kill(child)

    def _listen(self, child: Child) -> None:
        """Read what a process says until it is gone."""
        for line in child.output:
            with self._condition:
                self._hear(child, line)
        status = child.process.wait()
        with self._condition:
            self._on_exit(child, status)

    def _hear(self, child: Child, line: str) -> None:
        try:
            said = _LINE.validate_json(line)
        except ValidationError:
            job_folder.add_to_log(self._log_of(child), line)
            return
        if child.job is None:
            return
        if isinstance(said, Progress):
            self._seen[child.job] = replace(self._seen[child.job], progress=said)
        elif said.ended == str(self._job_folder(child.job) / job_folder.TASK):
            name, child.job = child.job, None
            # What failed, or is no site's, does not get another task: it would start from what this one left.
            if said.exit_code or not self._settings.reuse or not self._seen[name].job.site:
                children.ask_to_end(child, self._settings.grace_seconds)
            self._end(name, exit_status.end_of_task(said.exit_code))

    def _on_exit(self, child: Child, status: int) -> None:
        children.kill(child)  # what it may have started
        children.close_pipes(child)
        for_memory = child.over_limit
        if child.group is not None:
            if memory_limit.kills(child.group):
                for_memory = True
                job_folder.add_to_log(
                    self._log_of(child), f"the kernel ended it at the limit of {child.limits.memory_bytes} bytes of its cgroup"
                )
            memory_limit.remove_group(child.group)
        if child.job is not None:
            self._end(child.job, exit_status.end_of_process(status, for_memory=for_memory, serves=child.serves))
        del self._children[child.place]
        self._condition.notify_all()

    def _end(self, name: str, end: exit_status.End) -> None:
        folder, place = self._job_folder(name), place_of(self._seen[name].job)
        seen = exit_status.ended(self._seen[name], end, (folder / job_folder.LOG, self._process_log(place)))
        job_folder.record_end(folder, seen, self._clock())
        self._see(seen)

    def _see(self, seen: JobStatus) -> None:
        self._seen[seen.job.name] = seen
        self._has_news = True
        self._condition.notify_all()

    def _log_of(self, child: Child) -> Path:
        """Where to write about a process: to the log of its task, or to its own between tasks."""
        return self._job_folder(child.job) / job_folder.LOG if child.job else self._process_log(child.place)

    def _process_log(self, place: str) -> Path:
        return self._folder / "processes" / f"{place}.log"

    def _job_folder(self, name: str) -> Path:
        return self._folder / "jobs" / name
