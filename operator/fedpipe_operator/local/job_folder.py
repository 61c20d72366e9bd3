"""A job's folder: `task.json` as it was given, `log`, and `exit.json` once it ended. The door's memory over a restart."""

import logging
import os
from pathlib import Path

from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_trainer.contract import Wire

TASK = "task.json"
LOG = "log"
EXIT = "exit.json"

_TAIL = 4096

_LOG = logging.getLogger(__name__)


class Exit(Wire):
    """How a job ended, and which one it was."""

    kind: TaskKind
    site: str
    round: int
    attempt: int
    exit_code: int
    reason: str
    message: str
    started_at: float
    ended_at: float


def lay_out(folder: Path, task_json: str) -> None:
    """Make a job's folder with its task.

    Raises:
        UserError: `TaskNotWritten`, the disk is full or the folder is not ours.
    """
    try:
        folder.mkdir(exist_ok=True)
        (folder / TASK).write_text(task_json, encoding="utf-8")
    except OSError as error:
        raise UserError("TaskNotWritten", f"{folder / TASK}: {error.strerror}; free space or let us write there, then go on") from error


def ended_jobs(jobs: Path) -> dict[str, JobStatus]:
    """The jobs below `jobs` that ended, by name. A folder without `exit.json` is a job to be done again.

    Raises:
        UserError: `JobUnreadable`, an `exit.json` is damaged or of another version.
    """
    return {file.parent.name: _read(file) for file in sorted(jobs.glob(f"*/{EXIT}"))}


def _read(file: Path) -> JobStatus:
    try:
        end = Exit.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise UserError("JobUnreadable", f"{file} is damaged or of another version: remove it, or start the run over") from error
    job = Job(name=file.parent.name, kind=end.kind, site=end.site, round=end.round, attempt=end.attempt)
    state = JobState.FAILED if end.exit_code else JobState.SUCCEEDED
    return JobStatus(job=job, state=state, started_at=end.started_at, exit_code=end.exit_code, reason=end.reason, message=end.message)


def record_end(folder: Path, seen: JobStatus, ended_at: float) -> None:
    """Write `exit.json` whole, or say in the log that a restart will do this job again."""
    job = seen.job
    end = Exit(
        kind=job.kind,
        site=job.site,
        round=job.round,
        attempt=job.attempt,
        exit_code=seen.exit_code or 0,
        reason=seen.reason,
        message=seen.message,
        started_at=seen.started_at,
        ended_at=ended_at,
    )
    unfinished = folder / f".{EXIT}"
    try:
        unfinished.write_text(end.to_json())
        unfinished.replace(folder / EXIT)
    except OSError as error:
        _LOG.warning("cannot record the end of %s (%s): after a restart it will be done again", job.name, error.strerror)


def add_to_log(log: Path, line: str) -> None:
    """Append a line of ours to a job's log; a full disk is no reason to lose the job over it."""
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(line.rstrip("\n") + "\n")
    except OSError as error:
        _LOG.warning("cannot write %s (%s): %s", log, error.strerror, line)


def last_line(log: Path) -> str:
    """The last line of a log that says something, or an empty string."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
