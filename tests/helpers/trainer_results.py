"""Makes results of trainers for tests: profiles, updates, evaluations, failures; and a trainer that succeeds at every task.

The adapter of an update is tiny, but it is really written to the task's URL.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from fedpipe_trainer.codecs.files import decode_whole
from fedpipe_trainer.contract import (
    Artifact,
    BaseModelFacts,
    DryExportResult,
    DryExportTask,
    EvaluateResult,
    EvaluateTask,
    ExportFile,
    ExportResult,
    ExportTask,
    Failure,
    FailureReason,
    Measured,
    Outcome,
    PiecesUpload,
    ProfileResult,
    ProfileTask,
    Throughput,
    TrainResult,
    TrainTask,
    Upload,
    WeightShape,
)

Tensors = dict[str, npt.NDArray[Any]]
BASE = "ba5e" * 16
WEIGHTS = {"layer.0.q": (8, 6), "layer.0.v": (4, 6)}
Head = Mapping[str, tuple[int, ...]]
"""Shape by key of the tensors that are trained whole."""
HEAD: Head = {"base_model.model.classifier.weight": (3, 8)}
GIB = 2**30


def a_profile(task: ProfileTask, **changes: Any) -> ProfileResult:
    """The profile of a site that has a toy model and enough memory."""
    points = tuple(
        Throughput(bits=bits, batch_size=batch, length=16, tokens_per_second=1e4, evaluate_tokens_per_second=3e4, peak_memory_bytes=GIB)
        for bits in task.bits
        for batch in task.batch_sizes
    )
    facts = BaseModelFacts(
        architecture="toy",
        parameters=1000,
        quantised_parameters=800,
        layers=1,
        hidden_size=8,
        intermediate_size=16,
        attention_heads=2,
        vocabulary_size=64,
        weights=tuple(WeightShape(name=name, d_out=shape[0], d_in=shape[1]) for name, shape in WEIGHTS.items()),
        head={"base_model.model.classifier.weight": (-1, 8)},
    )
    fields = {
        "base": facts,
        "fingerprint": BASE,
        "labels": ("a", "b", "c"),
        "train_samples": 100,
        "validation_samples": 20,
        "mean_tokens": 12.0,
        "memory_bytes": 8 * GIB,
        "runtime_bytes": GIB // 4,
        "load_peak_bytes": dict.fromkeys(task.bits, GIB // 2),
        "base_bytes": dict.fromkeys(task.bits, GIB // 8),
        "load_seconds": dict.fromkeys(task.bits, 0.1),
        "throughput": points,
    }
    return ProfileResult(**_header(task), **(fields | changes))


def an_update(task: TrainTask, folder: Path, *, head: Head = HEAD, **changes: Any) -> TrainResult:
    """Write an adapter that depends only on site, round and seed to the task's URL; the result for it."""
    tensors = adapter_tensors(f"{task.site}/{task.round}/{task.hyperparameters.seed}", task.plan.ranks, head)
    file = folder / "update.safetensors"
    save_file(encoded(tensors, task), file)
    data = file.read_bytes()
    target = path_of(task.adapter)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    fields = {
        "adapter": Artifact(name="adapter.safetensors", size=len(data), sha256=hashlib.sha256(data).hexdigest()),
        "tensors": {key: value.shape for key, value in tensors.items()},
        "ranks": task.plan.ranks,
        "scaling": task.plan.scaling,
        "scales": {weight: task.plan.scale(weight) for weight in task.plan.ranks},
        "bits": task.plan.bits,
        "batch_size": task.plan.batch_size,
        "micro_batch_size": task.plan.micro_batch,
        "steps": task.plan.steps,
        "samples": task.plan.steps * task.plan.batch_size,
        "tokens": 120,
        "fingerprint": BASE,
        "train_loss": 1.0,
    }
    return TrainResult(**_header(task), **(fields | changes))


def encoded(tensors: Tensors, task: TrainTask) -> Tensors:
    """The tensors as the task's codec has them in a file, without error feedback."""
    if task.codec is None or task.codec.is_plain:
        return tensors
    from fedpipe_trainer.compression import Weight, compress  # noqa: PLC0415 -- it imports torch, which most tests do without

    known = decode_whole(load_file(path_of(task.global_adapter.url))) if task.global_adapter else {}
    weights = [Weight(name, task.plan.scale(name)) for name, rank in task.plan.ranks.items() if rank]
    scales = {one.keys[1]: one.scale for one in weights}
    starts = {
        key: _as_large((known[key] / scales.get(key, 1.0)).astype(np.float32), tensors[key].shape) for key in tensors.keys() & known.keys()
    }
    return dict(compress(tensors, starts, task.codec, weights=weights).arrays)


