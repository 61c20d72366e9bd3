"""The job backend: what a run's jobs are, and what `local` (processes of this machine) and `cluster` (Kubernetes Jobs) both offer.

Values and a protocol only. The reconciler starts jobs under deterministic names, observes all of them, and discards those that
are no longer wanted; it never blocks on one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from fedpipe_trainer.contract import Progress


class TaskKind(StrEnum):
    """The kinds of work. The trainer's contract has the same names for those that it does: all but `plan` and `aggregate`."""

    PROFILE = "profile"
    TRAIN = "train"
    EVALUATE = "evaluate"
    DRY_EXPORT = "dry-export"
    EXPORT = "export"
    PLAN = "plan"
    AGGREGATE = "aggregate"

    @property
    def is_operators(self) -> bool:
        """Whether the operator does it itself, in a process of its own (`fedpipe_operator.worker`); a trainer does the others."""
        return self in {TaskKind.PLAN, TaskKind.AGGREGATE}


class JobState(StrEnum):
    """The state of a job."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


ACTIVE_STATES: Final = (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One attempt at one task. The name is derived from the other fields (`names.job`) and is its identity."""

    name: str
    kind: TaskKind
    site: str = ""
    """Empty for what concerns the whole run: an export and its dry run, and the operator's own work."""
    round: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class JobResources:
    """What a job may use (None: no limit), and what it is expected to use."""

    memory_bytes: int | None = None
    cpus: int | None = None
    expected_bytes: int | None = None
    """The plan's forecast of memory, which a scheduler is asked to reserve. Not a limit."""
    update_bytes: int = 0
    """Of all updates that an aggregation reads. Not a limit: it decides where the aggregation runs on a cluster."""
    cache: str | None = None
    """The folder of the site's cache, as the trainer sees it; None: the site has no volume for one."""

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Bytes of memory and number of processors: what a process is started with, and keeps for every task that it performs."""
        return self.memory_bytes, self.cpus


@dataclass(frozen=True)
class JobStatus:
    """A job as it was last observed."""

    job: Job
    state: JobState
    started_at: float
    """Unix seconds of its `start`, the time in the queue included."""
    exit_code: int | None = None
    """Set when it ended; 128 + n if signal n ended it."""
    reason: str = ""
    """One CamelCase word if it failed, or if it is blocked."""
    message: str = ""
    is_final: bool = False
    """Whether it failed for a cause that another attempt would meet again."""
    progress: Progress | None = None
    """The newest line of progress."""
    running_since: float | None = None
    """Unix seconds, where that is known."""
    in_queue_since: float | None = None
    """Unix seconds since when a queue holds it, or it waits for a node that an autoscaler adds; None: neither."""
    admitted_at: float | None = None
    """Unix seconds of the end of the last such wait; None if there was none, or it is not over."""
    renewed_at: float | None = None
    """Unix seconds when its task was last made anew while it waited; None if it was not, or that is not known."""


class JobBackend(Protocol):
    """Runs jobs by name. Raises `errors.TransientError` or `errors.UserError`."""

    def start(self, job: Job, task_json: str, resources: JobResources) -> None:
        """Run the task, unless a job of this name exists: one that waits in a queue gets the task in place of the one it has."""

    def observe(self) -> Mapping[str, JobStatus]:
        """Every job that was started and not discarded, by name; ended ones too."""

    def discard(self, name: str) -> None:
        """End a job and forget it. A job that does not exist is no error."""
