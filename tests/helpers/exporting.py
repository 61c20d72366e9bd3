"""Exports a toy model in this process: an adapter of unlike ranks, the dry export, and the export to the files that this found."""

from pathlib import Path
from typing import Any

import torch

from fedpipe_trainer.adapters import write_tensors
from fedpipe_trainer.contract import (
    DryExportResult,
    DryExportTask,
    ExportResult,
    ExportTask,
    GlobalAdapter,
    Model,
    Objective,
    RunRef,
    SequenceClassification,
)
from fedpipe_trainer.model import facts
from fedpipe_trainer.recipes import dry_export, export
from fedpipe_trainer.task_runtime import TaskRuntime
from fedpipe_trainer.transfer import describe


def global_adapter(base: Path, objective: Objective, folder: Path, *, targets: tuple[str, ...] = ()) -> GlobalAdapter:
    """Ranks 1, 2, 3, … by weight, and a head."""
    found, tensors = facts(base, objective, targets), {}
    generator = torch.Generator().manual_seed(0)
    for rank, weight in enumerate(found.weights[:5], start=1):
        tensors[f"base_model.model.{weight.name}.lora_A.weight"] = torch.randn(rank, weight.d_in, generator=generator)
        tensors[f"base_model.model.{weight.name}.lora_B.weight"] = torch.randn(weight.d_out, rank, generator=generator)
    for key, shape in found.head.items():
        tensors[key] = torch.randn([_labels(objective) if size == -1 else size for size in shape], generator=generator)
    path = folder / "global.safetensors"
    write_tensors(tensors, path)
    artifact = describe(path)
    return GlobalAdapter(url=path.as_uri(), sha256=artifact.sha256, size=artifact.size)


def _labels(objective: Objective) -> int:
    return len(objective.labels) if isinstance(objective, SequenceClassification) else 0


def run_dry_export(base: Path, objective: Objective, folder: Path, *, targets: tuple[str, ...] = (), **changed: Any) -> DryExportResult:
    """Try the export of an adapter of rank 8."""
    fields: dict[str, Any] = {
        "run": RunRef(namespace="n", name="r", uid="u"),
        "site": "",
        "model": Model(source=base.as_uri()),
        "result": "file:///nowhere",
        "objective": objective,
        "ranks": dict.fromkeys((weight.name for weight in facts(base, objective, targets).weights), 8),
    }
    return dry_export.run(DryExportTask(**(fields | changed)), runtime_in(folder / "dry"))


def runtime_in(folder: Path) -> TaskRuntime:
    """A runtime whose scratch folder is made."""
    folder.mkdir()
    return TaskRuntime(folder=folder, cache=folder, write_progress=lambda _progress: None, stop_requested=lambda: False)


def run_export(base: Path, objective: Objective, folder: Path, *, targets: tuple[str, ...] = (), **changed: Any) -> ExportResult:
    """Export to the folders adapter/ and merged/ what the dry export found."""
    dry_fields = {"shard_bytes": changed["shard_bytes"]} if "shard_bytes" in changed else {}
    dry = run_dry_export(base, objective, folder, targets=targets, **dry_fields)
    fields: dict[str, Any] = {
        "run": RunRef(namespace="n", name="r", uid="u"),
        "site": "",
        "model": Model(source=base.as_uri()),
        "result": "file:///nowhere",
        "objective": objective,
        "global_adapter": changed.pop("global_adapter", None) or global_adapter(base, objective, folder, targets=targets),
        "adapter_files": {one.name: (folder / "adapter" / one.name).as_uri() for one in dry.adapter},
        "merged_files": {one.name: (folder / "merged" / one.name).as_uri() for one in dry.merged},
    }
    return export.run(ExportTask(**(fields | changed)), runtime_in(folder / "scratch"))
