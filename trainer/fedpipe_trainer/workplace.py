"""Where one task works and what it tells the world meanwhile: its scratch folder, clock, progress lines and transfers.

`__main__` and `serve` make a workplace for each task and hand it to the recipe. It is the only thing a recipe needs
beside the task itself, and the only place that counts: bytes in and out, seconds by phase, peak memory.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypedDict

from fedpipe_trainer import peak_memory, transfer
from fedpipe_trainer.contract import Artifact, EvaluateTask, ExportTask, FailureReason, Measured, ProfileTask, Progress, RunRef, TrainTask
from fedpipe_trainer.errors import TaskFailed

AnyTask = ProfileTask | TrainTask | EvaluateTask | ExportTask

_SOFTWARE: Final = ("torch", "transformers", "peft", "bitsandbytes", "fedpipe")


class Heading(TypedDict):
    """The fields that every result begins with."""

    run: RunRef
    site: str
    round: int
    attempt: int
    measured: Measured
    software: dict[str, str]


@dataclass
class Workplace:
    """One task's surroundings; not shared, not reused."""

    folder: Path
    """Scratch, removed after the task."""
    cache: Path
    """Kept from task to task: base models fetched from elsewhere."""
    say: Callable[[Progress], None]
    stop_requested: Callable[[], bool]
    """Whether the task was asked to stop: the recipe leaves a checkpoint and raises `Terminated`."""
    memory_limit_bytes: int | None = None
    _started: float = field(default_factory=time.monotonic)
    _entered: float = field(default_factory=time.monotonic)
    # What happens outside any phase is imports and the like: it counts as loading, so that the phases add up.
    _phases: list[str] = field(default_factory=lambda: ["load"])
    _seconds: dict[str, float] = field(default_factory=dict)
    _downloaded: int = 0
    _uploaded: int = 0

    def __post_init__(self) -> None:
        peak_memory.reset_peak()

    def progress(self, progress: Progress) -> None:
        """Tell whoever watches how far the task is."""
        self.say(progress)

    def clock(self) -> float:
        """Seconds since the task's start."""
        return time.monotonic() - self._started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's seconds under `name`; a phase within a phase counts for the inner one alone."""
        self._settle()
        self._phases.append(name)
        try:
            yield
        finally:
            self._settle()
            self._phases.pop()

    def download(self, url: str, to: Path, sha256: str | None = None) -> Path:
        """Read an object into the file `to`.

        Raises:
            TaskFailed: TransferFailed when it is not there, out of reach, or not the one that `sha256` names.
        """
        if self._receive(url, to, sha256=sha256, optional=False) is None:
            raise TaskFailed(FailureReason.TRANSFER_FAILED, f"{transfer.without_query(url)} does not exist")
        return to

    def download_if_there(self, url: str, to: Path) -> bool:
        """Read an object into the file `to`; False when the store has no such object, or may not say that it has."""
        return self._receive(url, to, sha256=None, optional=True) is not None

    def upload(self, path: Path, url: str) -> Artifact:
        """Write a file to the store, whole or not at all; the artifact for the result."""
        with self.phase("transfer"):
            artifact = transfer.send(path, url)
        self._uploaded += artifact.size
        return artifact

    def measured(self) -> Measured:
        """What the task cost so far."""
        self._settle()
        return Measured(
            device=peak_memory.device_name(),
            peak_memory_bytes=peak_memory.peak_bytes(),
            seconds=dict(self._seconds),
            uploaded_bytes=self._uploaded,
            downloaded_bytes=self._downloaded,
        )

    def heading(self, task: AnyTask) -> Heading:
        """What every result of this task begins with: `TrainResult(**workplace.heading(task), …)`."""
        return Heading(
            run=task.run,
            site=task.site,
            round=task.round,
            attempt=task.attempt,
            measured=self.measured(),
            software={name: version(name) for name in _SOFTWARE},
        )

    def _receive(self, url: str, to: Path, *, sha256: str | None, optional: bool) -> int | None:
        with self.phase("transfer"):
            size = transfer.receive(url, to, sha256=sha256, optional=optional)
        self._downloaded += size or 0
        return size

    def _settle(self) -> None:
        now = time.monotonic()
        phase = self._phases[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._entered
        self._entered = now
