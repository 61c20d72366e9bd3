"""The tensors of a checkpoint, by the headers of its safetensors files: what is where, and under which name the model knows it.

A header has kilobytes, whatever the size of the model. A tensor is read by itself, so a checkpoint is never whole in memory.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed

INDEX: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of which a tensor may be merged, by their names in safetensors."""
LENGTH_BYTES: Final = 8
_MAX_HEADER: Final = 100_000_000
"""As safetensors has it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of the checkpoint."""

    key: str
    file: Path
    dtype: str
    """As named by safetensors."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    size: int
    """Bytes."""

    def read(self) -> Tensor:
        """Its values, in memory of their own."""
        values = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        if not self.size:
            return values
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            into, done = values.view(-1).view(torch.uint8).numpy().data, 0
            while done < self.size:  # a call reads at most 2 GiB
                read = file.readinto(into[done:])
                if not read:
                    raise TaskFailed(FailureReason.BAD_MODEL, f"{self.file} is cut short within {self.key}: copy it again")
                done += read
        return values


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint that the model uses."""

    by_key: Mapping[str, StoredTensor]
    """In the order in which they lie in the files."""
    key_of: Mapping[str, str]
    """By parameter of the model: the key under which the checkpoint has exactly this tensor."""
    converted: frozenset[str]
    """Keys of tensors that transformers makes parameters of another shape from: of experts that it joins, for example."""


def read_checkpoint(folder: Path, model: PreTrainedModel) -> Checkpoint:
    """Read the headers of the checkpoint in `folder`, for this model, which may be on the meta device.

    Raises:
        TaskFailed: BadModel, a file is missing or is no safetensors file.
    """
    stored = {one.key: one for path in _files(folder) for one in read_header(path)}
    key_of: dict[str, str] = {}
    used, converted = {}, set()
    for key, (name, is_converted) in _names_in_model(stored, model).items():
        used[key] = stored[key]
        if is_converted:
            converted.add(key)
        else:
            key_of[name] = key
    return Checkpoint({key: one for key, one in stored.items() if key in used}, key_of, frozenset(converted))


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        TaskFailed: BadModel, it is none, or it is shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(LENGTH_BYTES))
            header: dict[str, Any] = json.loads(file.read(min(length, _MAX_HEADER)))
        start = LENGTH_BYTES + length
        header.pop("__metadata__", None)
        found = [_stored(path, key, entry, start) for key, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        msg = f"{path} is no safetensors file ({error}): copy it again; a git-lfs pointer is fetched by `git lfs pull`"
        raise TaskFailed(FailureReason.BAD_MODEL, msg) from error
    end = max((one.offset + one.size for one in found), default=0)
    if (size := path.stat().st_size) < end:
        raise TaskFailed(FailureReason.BAD_MODEL, f"{path} is cut short: it has {size} bytes, its header says {end}: copy it again")
    return tuple(sorted(found, key=lambda one: one.offset))


def _stored(path: Path, key: str, entry: Mapping[str, Any], start: int) -> StoredTensor:
    first, last = entry["data_offsets"]
    return StoredTensor(key, path, str(entry["dtype"]), tuple(entry["shape"]), start + int(first), int(last) - int(first))


def _files(folder: Path) -> list[Path]:
    """The files that transformers loads: a folder may have the same weights in another form beside them."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX).is_file():
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model folder {folder} has neither {SINGLE_FILE} nor {INDEX}")
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise TaskFailed(FailureReason.BAD_MODEL, f"{folder / INDEX} is no index of safetensors files: copy it again") from error
    if missing := sorted(str(name) for name in names if Path(str(name)).name != name or not (folder / str(name)).is_file()):
        raise TaskFailed(FailureReason.BAD_MODEL, f"{folder / INDEX} names {', '.join(missing[:5])}, which the folder does not have")
    return [folder / name for name in sorted(names)]


def _names_in_model(keys: Iterable[str], model: PreTrainedModel) -> dict[str, tuple[str, bool]]:
    """By key that the model uses: its parameter or buffer, and whether that is made from it by more than a renaming.

    As transformers names them when it loads the checkpoint (`core_model_loading.convert_and_load_state_dict_in_model`).
    """
    state, prefix = model.state_dict(), model.base_model_prefix
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    found = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state:
            found[key] = (name, pattern is not None)
    return found
