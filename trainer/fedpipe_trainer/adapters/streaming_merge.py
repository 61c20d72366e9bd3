"""Merges an adapter into a checkpoint, tensor by tensor: W + B·A in float32, rounded to the type that the checkpoint has.

The base is never whole in memory, nor are the files that are written: one tensor at a time is read, changed and appended. What the
adapter does not change is copied byte by byte, under the key that the checkpoint has. A file has at most `shard_bytes`, unless one tensor
has more, so the disk needs room for one file.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpipe_trainer.adapters.wire import AdapterTensors
from fedpipe_trainer.contract import Artifact, ExportFile, FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.checkpoint import DTYPES, INDEX, SINGLE_FILE, Checkpoint, StoredTensor
from fedpipe_trainer.model.skeleton import Skeleton

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK: Final = 1 << 22
_ALIGNMENT: Final = 8


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the merged model."""

    key: str
    dtype: str
    """As named by safetensors."""
    shape: tuple[int, ...]
    size: int
    """Bytes."""
    source: StoredTensor | None
    """None: a parameter of the head, which the adapter brings whole."""
    parameter: str
    """The parameter of the model; "" where transformers makes it from several tensors."""
    weight: str = ""
    """The module whose factors are added, if it may have any."""


@dataclass(frozen=True)
class Shard:
    """A file of the merged model."""

    name: str
    tensors: tuple[MergedTensor, ...]

    @property
    def header(self) -> bytes:
        """What the file begins with: the length, and where each tensor is."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for one in self.tensors:
            entries[one.key] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [offset, offset + one.size]}
            offset += one.size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text

    @property
    def file(self) -> ExportFile:
        """Its name and size."""
        return ExportFile(name=self.name, size=len(self.header) + sum(one.size for one in self.tensors))


@dataclass(frozen=True)
class MergePlan:
    """What a merged model consists of, before anything is read or written."""

    shards: tuple[Shard, ...]
    untied: bool
    """Whether an output layer that shares its weight with the input embeddings gets one of its own, because it has an adapter."""
    by_parameter: Mapping[str, MergedTensor] = field(repr=False)
    """Of each parameter of the model that one tensor has."""
    is_complete: bool
    """Whether that is all of them: transformers makes none from several tensors, or without any."""

    @property
    def index(self) -> bytes | None:
        """The content of the index of the files; None if there is one file only."""
        if len(self.shards) == 1:
            return None
        total = sum(one.size for shard in self.shards for one in shard.tensors)
        files = {one.key: shard.name for shard in self.shards for one in shard.tensors}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}, indent=2).encode()

    @property
    def files(self) -> tuple[ExportFile, ...]:
        """Every file of weights, and their index if there is one."""
        index = self.index
        return (*(one.file for one in self.shards), *([] if index is None else [ExportFile(name=INDEX, size=len(index))]))


def plan_merge(skeleton: Skeleton, *, weights: Iterable[str], shard_bytes: int) -> MergePlan:
    """Plan the files of the merged model.

    Args:
        skeleton: the base.
        weights: modules that have or may have an adapter.
        shard_bytes: of a file, at most, if each tensor is smaller.

    Raises:
        TaskFailed: BadModel, a weight with an adapter is not a tensor of its own in the checkpoint, or is quantised
            there, or a parameter of the model has no value.
    """
    checkpoint, model, head, dtype = skeleton.checkpoint, skeleton.model, skeleton.head, skeleton.dtype
    adapted = {f"{weight}.weight": weight for weight in weights}
    tied = _tied_to(model)
    kept = _copied(checkpoint, model, {*adapted, *head})
    for parameter, weight in adapted.items():
        kept[parameter] = _adapted(checkpoint, parameter, weight, tied, prefix=model.base_model_prefix)
    parameters = dict(model.named_parameters())
    for parameter in head:
        shape = tuple(parameters[parameter].shape)
        kept[parameter] = MergedTensor(parameter, _NAMES[dtype], shape, prod(shape) * dtype.itemsize, None, parameter)
    _check_complete(model, kept, tied, checkpoint)
    ordered = sorted(kept.values(), key=lambda one: (str(one.source.file), one.source.offset) if one.source else ("\x7f", 0))
    by_parameter = {one.parameter: one for one in kept.values() if one.parameter}
    for name, source in [*tied.items(), *((source, name) for name, source in tied.items())]:
        if name not in by_parameter and source in by_parameter:
            by_parameter[name] = by_parameter[source]
    untied = any(parameter in tied for parameter in adapted)
    is_complete = not checkpoint.converted and _made_by_the_model(model) <= by_parameter.keys()
    return MergePlan(_shards(ordered, shard_bytes), untied, by_parameter, is_complete)


def merged_value(tensor: MergedTensor, model: nn.Module, adapter: AdapterTensors) -> Tensor:
    """The tensor's values as they are written: in the type of the checkpoint."""
    return unrounded_value(tensor, model, adapter).to(DTYPES[tensor.dtype])


def unrounded_value(tensor: MergedTensor, model: nn.Module, adapter: AdapterTensors) -> Tensor:
    """The same in float32, where the adapter changes them; else as the checkpoint has them."""
    if tensor.source is None:
        return adapter.head[tensor.parameter]
    value, factors = tensor.source.read(), adapter.weights.get(tensor.weight)
    if factors is None:
        return value
    # Conv1D stores its weight transposed.
    is_transposed = isinstance(model.get_submodule(tensor.weight), Conv1D)
    return value.float().addmm_(factors.a.T, factors.b.T) if is_transposed else value.float().addmm_(factors.b, factors.a)


