"""Writes the progress of a task to the store, where the task has an upload for it.

A slow store must not slow the training down, and one that does not take progress must not end it: the upload is in a thread of its own,
is tried once, and a failure is a line in the log.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Final

from fedpipe_trainer import transfer
from fedpipe_trainer.contract import PROGRESS_SECONDS, Progress, Task, TaskProgress, Upload
from fedpipe_trainer.contract.result import MAX_LOSS
from fedpipe_trainer.errors import TaskFailed

_SLOWEST: Final = 1e-9
"""Tokens a second: less is not told."""

_LOG = logging.getLogger(__name__)


def _send_once(path: Path, to: Upload) -> None:
    transfer.send(path, to, attempts=1)


@dataclass
class ProgressUploads:
    """The uploads of one task's progress."""

    task: Task
    folder: Path
    send: Callable[[Path, Upload], object] = _send_once
    clock: Callable[[], float] = time.monotonic
    _due: float = -math.inf
    _sending: Thread | None = None
    _has_failed: bool = False

    def write(self, progress: Progress) -> None:
        """Begin to upload this, unless the last upload began less than 15 s ago or is still under way. It neither waits nor fails."""
        now, to = self.clock(), self.task.progress
        if to is None or now < self._due or (self._sending is not None and self._sending.is_alive()):
            return
        self._due = now + PROGRESS_SECONDS
        path = self.folder / "progress.json"
        try:
            # Not in the thread: it may outlive the task, and a file that it made then would keep the folder from being removed.
            path.write_text(progress_of(self.task, progress).to_json(), encoding="utf-8")
        except OSError as error:
            self._report(error)
            return
        self._sending = Thread(target=self._upload, args=(path, to), name="progress", daemon=True)
        self._sending.start()

    def wait(self) -> None:
        """Wait until the upload that is under way has ended."""
        if self._sending is not None:
            self._sending.join()

    def _upload(self, path: Path, to: Upload) -> None:
        try:
            self.send(path, to)
        except (TaskFailed, OSError) as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        """One line for all failures: a store that does not take progress does so every 15 seconds."""
        if not self._has_failed:
            _LOG.warning("the progress cannot be written, and the task goes on without: %s", error)
        self._has_failed = True


def progress_of(task: Task, progress: Progress) -> TaskProgress:
    """What is written of this progress of a task; a figure that no reader would take is left out."""
    loss, speed = progress.loss, progress.tokens_per_second
    return TaskProgress(
        run=task.run,
        site=task.site,
        round=task.round,
        attempt=task.attempt,
        phase=progress.phase,
        step=progress.step,
        steps=progress.steps,
        loss=loss if loss is not None and 0 <= loss <= MAX_LOSS else None,
        tokens_per_second=speed if speed is not None and _SLOWEST <= speed < math.inf else None,
    )
