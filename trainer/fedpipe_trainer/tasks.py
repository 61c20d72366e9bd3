"""One task, from its file to its exit status: the shell around every recipe.

This is the one place where a recipe's exceptions end. However a task ends, a result of its kind says so and the
exit status agrees with it; only a task that cannot be read has nowhere to report to but the log.
"""

import gc
import logging
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final

from pydantic import ValidationError

from fedpipe_trainer.contract import (
    EvaluateResult,
    ExitCode,
    ExportResult,
    Failure,
    FailureReason,
    Manifest,
    Outcome,
    ProfileResult,
    Progress,
    TrainResult,
    parse_task,
)
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.workplace import AnyTask, Workplace

_LONGEST_MESSAGE: Final = 4096

# Modules by name, imported when a task needs them: torch takes seconds, a bad task should not.
_RECIPES: Final = {
    "profile": "fedpipe_trainer.recipes.profile",
    "train": "fedpipe_trainer.recipes.train",
    "evaluate": "fedpipe_trainer.recipes.evaluate",
    "export": "fedpipe_trainer.recipes.export",
}
_RESULTS: Final[dict[str, Callable[..., Manifest]]] = {
    "profile": ProfileResult,
    "train": TrainResult,
    "evaluate": EvaluateResult,
    "export": ExportResult,
}

_LOG = logging.getLogger(__name__)


def perform(task_file: Path, *, settings: Settings, say: Callable[[Progress], None], stop_requested: Callable[[], bool]) -> ExitCode:
    """Do the task in this file and write its result; the exit status that tells how it ended."""
    try:
        task = _read(task_file)
    except TaskFailed as error:
        _LOG.error("%s", error.message)
        return error.reason.exit_code
    with TemporaryDirectory(prefix="fedpipe-") as folder:
        workplace = Workplace(
            folder=Path(folder),
            cache=settings.cache,
            say=say,
            stop_requested=stop_requested,
            memory_limit_bytes=settings.memory_limit_bytes,
        )
        return _report(_attempt(task, workplace), task, workplace)


def _read(task_file: Path) -> AnyTask:
    try:
        return parse_task(task_file.read_text(encoding="utf-8"))
    except ValidationError as error:
        # pydantic's own text would quote the input, and with it presigned URLs.
        problems = [f"{'.'.join(map(str, e['loc'])) or 'task'}: {e['msg']}" for e in error.errors(include_input=False, include_url=False)]
        why = "; ".join(problems)
    except (OSError, ValueError) as error:
        why = str(error)
    raise TaskFailed(FailureReason.BAD_TASK, f"the task file {task_file} cannot be used: {why}")


def _attempt(task: AnyTask, workplace: Workplace) -> Manifest:
    try:
        result: Manifest = _recipe(task.kind).run(task, workplace)
    except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a result
        failure = _failure(error, workplace)
        _LOG.error("the %s task failed: %s: %s", task.kind, failure.reason, failure.message)
        heading: dict[str, Any] = {**workplace.heading(task)}
        return _RESULTS[task.kind](**heading, outcome=Outcome.FAILED, failure=failure)
    return result


def _recipe(kind: str) -> ModuleType:
    """The module of this kind of task.

    With the first one come torch and all that is built on it: 800,000 objects that live as long as the process. The garbage collector
    walks them again and again while they are made, and once more at the end: a third of the processor time of a short task.
    """
    if "torch" in sys.modules:
        return import_module(_RECIPES[kind])
    gc.disable()
    try:
        module = import_module(_RECIPES[kind])
        gc.freeze()
    finally:
        gc.enable()
    return module


def _failure(error: Exception, workplace: Workplace) -> Failure:
    match error:
        case TaskFailed():
            reason, message = error.reason, error.message
        case Terminated():
            reason = FailureReason.TERMINATED
            message = f"stopped after {workplace.clock():.0f} s, as it was asked to" + (f": {error}" if str(error) else "")
        case _ if _is_out_of_memory(error):
            reason = FailureReason.OUT_OF_MEMORY
            message = f"memory ran out in {_place(error)}: plan fewer bits, a smaller batch or shorter texts"
        case _:
            _LOG.error("unexpected", exc_info=error)
            # An exception's own words may hold a text of the site's data; they stay in the site's log.
            reason, message = FailureReason.UNEXPECTED, f"{type(error).__name__} in {_place(error)}: the task's log has the traceback"
    return Failure(reason=reason, message=message[:_LONGEST_MESSAGE])


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from fedpipe_trainer import device  # noqa: PLC0415 - it imports torch, which is here by now

    return device.is_out_of_memory(error)


def _place(error: Exception) -> str:
    """Where the error was raised, as "function (file:line)"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].name} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "an unknown place"


def _report(result: Manifest, task: AnyTask, workplace: Workplace) -> ExitCode:
    ended = ExitCode.OK if result.failure is None else result.failure.reason.exit_code
    path = workplace.folder / "result.json"
    try:
        path.write_text(result.to_json(), encoding="utf-8")
        workplace.upload(path, task.result)
    except (TaskFailed, OSError) as error:
        _LOG.error("the result cannot be written: %s", error)
        return ended if ended is not ExitCode.OK else ExitCode.TRANSFER_FAILED
    return ended
