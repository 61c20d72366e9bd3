"""Recipe: try the export on the untouched base. What fails here would fail after the last round, when everything is trained.

headers → PEFT folder of a zero adapter → merge plan, hollow files, loading → a zero adapter merged and compared → room on the disk.
"""

import shutil
from pathlib import Path
from typing import Final

import torch

from fedpipe_trainer.adapters import AdapterTensors, zero_adapter
from fedpipe_trainer.adapters.comparison import largest_difference
from fedpipe_trainer.adapters.streaming_merge import MergePlan, merged_value, plan_merge, write_hollow
from fedpipe_trainer.contract import DryExportResult, DryExportTask, ExportFile, FailureReason, Outcome, Progress, Provenance
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import fetch_headers
from fedpipe_trainer.model.skeleton import Skeleton, read_skeleton
from fedpipe_trainer.recipes.export_folders import (
    check_adapter_loads,
    check_merged_loads,
    files_in,
    write_adapter_folder,
    write_merged_folder,
)
from fedpipe_trainer.recipes.model_card import CARD, MAX_BYTES
from fedpipe_trainer.task_runtime import TaskRuntime

_WEIGHTS: Final = "adapter_model.safetensors"
_BYTES_OF_AN_ELEMENT: Final = 4
_BYTES_OF_AN_ENTRY: Final = 64
"""By which the entry of a tensor in a header may be longer for larger numbers."""


def run(task: DryExportTask, runtime: TaskRuntime) -> DryExportResult:
    """Try the export.

    Raises:
        TaskFailed: BadModel, it would fail, and why; TransferFailed, the base cannot be reached.
    """
    runtime.report(Progress(phase="load"))
    with runtime.phase("load"):
        model = fetch_headers(task.model, runtime)
        skeleton = read_skeleton(model.folder, task.objective, task.model.modules_to_save)
    runtime.report(Progress(phase="export"))
    with runtime.phase("export"):
        adapter = _try_adapter(task, skeleton, runtime) if task.adapter else ()
        merged = _try_merged(task, skeleton, runtime, is_hollow=model.is_hollow) if task.merged else ()
    weights = [one.size for one in (*adapter, *merged) if one.name.endswith(".safetensors")]
    scratch = max(weights, default=0) + (model.fetched_bytes if model.is_hollow else 0)
    _check_room(runtime.folder, scratch)
    return DryExportResult(**runtime.result_header(task), outcome=Outcome.COMPLETED, adapter=adapter, merged=merged, scratch_bytes=scratch)


def _try_adapter(task: DryExportTask, skeleton: Skeleton, runtime: TaskRuntime) -> tuple[ExportFile, ...]:
    """Write and load the folder for an adapter of rank 1; the files, as large as the largest rank makes them."""
    folder = runtime.folder / "adapter"
    folder.mkdir()
    adapter = zero_adapter(skeleton.model, skeleton.head, dict.fromkeys(task.ranks, 1))
    write_adapter_folder(skeleton, adapter, task, Provenance(), folder)
    check_adapter_loads(skeleton, task, folder)
    more = max(task.ranks.values()) - 1
    elements = sum(more * (factors.a.shape[1] + factors.b.shape[0]) for factors in adapter.weights.values())
    growth = _BYTES_OF_AN_ELEMENT * elements + 2 * _BYTES_OF_AN_ENTRY * len(adapter.weights)
    return tuple(_file(folder, name, growth if name == _WEIGHTS else 0) for name in files_in(folder))


def _try_merged(task: DryExportTask, skeleton: Skeleton, runtime: TaskRuntime, *, is_hollow: bool) -> tuple[ExportFile, ...]:
    """Plan the merged model, and load it with hollow weights; its files."""
    folder = runtime.folder / "merged"
    folder.mkdir()
    plan = plan_merge(skeleton, weights=task.ranks, shard_bytes=task.shard_bytes)
    write_merged_folder(skeleton, task, Provenance(), folder, plan)
    for shard in plan.shards:
        write_hollow(shard, folder)
    check_merged_loads(task, folder)
    adapter = zero_adapter(skeleton.model, skeleton.head, dict.fromkeys(task.ranks, 1))
    if not is_hollow:
        _check_zero_merge(plan, skeleton, adapter)
    largest_difference(task.objective, skeleton, adapter, plan)  # where the base is hollow, of zeros: that it can be computed
    return tuple(_file(folder, name) for name in files_in(folder))


def _check_zero_merge(plan: MergePlan, skeleton: Skeleton, adapter: AdapterTensors) -> None:
    """Merge a zero adapter into the smallest weight that may get one: it must not change."""
    smallest = min((one for one in plan.by_parameter.values() if one.weight and one.source), key=lambda one: one.size, default=None)
    if smallest is None or smallest.source is None:
        return
    if not torch.equal(merged_value(smallest, skeleton.model, adapter), smallest.source.read()):
        msg = f"merging an adapter of zeros changes the base's {smallest.source.key}: it has values that are not finite; use another base"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        msg = (
            f"the export needs {needed / 2**30:.1f} GiB of disk for its largest file (and the base, if it is downloaded), and {folder} has"
            f" {free / 2**30:.1f} GiB free: give the export's pods a node with more, or set export.merged to false"
        )
        raise TaskFailed(FailureReason.BAD_MODEL, msg)


def _file(folder: Path, name: str, growth: int = 0) -> ExportFile:
    size = MAX_BYTES if name == CARD else (folder / name).stat().st_size + growth
    return ExportFile(name=name, size=size)
