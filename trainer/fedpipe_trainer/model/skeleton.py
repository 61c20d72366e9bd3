"""A base without its weights: configuration, tokenizer, modules on the meta device, and where each tensor lies in the checkpoint.

What an export needs to know of a base before it reads any of it, whatever its size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fedpipe_trainer.contract import FailureReason, Objective
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import build_meta_model, head_parameters, read_config
from fedpipe_trainer.model.base import read_tokenizer
from fedpipe_trainer.model.checkpoint import Checkpoint, read_checkpoint
from fedpipe_trainer.model.source import checkpoint_dtype
from fedpipe_trainer.model.whole_modules import stored_values, whole_parameters

_GENERATION: Final = "generation_config.json"


@dataclass(frozen=True)
class Skeleton:
    """A base without its weights."""

    folder: Path
    config: PretrainedConfig
    """With the objective's labels and a padding token."""
    model: PreTrainedModel
    """On the meta device."""
    tokenizer: PreTrainedTokenizerBase
    """It has a padding token, so that what is exported can be used in batches."""
    head: tuple[str, ...]
    """The parameters that an adapter brings in full: of a classification head, and of modules that are trained whole."""
    whole: Mapping[str, Tensor]
    """The checkpoint's values of the latter."""
    checkpoint: Checkpoint
    dtype: torch.dtype
    """The most frequent one of the checkpoint."""


def read_skeleton(folder: Path, objective: Objective, modules_to_save: tuple[str, ...] = ()) -> Skeleton:
    """Read a model folder, but for its weights.

    Args:
        folder: the model's folder.
        objective: of the run.
        modules_to_save: ends of the names of modules that are trained whole.

    Raises:
        TaskFailed: BadModel, a file cannot be read or does not fit the others.
    """
    config, tokenizer = read_config(folder, objective), read_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            msg = f"the tokenizer in {folder} has neither a padding token nor an end-of-sequence token: add one to its configuration"
            raise TaskFailed(FailureReason.BAD_MODEL, msg)
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    model = build_meta_model(config, objective)
    head, checkpoint = head_parameters(model, objective, folder), read_checkpoint(folder, model)
    whole = whole_parameters(model, modules_to_save, head=head)
    stored = stored_values(checkpoint, whole)
    return Skeleton(folder, config, model, tokenizer, (*head, *whole), stored, checkpoint, checkpoint_dtype(folder))


def write_description(skeleton: Skeleton, folder: Path, *, untied: bool = False) -> None:
    """Write configuration and tokenizer, with its chat templates: what makes files of weights a model folder.

    Args:
        skeleton: the base.
        folder: the folder to write to.
        untied: whether the output layer has a weight of its own now, which the base's shares with the embeddings.
    """
    config = type(skeleton.config).from_dict(skeleton.config.to_dict())
    config.architectures = [type(skeleton.model).__name__]
    config.dtype = skeleton.dtype
    if untied:
        config.tie_word_embeddings = False
        config.get_text_config().tie_word_embeddings = False
    config.save_pretrained(folder)
    skeleton.tokenizer.save_pretrained(folder)
    if skeleton.model.can_generate():
        _write_generation_config(skeleton, folder)


def _write_generation_config(skeleton: Skeleton, folder: Path) -> None:
    # The base's own values, as they are: transformers refuses to save some that it reads.
    source = skeleton.folder / _GENERATION
    if source.is_file():
        try:
            values = json.loads(source.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TaskFailed(FailureReason.BAD_MODEL, f"{source} is no JSON: copy it again") from error
    else:
        values = skeleton.model.generation_config.to_diff_dict()
    values = {**values, "pad_token_id": values.get("pad_token_id", skeleton.config.pad_token_id)}
    (folder / _GENERATION).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
