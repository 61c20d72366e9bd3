"""What an export writes beside weights, and whether others can load it: for the export, and for its dry run on the untouched base."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from transformers.utils import logging as transformers_logging

from fedpipe_trainer.adapters import AdapterTensors, base_name, write_peft_folder
from fedpipe_trainer.adapters.export import load_on_meta
from fedpipe_trainer.adapters.streaming_merge import MergePlan
from fedpipe_trainer.contract import DryExportTask, ExportTask, FailureReason, Provenance
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import AUTO_CLASSES, read_tokenizer
from fedpipe_trainer.model.architecture import build_meta_model, head_modules, modules_of
from fedpipe_trainer.model.checkpoint import INDEX
from fedpipe_trainer.model.skeleton import Skeleton, write_description
from fedpipe_trainer.recipes.model_card import CARD, adapter_card, merged_card

_NAMED: Final = 5
_LOADING: Final = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def write_adapter_folder(
    skeleton: Skeleton, adapter: AdapterTensors, task: DryExportTask | ExportTask, provenance: Provenance, folder: Path
) -> None:
    """Write a PEFT folder with the labels (config.json), the tokenizer with its chat templates, and a model card."""
    name = base_name(task.source or task.model.source, task.model.commit)
    write_peft_folder(skeleton.model, saved_modules(skeleton), adapter, task.objective, base=name, folder=folder)
    write_description(skeleton, folder)
    card = adapter_card(name, task.objective, provenance, has_whole_modules=bool(skeleton.whole))
    (folder / CARD).write_text(card, encoding="utf-8")


def saved_modules(skeleton: Skeleton) -> tuple[str, ...]:
    """PEFT's `modules_to_save` of an adapter of this base: by whole names, so that no other module has such an end."""
    head = tuple(name for name in skeleton.head if name not in skeleton.whole)
    return (*head_modules(head), *modules_of(tuple(skeleton.whole)))


def write_merged_folder(
    skeleton: Skeleton, task: DryExportTask | ExportTask, provenance: Provenance, folder: Path, plan: MergePlan
) -> None:
    """Write everything of the merged model but its weights."""
    name = base_name(task.source or task.model.source, task.model.commit)
    write_description(skeleton, folder, untied=plan.untied)
    (folder / CARD).write_text(merged_card(name, task.objective, provenance), encoding="utf-8")
    if plan.index is not None:
        (folder / INDEX).write_bytes(plan.index)


def check_adapter_loads(skeleton: Skeleton, task: DryExportTask, folder: Path) -> None:
    """Load the PEFT folder onto the base, on the meta device.

    Raises:
        TaskFailed: BadModel, PEFT finds no place for a tensor, or has no value for one.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            load_on_meta(build_meta_model(skeleton.config, task.objective), folder)
        except (ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError) as error:
            msg = (
                f"PEFT cannot load the adapter that would be exported: {str(error)[:500]}: set export.adapter to false, or use another base"
            )
            raise TaskFailed(FailureReason.BAD_MODEL, msg) from error
    if lost := [str(one.message) for one in caught if "missing adapter keys" in str(one.message)]:
        msg = f"PEFT would not load the whole adapter that is exported: {lost[0][:500]}: leave these weights out of planning.targetModules"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)


def check_merged_loads(task: DryExportTask, folder: Path) -> None:
    """Load the merged folder, whose files of weights are hollow, on the meta device: as its users will, but without reading weights.

    Raises:
        TaskFailed: BadModel, transformers misses a parameter, or finds one of another shape or without a place.
    """
    with _quiet():
        try:
            _, info = AUTO_CLASSES[task.objective.type].from_pretrained(
                folder,
                device_map={"": "meta"},
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            msg = f"the merged model that would be exported cannot be loaded: {str(error)[:500]}: set export.merged to false"
            raise TaskFailed(FailureReason.BAD_MODEL, msg) from error
    problems = [f"{kind.removesuffix('_keys')}: {', '.join(sorted(map(str, info[kind]))[:_NAMED])}" for kind in _LOADING if info.get(kind)]
    if problems:
        msg = f"the merged model that would be exported is not the base's architecture ({'; '.join(problems)}): set export.merged to false"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    if read_tokenizer(folder).pad_token_id is None:
        raise TaskFailed(FailureReason.BAD_MODEL, "the tokenizer that would be exported has no padding token: add one to the base's")


def files_in(folder: Path) -> list[str]:
    """The names of all files in a folder, those in its folders by their path."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def _quiet() -> Iterator[None]:
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would report is checked here
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
