"""What every door to work looks like: `local` (processes of this machine) and `cluster` (Jobs) both are one.

Values and a protocol only. The loop starts jobs by deterministic names, looks at all of them, and discards those
no longer wanted; it never waits for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from fedpipe_trainer.contract import Progress


class JobState(StrEnum):
    """Where a job stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


ACTIVE_STATES: Final = (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One attempt at one piece of work. The name is derived from the rest (`names.job`) and is its identity."""

    name: str
    kind: str
    """profile, train, evaluate, export or aggregate."""
    site: str = ""
    """Empty for export and aggregate."""
    round: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Limits:
    """What a job may use; None is no limit."""

    memory_bytes: int | None = None
    cpus: int | None = None
    expected_bytes: int | None = None
    """The memory that the plan foresees: what a scheduler is asked to set aside. No limit."""


@dataclass(frozen=True)
class JobStatus:
    """A job as it was last seen."""

    job: Job
    state: JobState
    started_at: float
    """Unix seconds of its `start`, the time it waited for its turn included."""
    exit_code: int | None = None
    """Set when it ended; 128 + n where signal n ended it."""
    reason: str = ""
    """One CamelCase word when it failed, or when it waits for something."""
    message: str = ""
    is_final: bool = False
    """Whether it failed of something that another attempt would meet again."""
    progress: Progress | None = None
    """The newest line of progress."""


class JobBackend(Protocol):
    """Work somewhere else, by name. Raises `errors.TransientError` or `errors.UserError`."""

    def start(self, job: Job, task_json: str, limits: Limits) -> None:
        """Have the task done, unless a job of this name is there already."""

    def observe(self) -> Mapping[str, JobStatus]:
        """Every job that was started and not discarded, by name, ended ones included."""

    def discard(self, name: str) -> None:
        """End a job and forget it. One that is not there is no error."""
