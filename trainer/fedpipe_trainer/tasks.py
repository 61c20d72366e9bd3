"""Performs one task, from its file to its result and exit status, by the recipe for its kind.

All exceptions of a recipe are handled here. Every task writes a result of its kind, also if it failed, and the exit
status agrees with the result. Only a task file that cannot be read has no result: the failure is in the log.
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
    Outcome,
    ProfileResult,
    Progress,
    Result,
    TrainResult,
    parse_task,
)
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.task_runtime import AnyTask, TaskRuntime

_LONGEST_MESSAGE: Final = 4096

# Names of modules that are imported when a task needs them: importing torch takes seconds, and a bad task should fail at once.
_RECIPES: Final = {
    "profile": "fedpipe_trainer.recipes.profile",
    "train": "fedpipe_trainer.recipes.train",
    "evaluate": "fedpipe_trainer.recipes.evaluate",
    "export": "fedpipe_trainer.recipes.export",
}
_RESULTS: Final[dict[str, Callable[..., Result]]] = {
    "profile": ProfileResult,
    "train": TrainResult,
    "evaluate": EvaluateResult,
    "export": ExportResult,
}

_LOG = logging.getLogger(__name__)


def perform(
    task_file: Path, *, settings: Settings, write_progress: Callable[[Progress], None], stop_requested: Callable[[], bool]
) -> ExitCode:
    """Perform the task in this file and write its result; the exit status."""
    try:
        task = _read_task(task_file)
    except TaskFailed as error:
        _LOG.error("%s", error.message)
        return error.reason.exit_code
    with TemporaryDirectory(prefix="fedpipe-") as folder:
        runtime = TaskRuntime(
            folder=Path(folder),
            cache=settings.cache,
            write_progress=write_progress,
            stop_requested=stop_requested,
            memory_limit_bytes=settings.memory_limit_bytes,
        )
        return _write_result(_run_recipe(task, runtime), task, runtime)


def _read_task(task_file: Path) -> AnyTask:
    try:
        return parse_task(task_file.read_text(encoding="utf-8"))
    except ValidationError as error:
        # The text of pydantic's error quotes the input, which contains presigned URLs.
        problems = [f"{'.'.join(map(str, e['loc'])) or 'task'}: {e['msg']}" for e in error.errors(include_input=False, include_url=False)]
        reason = "; ".join(problems)
    except (OSError, ValueError) as error:
        reason = str(error)
    raise TaskFailed(FailureReason.BAD_TASK, f"the task file {task_file} cannot be used: {reason}")


def _run_recipe(task: AnyTask, runtime: TaskRuntime) -> Result:
    try:
        result: Result = _import_recipe(task.kind).run(task, runtime)
    except Exception as error:  # noqa: BLE001 - every failure is reported in a result
        failure = _failure(error, runtime)
        _LOG.error("the %s task failed: %s: %s", task.kind, failure.reason, failure.message)
        header: dict[str, Any] = {**runtime.result_header(task)}
        return _RESULTS[task.kind](**header, outcome=Outcome.FAILED, failure=failure)
    return result


def _import_recipe(kind: str) -> ModuleType:
    """Import the recipe for this kind of task.

    The first recipe imports torch and the libraries built on it: 800,000 objects that live as long as the process. The garbage
    collector traverses them repeatedly during the import and once more at the end, which takes a third of the processor time of a
    short task. Therefore it is disabled during the first import, and the imported objects are excluded from it.
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


def _failure(error: Exception, runtime: TaskRuntime) -> Failure:
    match error:
        case TaskFailed():
            reason, message = error.reason, error.message
        case Terminated():
            reason = FailureReason.TERMINATED
            message = f"stopped on request after {runtime.elapsed_seconds():.0f} s" + (f", {error}" if str(error) else "")
        case _ if _is_out_of_memory(error):
            reason = FailureReason.OUT_OF_MEMORY
            message = f"out of memory in {_location(error)}: use fewer bits, a smaller batch size or a smaller maxLength"
        case _:
            _LOG.error("unexpected exception", exc_info=error)
            # The message of an exception may quote the site's data, so it is written only to the log at the site.
            reason = FailureReason.UNEXPECTED
            message = f"{type(error).__name__} in {_location(error)}: see the traceback in the log of the task"
    return Failure(reason=reason, message=message[:_LONGEST_MESSAGE])


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from fedpipe_trainer import device  # noqa: PLC0415 - it imports torch, which has been imported by now

    return device.is_out_of_memory(error)


def _location(error: Exception) -> str:
    """The location where the error was raised, as "function (file:line)"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].name} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "an unknown location"


def _write_result(result: Result, task: AnyTask, runtime: TaskRuntime) -> ExitCode:
    exit_code = ExitCode.OK if result.failure is None else result.failure.reason.exit_code
    path = runtime.folder / "result.json"
    try:
        path.write_text(result.to_json(), encoding="utf-8")
        runtime.upload(path, task.result)
    except (TaskFailed, OSError) as error:
        _LOG.error("cannot write the result: %s", error)
        return exit_code if exit_code is not ExitCode.OK else ExitCode.TRANSFER_FAILED
    return exit_code
