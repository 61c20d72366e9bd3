"""Recipe: write the global adapter as a PEFT folder and as a merged model. load → adapter → merged → compare."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fedpipe_trainer.adapters import NO_ADAPTER_SPEC, GlobalUpdate, attached, merge, read_update, write_peft_folder
from fedpipe_trainer.contract import Artifact, ExportResult, ExportTask, FailureReason, Objective, Outcome, Progress, Seq2SeqLM
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import AUTO_CLASSES, Base, checkpoint_dtype, fetch, load, release
from fedpipe_trainer.workplace import Workplace

_SAMPLES, _LENGTH = 2, 16


def run(task: ExportTask, workplace: Workplace) -> ExportResult:
    """Export what the task has URLs for.

    Raises:
        TaskFailed: the model or the adapter is bad, or a file was made that has no URL.
    """
    workplace.progress(Progress(phase="load"))
    with workplace.phase("load"):
        folder = fetch(task.model, workplace)
        release()  # the base is merged into below, so none that is kept may be used
        base = load(folder, 32, task.objective)
        path = workplace.download(task.global_adapter.url, workplace.folder / "global.safetensors", task.global_adapter.sha256)
        update = read_update(path, base.model, base.head)
    adapter: tuple[Artifact, ...] = ()
    merged: tuple[Artifact, ...] = ()
    difference = None
    workplace.progress(Progress(phase="export"))
    with workplace.phase("export"):
        if task.adapter_files:
            written = _folder(workplace, "adapter")
            write_peft_folder(base, update, task.objective, source=task.model.source.removeprefix("file://"), folder=written)
            adapter = _send(written, task.adapter_files, workplace)
        if task.merged_files:
            written = _folder(workplace, "merged")
            difference = write_merged(base, update, task.objective, dtype=checkpoint_dtype(folder), folder=written)
            merged = _send(written, task.merged_files, workplace)
    return ExportResult(
        **workplace.heading(task),
        outcome=Outcome.COMPLETED,
        fingerprint=base.fingerprint,
        adapter=adapter,
        merged=merged,
        max_logit_difference=difference,
    )


def write_merged(base: Base, update: GlobalUpdate, objective: Objective, *, dtype: torch.dtype, folder: Path) -> float:
    """Merge the update into the base and save it, with its tokenizer, in the checkpoint's own type.

    Returns:
        The largest difference of a logit between the saved model, loaded and run in 32 bits, and base + adapter. For a
        16-bit checkpoint that includes the rounding of the merged weights to 16 bits.
    """
    with attached(base, NO_ADAPTER_SPEC, update, seed=0) as adapters:
        wanted = _logits(adapters.model, base, objective)
    merge(base, update)
    model: nn.Module = base.model
    model.to(dtype)
    base.model.save_pretrained(folder, max_shard_size=1 << 62)
    base.tokenizer.save_pretrained(folder)
    saved = AUTO_CLASSES[objective.type].from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(base.device).eval()
    return float((_logits(saved, base, objective) - wanted).abs().max())


def _logits(model: nn.Module, base: Base, objective: Objective) -> Tensor:
    vocabulary = base.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (_SAMPLES, _LENGTH), generator=torch.Generator().manual_seed(0)).to(base.device)
    more = {"decoder_input_ids": ids} if isinstance(objective, Seq2SeqLM) else {}
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
    return logits


def _folder(workplace: Workplace, name: str) -> Path:
    folder = workplace.folder / name
    folder.mkdir()
    return folder


def _send(folder: Path, urls: dict[str, str], workplace: Workplace) -> tuple[Artifact, ...]:
    made = sorted(path for path in folder.iterdir())
    if unknown := [path.name for path in made if path.name not in urls]:
        msg = f"the export made {', '.join(unknown)}, for which the task has no URL: it names {', '.join(sorted(urls))}"
        raise TaskFailed(FailureReason.BAD_TASK, msg)
    return tuple(workplace.upload(path, urls[path.name]) for path in made)
