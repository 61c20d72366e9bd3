"""The wire format of adapters: one safetensors file, float32, keys as peft saves them, sorted, so equal values are equal bytes.

A weight has `base_model.model.<weight>.lora_A.weight` (rank × d_in) and `….lora_B.weight` (d_out × rank); a head's
parameter has `base_model.model.<parameter>`. In the global adapter B·A is the update itself (scale 1), its components
in the order of their singular values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import KEY_PREFIX, linear_shape

_A: Final = ".lora_A.weight"
_B: Final = ".lora_B.weight"


@dataclass(frozen=True)
class Factors:
    """A weight's update B·A: A of rank × d_in, B of d_out × rank."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.a.shape[0]

    def components(self, start: int, stop: int | None) -> "Factors":
        """The components from `start` up to `stop`, as contiguous copies."""
        return Factors(self.a[start:stop].clone(), self.b[:, start:stop].clone())


@dataclass(frozen=True)
class GlobalUpdate:
    """A global adapter's content. Empty before the first round."""

    weights: Mapping[str, Factors] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)


def key_of_a(weight: str) -> str:
    """The key of a weight's factor A."""
    return f"{KEY_PREFIX}{weight}{_A}"


def key_of_b(weight: str) -> str:
    """The key of a weight's factor B."""
    return f"{KEY_PREFIX}{weight}{_B}"


def key_of(parameter: str) -> str:
    """The key of a parameter that is sent whole."""
    return f"{KEY_PREFIX}{parameter}"


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors in the order of their keys, moved to the CPU."""
    save_file({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}, path, metadata or {"format": "pt"})


def read_update(path: Path, model: nn.Module, head: tuple[str, ...]) -> GlobalUpdate:
    """Read a global adapter and hold every key and shape of it against the model it is for.

    Args:
        path: the safetensors file.
        model: the base, without adapters.
        head: names of the model's parameters that are sent whole; each must be there.

    Raises:
        TaskFailed: BadTask, the file is unreadable, or a key is unknown, missing, of a wrong shape or not finite (by name).
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _refused(f"the global adapter cannot be read: {error}") from error
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise _refused(f"the global adapter's {key} is not finite float32")
    whole = {name: _take_whole(tensors, name, model.get_parameter(name)) for name in head}
    weights = {}
    for key in [key for key in tensors if key.endswith(_A)]:
        weight = key.removeprefix(KEY_PREFIX).removesuffix(_A)
        weights[weight] = _take_factors(tensors, weight, model)
    if tensors:
        raise _refused(f"the global adapter's {min(tensors)} is nothing that this model has")
    return GlobalUpdate(weights, whole)


def _take_whole(tensors: dict[str, Tensor], name: str, parameter: nn.Parameter) -> Tensor:
    tensor = tensors.pop(key_of(name), None)
    if tensor is None:
        raise _refused(f"the global adapter has no {key_of(name)}")
    if tensor.shape != parameter.shape:
        raise _refused(f"the global adapter's {key_of(name)} has shape {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}")
    return tensor


def _take_factors(tensors: dict[str, Tensor], weight: str, model: nn.Module) -> Factors:
    shape = linear_shape(dict(model.named_modules()).get(weight, nn.Identity()))
    if shape is None:
        raise _refused(f"the global adapter's {key_of_a(weight)} is for no linear layer of this model")
    a, b = tensors.pop(key_of_a(weight)), tensors.pop(key_of_b(weight), None)
    if b is None:
        raise _refused(f"the global adapter has no {key_of_b(weight)}")
    if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:  # noqa: PLR2004 - matrices
        sizes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise _refused(f"the global adapter's {key_of_a(weight)} and its lora_B have shapes {sizes}, which is no update of {shape}")
    return Factors(a, b)


def _refused(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_TASK, message)
