"""Pages drawn by processes of their own and kept as files: each report once for what it shows, a few at a time, none for ever.

No reconcile waits for a drawing: it has its own process, of low priority and bounded memory, and only two run at once, of two namespaces.
"""

import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from fedpipe_operator.cluster.workers import without_key_pair
from fedpipe_operator.errors import FedPipeError, TransientError

_COMMAND: Final = (sys.executable, "-m", "fedpipe_operator.report_server.draw")
_MAX_PROCESSES: Final = 2
_KEPT: Final = 16
"""Pages, of `draw.PAGE_BYTES` at most; of the others, the one that was read longest ago goes first."""
_DRAWING_SECONDS: Final = 90.0
_FAILED_SECONDS: Final = 30.0
"""So long a failure is told again before it is tried again: a store that does not answer occupies no process all the time."""
_NICENESS: Final = 10
_MESSAGE_MAX: Final = 1000
_SINGLE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""A drawing computes nothing that threads would do faster, and each has memory of its own."""


class Launch(NamedTuple):
    """What a drawing needs."""

    task_json: str
    environment: Mapping[str, str]
    """With the run's key pair."""


class Page(NamedTuple):
    """A drawn page."""

    file: Path
    """Packed by gzip. It stays readable for who has opened it."""
    policy: str
    """Its content security policy."""


@dataclass
class _Drawing:
    """A report for one version of its run: being drawn, drawn, or failed."""

    namespace: str
    version: str
    page: Page | None = None
    failure: FedPipeError | None = None
    ended_at: float | None = None

    def is_due_again(self, version: str, now: float) -> bool:
        """Whether another drawing should take its place."""
        if self.ended_at is None:
            return False
        return self.version != version or (self.failure is not None and now - self.ended_at >= _FAILED_SECONDS)


@dataclass
class Drawer:
    """The drawings by the uid of their run. Thread-safe."""

    folder: Path
    command: tuple[str, ...] = _COMMAND
    clock: Callable[[], float] = time.monotonic
    _drawings: OrderedDict[str, _Drawing] = field(default_factory=OrderedDict)
    _ended: threading.Condition = field(default_factory=threading.Condition)

    def page(self, namespace: str, uid: str, version: str, prepare: Callable[[], Launch], *, seconds: float) -> Page:
        """The report of this run, drawn unless it was for this version; waits so long for it.

        Args:
            namespace: of the run: of each, one report is drawn at a time.
            uid: of the run.
            version: what the report shows; another one is drawn anew.
            prepare: called before a drawing, from another thread.
            seconds: how long to wait for it.

        Raises:
            TransientError: `ReportBeingDrawn`, it is not done yet; `ReportNotDrawn`.
            FedPipeError: what `prepare` raises.
        """
        with self._ended:
            drawing = self._drawings.get(uid)
            if drawing is None or drawing.is_due_again(version, self.clock()):
                drawing = self._start(namespace, uid, version, prepare)
            self._drawings.move_to_end(uid)
            if not self._ended.wait_for(lambda: drawing.ended_at is not None, seconds):
                raise TransientError("ReportBeingDrawn", "the report is being drawn: ask again in some seconds")
        if drawing.failure is not None:
            raise drawing.failure
        assert drawing.page is not None  # noqa: S101 -- it ended, and did not fail
        return drawing.page

    def forget(self, uid: str) -> None:
        """The run is gone, and so is its page."""
        with self._ended:
            self._forget(uid)

    def _start(self, namespace: str, uid: str, version: str, prepare: Callable[[], Launch]) -> _Drawing:
        """Begin a drawing. The caller holds the lock."""
        others = [one.namespace for one in self._drawings.values() if one.ended_at is None]
        if namespace in others or len(others) >= _MAX_PROCESSES:
            raise TransientError("ReportBeingDrawn", "other reports are being drawn: ask again in some seconds")
        self._forget(uid)
        drawing = self._drawings[uid] = _Drawing(namespace, version)
        for oldest in [known for known, one in self._drawings.items() if one.ended_at is not None][: max(0, len(self._drawings) - _KEPT)]:
            self._forget(oldest)
        threading.Thread(target=self._draw, args=(uid, drawing, prepare), name="draw", daemon=True).start()
        return drawing

    def _draw(self, uid: str, drawing: _Drawing, prepare: Callable[[], Launch]) -> None:
        page: Page | None = None
        failure: FedPipeError = TransientError("ReportNotDrawn", "the operator failed to draw it: its log says why")
        try:
            page = self._perform(self.folder / f"{uid}.html.gz", prepare())
        except FedPipeError as error:
            failure = error
        except OSError as error:  # no memory for a process, or no space for the page
            failure = TransientError("ReportNotDrawn", f"the report could not be drawn: {error.strerror or error}")
        finally:
            with self._ended:
                drawing.page, drawing.failure, drawing.ended_at = page, None if page else failure, self.clock()
                if page is not None and self._drawings.get(uid) is not drawing:  # it was forgotten meanwhile
                    page.file.unlink(missing_ok=True)
                self._ended.notify_all()

    def _perform(self, file: Path, launch: Launch) -> Page:
        environment = without_key_pair(os.environ) | _SINGLE_THREAD | dict(launch.environment)
        unfinished = file.with_suffix(".unfinished")
        process = subprocess.Popen(  # noqa: S603 -- our own module
            [*self.command, str(unfinished)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with suppress(OSError):  # where that is forbidden, it draws at normal priority
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        try:
            policy, problem = process.communicate(launch.task_json, timeout=_DRAWING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise TransientError(
                "ReportNotDrawn", f"the report was not drawn within {_DRAWING_SECONDS:.0f} s: use fedpipe report"
            ) from None
        if process.returncode:
            raise TransientError("ReportNotDrawn", _message(process.returncode, problem))
        unfinished.replace(file)
        return Page(file, policy)

    def _forget(self, uid: str) -> None:
        known = self._drawings.pop(uid, None)
        if known is not None and known.page is not None:
            known.page.file.unlink(missing_ok=True)


def _message(status: int, problem: str) -> str:
    lines = problem.strip().splitlines()
    if status < 0 or not lines:
        return "the process that draws the report was ended, probably for want of memory: use fedpipe report"
    return lines[-1][:_MESSAGE_MAX]
