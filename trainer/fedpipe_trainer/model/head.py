"""The head of a checkpoint that is a classifier already: it is kept where its labels are the run's, whatever their order."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fedpipe_trainer.contract import Objective, SequenceClassification
from fedpipe_trainer.model.architecture import head_shapes
from fedpipe_trainer.model.files import weight_files

_LOG = logging.getLogger(__name__)


def read_own_head(folder: Path, objective: Objective, head: tuple[str, ...]) -> dict[str, Tensor]:
    """The checkpoint's head in float32, with the rows of its labels in the order of the run's; empty if it has none of these labels.

    It is read from the files and not from the loaded model, whose bits differ by site, so that all sites start from the same values.

    Args:
        folder: the model's folder.
        objective: of the task.
        head: names of the head's parameters.
    """
    order = _order_of_labels(folder, objective)
    stored = _read_tensors(folder, head) if order else {}
    shapes = head_shapes(folder, objective) if stored else {}
    if order is None or set(stored) != set(head) or any(not _fits(stored[name], shapes[name], len(order)) for name in head):
        return {}
    _LOG.info("the base model is a classifier of the run's labels: the training starts from its own head")
    rows = torch.tensor(order)
    return {name: _reorder(tensor, shapes[name], rows) for name, tensor in stored.items()}


def match_labels(own: Mapping[int, str], labels: tuple[str, ...]) -> tuple[int, ...] | None:
    """For each label the index of the checkpoint's output for it; None if they are not the same labels.

    Upper and lower case count only where labels differ by nothing else.
    """
    for spell in (str, str.casefold):
        index = {spell(label): number for number, label in own.items()}
        wanted = [spell(label) for label in labels]
        if len(index) == len(own) == len(set(wanted)) == len(wanted) and set(index) == set(wanted):
            return tuple(index[label] for label in wanted)
    return None


def _order_of_labels(folder: Path, objective: Objective) -> tuple[int, ...] | None:
    if not isinstance(objective, SequenceClassification) or not objective.labels:
        return None
    document: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = document.get("id2label") or {}
    try:
        numbered = {int(number): str(label) for number, label in own.items()}
    except (AttributeError, ValueError):
        return None
    return match_labels(numbered, objective.labels) if sorted(numbered) == list(range(len(numbered))) else None


def _read_tensors(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name).float() for name in set(names) & set(file.keys())}
    return tensors


def _fits(tensor: Tensor, shape: tuple[int, ...], labels: int) -> bool:
    return tuple(tensor.shape) == tuple(labels if size == -1 else size for size in shape)


def _reorder(tensor: Tensor, shape: tuple[int, ...], rows: Tensor) -> Tensor:
    return tensor.index_select(shape.index(-1), rows) if -1 in shape else tensor
