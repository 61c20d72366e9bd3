"""The runtime of one task: its scratch folder, clock, progress lines and transfers.

`tasks.perform` creates a runtime for each task and passes it to the recipe, which needs nothing else beside the task.
The runtime also measures the task: bytes transferred, seconds by phase, peak memory.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypedDict

from fedpipe_trainer import peak_memory, transfer
from fedpipe_trainer.contract import (
    Artifact,
    FailureReason,
    Measured,
    PartsUpload,
    PiecesUpload,
    Progress,
    RunRef,
    Task,
    Upload,
)
from fedpipe_trainer.errors import TaskFailed

AnyTask = Task

_SOFTWARE: Final = ("torch", "transformers", "peft", "bitsandbytes", "fedpipe")


class ResultHeader(TypedDict):
    """The fields that all kinds of results have in common."""

    run: RunRef
    site: str
    round: int
    attempt: int
    measured: Measured
    software: dict[str, str]


@dataclass
class TaskRuntime:
    """What a recipe needs to perform one task. Each task has its own."""

    folder: Path
    """Scratch folder, removed after the task."""
    cache: Path
    """Folder that is kept from one task to the next, for downloaded base models and for activations."""
    write_progress: Callable[[Progress], None]
    stop_requested: Callable[[], bool]
    """Whether the task was requested to stop: then the recipe writes a checkpoint and raises `Terminated`."""
    memory_limit_bytes: int | None = None
    activation_cache_bytes: int | None = None
    """Bytes of activations that `cache` may hold; None: half of its free space."""
    _started: float = field(default_factory=time.monotonic)
    _phase_started: float = field(default_factory=time.monotonic)
    # Time outside of any phase (imports, for example) counts as loading, so that the phases add up.
    _phases: list[str] = field(default_factory=lambda: ["load"])
    _seconds: dict[str, float] = field(default_factory=dict)
    _downloaded: int = 0
    _uploaded: int = 0

    def __post_init__(self) -> None:
        peak_memory.reset_peak()

    def report(self, progress: Progress) -> None:
        """Report the progress of the task."""
        self.write_progress(progress)

    def elapsed_seconds(self) -> float:
        """Seconds since the start of the task."""
        return time.monotonic() - self._started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time in this context under `name`. In a nested phase, the time counts only for the inner one."""
        self._add_elapsed()
        self._phases.append(name)
        try:
            yield
        finally:
            self._add_elapsed()
            self._phases.pop()

    def download(self, url: str, to: Path, sha256: str | None = None, *, attempts: int = transfer.ATTEMPTS) -> Path:
        """Download an object into the file `to`, in at most so many attempts.

        Raises:
            TaskFailed: TransferFailed, the object does not exist, cannot be read, or does not have the hash `sha256`.
        """
        if self._receive(url, to, sha256=sha256, optional=False, attempts=attempts) is None:
            raise TaskFailed(FailureReason.TRANSFER_FAILED, f"{transfer.without_query(url)} does not exist")
        return to

    def download_if_exists(self, url: str, to: Path) -> bool:
        """Download an object into the file `to`; False if it does not exist, or the store may not reveal whether it exists."""
        return self._receive(url, to, sha256=None, optional=True) is not None

    def upload(
        self, path: Path, to: Upload | PartsUpload | PiecesUpload, *, attempts: int = transfer.ATTEMPTS, known: Artifact | None = None
    ) -> Artifact:
        """Upload a file, unless in pieces atomically, in at most so many attempts; its artifact, which the caller may know already."""
        with self.phase("transfer"):
            artifact = transfer.send(path, to, attempts=attempts, known=known)
        self._uploaded += artifact.size
        return artifact

    def measured(self) -> Measured:
        """The resources that the task has used so far."""
        self._add_elapsed()
        return Measured(
            device=peak_memory.device_name(),
            peak_memory_bytes=peak_memory.peak_bytes(),
            seconds=dict(self._seconds),
            uploaded_bytes=self._uploaded,
            downloaded_bytes=self._downloaded,
        )

    def result_header(self, task: AnyTask) -> ResultHeader:
        """The common fields of this task's result: `TrainResult(**runtime.result_header(task), …)`."""
        return ResultHeader(
            run=task.run,
            site=task.site,
            round=task.round,
            attempt=task.attempt,
            measured=self.measured(),
            software={name: version(name) for name in _SOFTWARE},
        )

    def _receive(self, url: str, to: Path, *, sha256: str | None, optional: bool, attempts: int = transfer.ATTEMPTS) -> int | None:
        with self.phase("transfer"):
            size = transfer.receive(url, to, sha256=sha256, optional=optional, attempts=attempts)
        self._downloaded += size or 0
        return size

    def _add_elapsed(self) -> None:
        now = time.monotonic()
        phase = self._phases[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._phase_started
        self._phase_started = now
