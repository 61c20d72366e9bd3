"""Recipe: export the global adapter as a PEFT folder and as a merged model. load → PEFT folder → compare → merge file by file."""

from collections.abc import Mapping
from pathlib import Path

from fedpipe_trainer.adapters import AdapterTensors, read_global_adapter
from fedpipe_trainer.adapters.comparison import largest_difference
from fedpipe_trainer.adapters.streaming_merge import plan_merge, write_shard
from fedpipe_trainer.contract import Artifact, ExportResult, ExportTask, FailureReason, FileUpload, Outcome, Progress
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import clear_cache, fetch, fingerprint
from fedpipe_trainer.model.skeleton import Skeleton, read_skeleton
from fedpipe_trainer.recipes.export_folders import files_in, write_adapter_folder, write_merged_folder
from fedpipe_trainer.task_runtime import TaskRuntime


def run(task: ExportTask, runtime: TaskRuntime) -> ExportResult:
    """Export the files for which the task says how they are written.

    Raises:
        TaskFailed: the model or the adapter is invalid, the merged model is not base + adapter, or the export made a file that the
            task does not know.
    """
    runtime.report(Progress(phase="load"))
    with runtime.phase("load"):
        model_folder = fetch(task.model, runtime)
        clear_cache()  # a base that an earlier task loaded would take the memory that this one does without
        skeleton = read_skeleton(model_folder, task.objective, task.model.modules_to_save)
        path = runtime.download(task.global_adapter.url, runtime.folder / "global.safetensors", task.global_adapter.sha256)
        adapter = read_global_adapter(path, skeleton.model, skeleton.head, skeleton.whole)
    adapter_artifacts: tuple[Artifact, ...] = ()
    merged_artifacts: tuple[Artifact, ...] = ()
    difference = None
    runtime.report(Progress(phase="export"))
    with runtime.phase("export"):
        if task.adapter_files:
            folder = _make_folder(runtime, "adapter")
            write_adapter_folder(skeleton, adapter, task, task.provenance, folder)
            adapter_artifacts = _upload_files(folder, task.adapter_files, runtime)
        if task.merged_files:
            merged_artifacts, difference = _export_merged(task, skeleton, adapter, runtime)
    return ExportResult(
        **runtime.result_header(task),
        outcome=Outcome.COMPLETED,
        fingerprint=fingerprint(model_folder),
        adapter=adapter_artifacts,
        merged=merged_artifacts,
        max_logit_difference=difference,
    )


def _export_merged(
    task: ExportTask, skeleton: Skeleton, adapter: AdapterTensors, runtime: TaskRuntime
) -> tuple[tuple[Artifact, ...], float | None]:
    """Merge, and upload each file before the next one is written, so that the disk needs room for one."""
    folder = _make_folder(runtime, "merged")
    plan = plan_merge(skeleton, weights=adapter.weights, shard_bytes=task.shard_bytes)
    difference = largest_difference(task.objective, skeleton, adapter, plan)
    write_merged_folder(skeleton, task, task.provenance, folder, plan)
    _require_known([*files_in(folder), *(one.name for one in plan.shards)], task.merged_files)
    artifacts = list(_upload_files(folder, task.merged_files, runtime))
    for number, shard in enumerate(plan.shards):
        runtime.report(Progress(phase="export", step=number, steps=len(plan.shards)))
        path, artifact = write_shard(shard, skeleton.model, adapter, folder)
        artifacts.append(runtime.upload(path, task.merged_files[shard.name], known=artifact))
        path.unlink()
    return tuple(sorted(artifacts, key=lambda one: one.name)), difference


def _make_folder(runtime: TaskRuntime, name: str) -> Path:
    folder = runtime.folder / name
    folder.mkdir()
    return folder


def _upload_files(folder: Path, files: Mapping[str, FileUpload], runtime: TaskRuntime) -> tuple[Artifact, ...]:
    names = files_in(folder)
    _require_known(names, files)
    return tuple(runtime.upload(folder / name, files[name]).model_copy(update={"name": name}) for name in names)


def _require_known(names: list[str], files: Mapping[str, FileUpload]) -> None:
    if unknown := [name for name in names if name not in files]:
        msg = f"the export made {', '.join(unknown)}, which the dry export did not find: the base or the trainer image has changed since"
        raise TaskFailed(FailureReason.BAD_TASK, msg)
