"""Recipe: export the global adapter as a PEFT folder and as a merged model. load → PEFT folder → merge → compare."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fedpipe_trainer.adapters import FROZEN_ADAPTER, AdapterTensors, attach_adapters, merge, read_global_adapter, write_peft_folder
from fedpipe_trainer.contract import Artifact, ExportResult, ExportTask, FailureReason, Objective, Outcome, Progress, Seq2SeqLM
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import AUTO_CLASSES, Base, checkpoint_dtype, clear_cache, fetch, load
from fedpipe_trainer.task_runtime import TaskRuntime

_SAMPLES, _LENGTH = 2, 16  # of the random input on which logits are compared


def run(task: ExportTask, runtime: TaskRuntime) -> ExportResult:
    """Export the files for which the task has URLs.

    Raises:
        TaskFailed: the model or the adapter is invalid, or the export made a file that has no URL.
    """
    runtime.report(Progress(phase="load"))
    with runtime.phase("load"):
        model_folder = fetch(task.model, runtime)
        clear_cache()  # the adapter is merged into the base below, so the cached base must not be used
        base = load(model_folder, 32, task.objective)
        path = runtime.download(task.global_adapter.url, runtime.folder / "global.safetensors", task.global_adapter.sha256)
        tensors = read_global_adapter(path, base.model, base.head)
    adapter_artifacts: tuple[Artifact, ...] = ()
    merged_artifacts: tuple[Artifact, ...] = ()
    difference = None
    runtime.report(Progress(phase="export"))
    with runtime.phase("export"):
        if task.adapter_files:
            folder = _make_folder(runtime, "adapter")
            write_peft_folder(base, tensors, task.objective, source=task.model.source.removeprefix("file://"), folder=folder)
            adapter_artifacts = _upload_files(folder, task.adapter_files, runtime)
        if task.merged_files:
            folder = _make_folder(runtime, "merged")
            difference = write_merged(base, tensors, task.objective, dtype=checkpoint_dtype(model_folder), folder=folder)
            merged_artifacts = _upload_files(folder, task.merged_files, runtime)
    return ExportResult(
        **runtime.result_header(task),
        outcome=Outcome.COMPLETED,
        fingerprint=base.fingerprint,
        adapter=adapter_artifacts,
        merged=merged_artifacts,
        max_logit_difference=difference,
    )


def write_merged(base: Base, tensors: AdapterTensors, objective: Objective, *, dtype: torch.dtype, folder: Path) -> float:
    """Merge the adapter into the base and save the result, with the tokenizer, in the type of the checkpoint.

    Returns:
        The largest difference of a logit between the saved model, loaded and run in 32 bits, and base + adapter. For a
        16-bit checkpoint this includes the error of rounding the merged weights to 16 bits.
    """
    with attach_adapters(base, FROZEN_ADAPTER, tensors, seed=0) as adapters:
        expected = _logits(adapters.model, base, objective)
    merge(base, tensors)
    model: nn.Module = base.model
    model.to(dtype)
    base.model.save_pretrained(folder, max_shard_size=1 << 62)
    base.tokenizer.save_pretrained(folder)
    loader = AUTO_CLASSES[objective.type]
    saved = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False).to(base.device).eval()
    return float((_logits(saved, base, objective) - expected).abs().max())


def _logits(model: nn.Module, base: Base, objective: Objective) -> Tensor:
    vocabulary = base.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (_SAMPLES, _LENGTH), generator=torch.Generator().manual_seed(0)).to(base.device)
    decoder_inputs = {"decoder_input_ids": ids} if isinstance(objective, Seq2SeqLM) else {}
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_inputs).logits
    return logits


def _make_folder(runtime: TaskRuntime, name: str) -> Path:
    folder = runtime.folder / name
    folder.mkdir()
    return folder


def _upload_files(folder: Path, urls: dict[str, str], runtime: TaskRuntime) -> tuple[Artifact, ...]:
    files = sorted(path for path in folder.iterdir())
    if unknown := [path.name for path in files if path.name not in urls]:
        msg = f"the export made {', '.join(unknown)}, for which the task has no URL; it has URLs for {', '.join(sorted(urls))}"
        raise TaskFailed(FailureReason.BAD_TASK, msg)
    return tuple(runtime.upload(path, urls[path.name]) for path in files)