def _as_large(tensor: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Of a global factor the components that a site of this shape trains, and zeros for those that are new."""
    start = np.zeros(shape, np.float32)
    part = tuple(slice(min(one, other)) for one, other in zip(shape, tensor.shape, strict=True))
    start[part] = tensor[part]
    return start


def adapter_tensors(seed: str, ranks: Mapping[str, int], head: Head = HEAD) -> dict[str, npt.NDArray[np.float32]]:
    """Random factors and a head that depend only on the seed."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
    tensors = {}
    for weight, rank in sorted(ranks.items()):
        d_out, d_in = WEIGHTS[weight]
        if rank:
            tensors[f"base_model.model.{weight}.lora_A.weight"] = random.standard_normal((rank, d_in)).astype(np.float32)
            tensors[f"base_model.model.{weight}.lora_B.weight"] = random.standard_normal((d_out, rank)).astype(np.float32)
    return tensors | {key: random.standard_normal(shape).astype(np.float32) for key, shape in head.items()}


def evaluation_within(task: TrainTask) -> EvaluateTask | None:
    """The evaluation that a training does before its first step, as a task of its own; None if it does none."""
    if task.evaluation is None:
        return None
    header = task.model_dump(include={"run", "site", "attempt", "deadline_seconds"})
    requested = {"round": task.evaluation.round, "result": task.evaluation.result, "batch_size": task.evaluation.batch_size}
    return EvaluateTask(
        **header,
        **requested,
        model=task.model,
        objective=task.objective,
        data=task.data,
        bits=task.plan.bits,
        evaluation=task.evaluation.evaluation,
        global_adapter=task.global_adapter,
    )


def an_evaluation(task: EvaluateTask, **changes: Any) -> EvaluateResult:
    """An evaluation whose metric grows with the round."""
    fields = {"fingerprint": BASE, "samples": 20, "targets": 20, "loss": 2.0 / (1 + task.round), "metrics": {"accuracy": task.round / 10}}
    return EvaluateResult(**_header(task), **(fields | changes))


def a_dry_export(task: DryExportTask, **changes: Any) -> DryExportResult:
    """The files of a small export."""
    adapter = (ExportFile(name="adapter_config.json", size=400), ExportFile(name="adapter_model.safetensors", size=4000))
    merged = (ExportFile(name="config.json", size=800), ExportFile(name="model.safetensors", size=40000))
    fields = {"adapter": adapter if task.adapter else (), "merged": merged if task.merged else ()}
    return DryExportResult(**_header(task), **(fields | changes))


def a_failure(kind: type[Any], task: Any, reason: FailureReason, message: str) -> Any:
    """The result of a failed task."""
    return kind(**(_header(task) | {"outcome": Outcome.FAILED}), failure=Failure(reason=reason, message=message))


def path_of(url: Upload | PiecesUpload) -> Path:
    """The path of a file:// URL; a directory store has no forms and no pieces."""
    return Path(unquote(str(url).removeprefix("file://")))


def _header(task: Any) -> dict[str, Any]:
    return {
        "run": task.run,
        "site": task.site,
        "round": task.round,
        "attempt": task.attempt,
        "outcome": Outcome.COMPLETED,
        "measured": Measured(),
    }


Trainer = Callable[[Any, Path], Any]
"""Takes a task and a scratch folder, returns the result to write; None writes nothing, like a killed trainer."""


def perform(trainer: Trainer, task: Any, folder: Path) -> Any:
    """Do a task as a trainer does, and write its result, which is returned; None if the trainer was killed.

    The evaluation that a training begins with is given to `trainer` as a task of its own.
    """
    evaluation = evaluation_within(task) if isinstance(task, TrainTask) else None
    if evaluation is not None and perform(trainer, evaluation, folder) is None:
        return None
    result = trainer(task, folder)
    if isinstance(result, ProfileResult):
        result = result.model_copy(update={"basis": task.basis})
    if result is not None:
        target = path_of(task.result)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(result.to_json())
    return result


def good_trainer(task: Any, folder: Path) -> Any:
    """Succeeds at every task."""
    match task:
        case ProfileTask():
            return a_profile(task)
        case TrainTask():
            return an_update(task, folder)
        case EvaluateTask():
            return an_evaluation(task)
        case DryExportTask():
            return a_dry_export(task)
        case ExportTask():
            return ExportResult(**_header(task))
