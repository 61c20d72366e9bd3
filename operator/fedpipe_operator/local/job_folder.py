"""A job's folder, which survives a restart of the operator: `task.json`, `log`, and `exit.json` once the job ended.

The meaning of an exit status is here too: the state, the reason and the message of an ended job.
"""

import logging
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_trainer.contract import ExitCode, FailureReason, Wire

TASK = "task.json"
LOG = "log"
EXIT = "exit.json"

CANNOT_RUN = 126
"""The exit code that a shell gives for a program that cannot be run."""

_KILLED = 128 + signal.SIGKILL
_REASONS = {int(reason.exit_code): str(reason) for reason in FailureReason} | {CANNOT_RUN: "CannotRun"}
_LAST_BYTES = 4096

_LOG = logging.getLogger(__name__)


class Exit(Wire):
    """The content of `exit.json`: the job and how it ended."""

    kind: TaskKind
    site: str
    round: int
    attempt: int
    exit_code: int
    reason: str
    message: str
    started_at: float
    running_since: float | None = None
    ended_at: float


@dataclass(frozen=True)
class ExitStatus:
    """How a job ended: the exit code as a shell reports it, and a CamelCase reason if it failed."""

    code: int
    reason: str = ""


def task_exit_status(exit_code: int) -> ExitStatus:
    """The status of a task whose trainer reported this exit code."""
    return ExitStatus(exit_code, "" if exit_code == ExitCode.OK else _REASONS.get(exit_code, "Died"))


def process_exit_status(returncode: int, *, out_of_memory: bool, serves: bool) -> ExitStatus:
    """The status of a task whose process ended; `returncode` is negative for a signal, as in `Popen`."""
    if out_of_memory:
        return ExitStatus(_KILLED, str(FailureReason.OUT_OF_MEMORY))
    if returncode == -signal.SIGKILL:
        return ExitStatus(_KILLED, "Killed")
    if returncode == 0 and serves:
        # It ended without reporting the result of its task, so the task did not succeed.
        return ExitStatus(ExitCode.UNEXPECTED, "Died")
    return task_exit_status(128 - returncode if returncode < 0 else returncode)


def with_exit_status(status: JobStatus, ended: ExitStatus, logs: tuple[Path, ...]) -> JobStatus:
    """The status of a job that ended. The message of a failure is the last line of the first of `logs` that has one."""
    state = JobState.FAILED if ended.code else JobState.SUCCEEDED
    cause = next((f"{line} ({log})" for log in logs if (line := last_line(log))), f"nothing in {logs[0]}")
    message = f"exit code {ended.code}: {cause}" if ended.code else ""
    return replace(status, state=state, exit_code=ended.code, reason=ended.reason, message=message)


def write_task(folder: Path, task_json: str) -> None:
    """Make a job's folder and write its task.

    Raises:
        UserError: `TaskNotWritten`, the disk is full or the folder is not writable.
    """
    try:
        folder.mkdir(exist_ok=True)
        (folder / TASK).write_text(task_json, encoding="utf-8")
    except OSError as error:
        advice = "free space or make the folder writable, then run the same command again"
        raise UserError("TaskNotWritten", f"cannot write {folder / TASK}: {error.strerror}; {advice}") from error


def read_ended_jobs(jobs: Path) -> dict[str, JobStatus]:
    """The jobs in the folder `jobs` that ended, by name. A folder without `exit.json` is of a job that must run again.

    Raises:
        UserError: `JobUnreadable`, an `exit.json` is damaged or of another version.
    """
    return {file.parent.name: _read_exit(file) for file in sorted(jobs.glob(f"*/{EXIT}"))}


def _read_exit(file: Path) -> JobStatus:
    try:
        record = Exit.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise UserError("JobUnreadable", f"{file} is damaged or of another version: remove it, or start over with --fresh") from error
    return JobStatus(
        job=Job(name=file.parent.name, kind=record.kind, site=record.site, round=record.round, attempt=record.attempt),
        state=JobState.FAILED if record.exit_code else JobState.SUCCEEDED,
        started_at=record.started_at,
        exit_code=record.exit_code,
        reason=record.reason,
        message=record.message,
        running_since=record.running_since,
    )


def record_end(folder: Path, status: JobStatus, ended_at: float) -> None:
    """Write `exit.json` atomically; if that fails, log that a restart will run the job again."""
    job = status.job
    record = Exit(
        kind=job.kind,
        site=job.site,
        round=job.round,
        attempt=job.attempt,
        exit_code=status.exit_code or 0,
        reason=status.reason,
        message=status.message,
        started_at=status.started_at,
        running_since=status.running_since,
        ended_at=ended_at,
    )
    unfinished = folder / f".{EXIT}"
    try:
        unfinished.write_text(record.to_json())
        unfinished.replace(folder / EXIT)
    except OSError as error:
        _LOG.warning("cannot record the end of %s (%s): after a restart it will run again", job.name, error.strerror)


def append_to_log(log: Path, line: str) -> None:
    """Append a line to a job's log. If that fails, the line goes to the operator's log: a full disk must not fail the job."""
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(line.rstrip("\n") + "\n")
    except OSError as error:
        _LOG.warning("cannot write %s (%s): %s", log, error.strerror, line)


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, or an empty string. Only the last 4 KiB are read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
