"""Performs one task, from its file to its result and exit status, by the recipe for its kind.

All exceptions of a recipe are handled here. Every task writes a result of its kind, also if it failed, and the exit
status agrees with the result. Only a task file that cannot be read has no result: the failure is in the log.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final

from pydantic import ValidationError

from fedpipe_trainer.consent import with_consent
from fedpipe_trainer.contract import (
    DryExportResult,
    DryExportTask,
    EvaluateResult,
    ExitCode,
    ExportResult,
    ExportTask,
    FailureReason,
    Outcome,
    ProfileResult,
    ProfileTask,
    Progress,
    Result,
    TrainResult,
    TrainTask,
    parse_task,
)
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.failures import failure_of
from fedpipe_trainer.logs import about
from fedpipe_trainer.progress import ProgressUploads
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.task_runtime import AnyTask, TaskRuntime

# Names of modules that are imported when a task needs them: importing torch takes seconds, and a bad task should fail at once.
_RECIPES: Final = {
    "profile": "fedpipe_trainer.recipes.profile",
    "train": "fedpipe_trainer.recipes.train",
    "evaluate": "fedpipe_trainer.recipes.evaluate",
    "dry-export": "fedpipe_trainer.recipes.dry_export",
    "export": "fedpipe_trainer.recipes.export",
}
_ENVIRONMENT: Final = {
    # bitsandbytes compiles some of its functions with torch where there is a C++ compiler: importing the compiler takes 1.6 of 7.4
    # seconds of processor time, whether it is used or not. It saves none when a base is loaded, and no result may depend on whether
    # a machine has one.
    "TORCHDYNAMO_DISABLE": "1",
    # By default, a thread of libgomp that waits for the others spins for milliseconds, also on a processor that another process or
    # the thread it waits for could use. A forward pass of MPNet with two threads on two busy processors took 5.5 s, with this 1.5 s.
    "GOMP_SPINCOUNT": "1000",
}
"""Environment variables that torch and its libraries read when they are imported; a value that is set already is kept."""
_RESULTS: Final[dict[str, Callable[..., Result]]] = {
    "profile": ProfileResult,
    "train": TrainResult,
    "evaluate": EvaluateResult,
    "dry-export": DryExportResult,
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
    with about(task), TemporaryDirectory(prefix="fedpipe-") as folder:
        uploads = ProgressUploads(task, Path(folder))

        def report(progress: Progress) -> None:
            write_progress(progress)
            uploads.write(progress)

        runtime = TaskRuntime(
            folder=Path(folder),
            cache=settings.cache,
            write_progress=report,
            stop_requested=stop_requested,
            memory_limit_bytes=settings.memory_limit_bytes,
            activation_cache_bytes=settings.activation_cache_bytes,
        )
        return _write_result(_run_recipe(task, runtime, settings.accelerator), task, runtime)


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


def _run_recipe(task: AnyTask, runtime: TaskRuntime, accelerator: str) -> Result:
    try:
        allowed = task if isinstance(task, DryExportTask | ExportTask) else with_consent(task)
        recipe = import_recipe(task.kind)
        _require_accelerator(accelerator, task.processes if isinstance(task, ProfileTask | TrainTask) else 1)
        result: Result = recipe.run(allowed, runtime)
    except Exception as error:  # noqa: BLE001 - every failure is reported in a result
        failure = failure_of(error, elapsed_seconds=runtime.elapsed_seconds())
        _LOG.error("the %s task failed: %s: %s", task.kind, failure.reason, failure.message)
        header: dict[str, Any] = {**runtime.result_header(task)}
        result = _RESULTS[task.kind](**header, outcome=Outcome.FAILED, failure=failure)
    return result.model_copy(update={"basis": task.basis}) if isinstance(task, ProfileTask) else result


def _require_accelerator(resource: str, processes: int) -> None:
    """Raise an exception if the pod claims accelerators that PyTorch does not see: it would hold them, and train on the CPU for days.

    Args:
        resource: which the pod claims; empty: none.
        processes: the devices that the task needs.
    """
    import torch  # noqa: PLC0415 -- as for the recipes

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not resource or seen >= processes:
        return
    claimed = resource if processes == 1 else f"{processes} {resource}"
    found = f"the pod claims {claimed}, and PyTorch {torch.__version__} sees {seen or 'no'} GPU"
    check = "check the node's driver and device plugin, runtimeClassName of the EdgeSite, and that the trainer image has a CUDA build"
    instead = "remove capacity.accelerator from the EdgeSite, to train on the CPU"
    if seen:
        instead = f"set capacity.accelerator.count of the EdgeSite to {seen}"
    raise TaskFailed(FailureReason.NO_ACCELERATOR, f"{found}: {check}; or {instead}")


def import_recipe(kind: str) -> ModuleType:
    """Import the recipe for this kind of task.

    The first recipe imports torch and the libraries built on it: 800,000 objects that live as long as the process. The garbage
    collector traverses them repeatedly during the import and once more at the end, which takes a third of the processor time of a
    short task. Therefore it is disabled during the first import, and the imported objects are excluded from it.
    """
    if "torch" in sys.modules:
        return import_module(_RECIPES[kind])
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gc.disable()
    try:
        module = import_module(_RECIPES[kind])
        gc.freeze()
    finally:
        gc.enable()
    return module


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
