"""The trainer's log on standard error: for people, or in a pod as JSON, in the form of the operator's log.

As JSON, each line is an object that says which task it is about, and progress is a line of the log like the others. What the data's owner
would not show is in neither form: of an exception there are its types and its stack, without messages, which may quote the data.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fedpipe_trainer.contract import PROGRESS_SECONDS, DryExportTask, EvaluateTask, ExportTask, ProfileTask, Progress, TrainTask, redacted
from fedpipe_trainer.failures import stack_of
from fedpipe_trainer.settings import LogFormat

FIELDS: Final = ("namespace", "run", "uid", "round", "site", "attempt", "task")
"""What the lines that are written during a task are about."""

_LOG = logging.getLogger(__name__)
# One task is performed at a time. No context variable: threads, such as that of the uploads of progress, do not inherit its value.
_about: dict[str, object] = {}


@contextmanager
def about(task: ProfileTask | TrainTask | EvaluateTask | DryExportTask | ExportTask) -> Iterator[None]:
    """Have every line that is written in this context, by any thread, say that it is about this task."""
    of_run = {"namespace": task.run.namespace, "run": task.run.name, "uid": task.run.uid}
    _about.update(of_run | {"round": task.round, "site": task.site, "attempt": task.attempt, "task": task.kind})
    try:
        yield
    finally:
        _about.clear()


def fields() -> Mapping[str, object]:
    """What lines are about now, to tell another process of the same task."""
    return dict(_about)


def set_fields(told: Mapping[str, object]) -> None:
    """Have every line from now on say what another process's lines are about."""
    _about.update(told)


class JsonFormatter(logging.Formatter):
    """A line is an object of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document = {
            "timestamp": _time(record),
            "severity": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about,
            **_progress_of(record),
        }
        if record.exc_info and record.exc_info[1]:
            document["exception"] = stack_of(record.exc_info[1])
        return redacted(json.dumps(document, ensure_ascii=False, default=str))


class PlainFormatter(logging.Formatter):
    """A line is read by people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback in lines of its own."""
        return redacted(super().format(record))

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 -- logging's name and type
        """Without the exceptions' messages."""
        return stack_of(ei[1])


def configure(log_format: LogFormat) -> None:
    """Write the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)
    # Python's own hooks would print the message.
    sys.excepthook = lambda _kind, error, _trace: _LOG.critical("the process ends by an exception", exc_info=error)
    sys.unraisablehook = lambda ended: _LOG.error("an exception was raised where none can be handled", exc_info=ended.exc_value)
    threading.excepthook = lambda ended: _LOG.error("a thread ended by an exception", exc_info=ended.exc_value)
    # int8 layers log a line per call when their input is bf16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@dataclass
class ProgressLog:
    """Writes progress as lines of the log: the begin and the last step of each phase, and one every 15 seconds, however short a step is."""

    clock: Callable[[], float] = time.monotonic
    _phase: str = ""
    _due: float = 0.0

    def write(self, progress: Progress) -> None:
        """Write this progress, if it is time."""
        now = self.clock()
        if progress.phase == self._phase and now < self._due and progress.step != progress.steps:
            return
        self._phase, self._due = progress.phase, now + PROGRESS_SECONDS
        fields = progress.model_dump(mode="json", by_alias=True, exclude_none=True)
        steps = f" {progress.step}/{progress.steps}" if progress.steps else ""
        _LOG.info("%s%s", progress.phase, steps, extra={"progress": fields})


def _progress_of(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(record, "progress", {})
    return found


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