def write_shard(shard: Shard, model: nn.Module, adapter: AdapterTensors, folder: Path) -> tuple[Path, Artifact]:
    """Write a file of the merged model; its path, and what it is. The hash is computed on the way: reading it again would take as long."""
    path, digest, size = folder / shard.name, hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in _content(shard, model, adapter):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if size != shard.file.size:
        raise AssertionError(f"{shard.name} has {size} bytes, its header says {shard.file.size}")
    return path, Artifact(name=shard.name, size=size, sha256=digest.hexdigest())


def write_hollow(shard: Shard, folder: Path) -> None:
    """Write the shard's header, and a hole in place of its tensors, which takes no room on the disk: loaders see every name and shape."""
    with (folder / shard.name).open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.file.size)


def _content(shard: Shard, model: nn.Module, adapter: AdapterTensors) -> Iterable[bytes | memoryview]:
    yield shard.header
    for tensor in shard.tensors:
        if tensor.source is not None and tensor.weight not in adapter.weights:
            yield from _bytes_of(tensor.source)
        else:
            value = merged_value(tensor, model, adapter).contiguous()
            yield value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b""


def _bytes_of(source: StoredTensor) -> Iterable[bytes]:
    with source.file.open("rb") as file:
        file.seek(source.offset)
        left = source.size
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise TaskFailed(FailureReason.BAD_MODEL, f"{source.file} is cut short within {source.key}: copy it again")
            left -= len(chunk)
            yield chunk


def _tied_to(model: PreTrainedModel) -> dict[str, str]:
    """By parameter that shares another's tensor: the name of the one that is stored."""
    return {str(name): str(source) for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items()}


def _copied(checkpoint: Checkpoint, model: PreTrainedModel, others: set[str]) -> dict[str, MergedTensor]:
    """What is taken over as it is, by parameter, or by key where it is no parameter's.

    Also a tensor of its own that the configuration calls tied to another: transformers ties the two only if their values are equal.
    """
    prefix = model.base_model_prefix
    parameter_of = {key: name for name, key in checkpoint.key_of.items()}
    copied = {}
    for key, source in checkpoint.by_key.items():
        parameter = parameter_of.get(key, "")
        if parameter in others:
            continue
        copied[parameter or key] = _merged(source, parameter, prefix)
    return copied


def _adapted(checkpoint: Checkpoint, parameter: str, weight: str, tied: Mapping[str, str], *, prefix: str) -> MergedTensor:
    key = checkpoint.key_of.get(parameter) or checkpoint.key_of.get(tied.get(parameter, parameter))
    if key is None:
        msg = f"the base's checkpoint has no tensor of its own for {weight}: leave it out of planning.targetModules, or save the base again"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    source = checkpoint.by_key[key]
    if source.dtype not in DTYPES:
        msg = f"the base's {key} is stored as {source.dtype}, into which nothing can be merged: give the original, unquantised model"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    merged = _merged(source, parameter, prefix)
    is_untied = parameter in tied
    return MergedTensor(parameter if is_untied else merged.key, source.dtype, source.shape, source.size, source, parameter, weight)


def _merged(source: StoredTensor, parameter: str, prefix: str) -> MergedTensor:
    """A base that was saved without its head has no prefix at its keys, and the merged model has a head."""
    is_bare = parameter.startswith(f"{prefix}.") and not source.key.startswith(f"{prefix}.")
    key = f"{prefix}.{source.key}" if is_bare and prefix else source.key
    return MergedTensor(key, source.dtype, source.shape, source.size, source, parameter)


def _check_complete(model: PreTrainedModel, kept: Mapping[str, MergedTensor], tied: Mapping[str, str], checkpoint: Checkpoint) -> None:
    if checkpoint.converted:  # transformers itself is asked, by loading the hollow files
        return
    known = {one.parameter for one in kept.values()} | _made_by_the_model(model)
    missing = [name for name, _ in model.named_parameters() if name not in known and tied.get(name) not in known]
    sources = {source for name, source in tied.items() if name in known}
    if missing := [name for name in missing if name not in sources]:
        msg = f"the checkpoint has no weights for {', '.join(missing[:5])}: config.json belongs to another model"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)


def _made_by_the_model(model: PreTrainedModel) -> set[str]:
    """Parameters that no checkpoint needs to have, as transformers says: fixed positions of a sine, for example."""
    patterns = [re.compile(one) for one in model._keys_to_ignore_on_load_missing or ()]  # noqa: SLF001 - there is no other way to know
    return {name for name, _ in model.named_parameters() if any(pattern.search(name) for pattern in patterns)}


def _shards(tensors: Sequence[MergedTensor], shard_bytes: int) -> tuple[Shard, ...]:
    groups: list[list[MergedTensor]] = [[]]
    for one in tensors:
        if groups[-1] and sum(other.size for other in groups[-1]) + one.size > shard_bytes:
            groups.append([])
        groups[-1].append(one)
    # Types of more bytes come first, so that every tensor lies at a multiple of its type's size, as some loaders need it.
    groups = [sorted(group, key=lambda one: -(one.size // max(1, prod(one.shape)))) for group in groups]
    if len(groups) == 1:
        return (Shard(SINGLE_FILE, tuple(groups[0])),)
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    return tuple(Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True))
