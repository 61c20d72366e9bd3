"""The wire format of adapters: one safetensors file in float32 with peft's keys, sorted, so that equal values give equal bytes.

A weight has the keys `base_model.model.<weight>.lora_A.weight` (rank × d_in) and `….lora_B.weight` (d_out × rank); a
parameter that is trained in full has `base_model.model.<parameter>`: of a classification head as it is, of a module of the base that is
trained whole as the difference from the base. In the global adapter the scale is 1: B·A is added to the
weight as it is. Its components are sorted by their singular values, largest first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedpipe_trainer.codecs.files import decode_whole
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import KEY_PREFIX, linear_shape

_A: Final = ".lora_A.weight"
_B: Final = ".lora_B.weight"


@dataclass(frozen=True)
class Factors:
    """The change B·A of a weight: A is rank × d_in, B is d_out × rank."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.a.shape[0]

    def components(self, start: int, stop: int | None) -> "Factors":
        """The components from `start` up to, but not including, `stop`, as contiguous copies."""
        return Factors(self.a[start:stop].clone(), self.b[:, start:stop].clone())


@dataclass(frozen=True)
class AdapterTensors:
    """The tensors of a global adapter. Empty before the first round."""

    weights: Mapping[str, Factors] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters that are trained in full, as the model has them."""


def lora_a_key(weight: str) -> str:
    """The key of a weight's factor A."""
    return f"{KEY_PREFIX}{weight}{_A}"


def lora_b_key(weight: str) -> str:
    """The key of a weight's factor B."""
    return f"{KEY_PREFIX}{weight}{_B}"


def parameter_key(parameter: str) -> str:
    """The key of a parameter that is sent in full."""
    return f"{KEY_PREFIX}{parameter}"


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the tensors in the order of their keys."""
    save_file({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}, path, metadata or {"format": "pt"})


def read_global_adapter(path: Path, model: nn.Module, head: tuple[str, ...], whole: Mapping[str, Tensor] | None = None) -> AdapterTensors:
    """Read a global adapter, decoded if it is encoded, and check every key and shape against the model.

    Args:
        path: the safetensors file.
        model: the base, without adapters.
        head: names of the model's parameters that are trained in full; the file must contain each of them.
        whole: the base's values of those of which the file has the difference.

    Raises:
        TaskFailed: BadTask, the file is unreadable, or a tensor is unknown, missing, not finite or of a wrong shape
            (the message names its key).
    """
    try:
        tensors = _decoded(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise _invalid_adapter(f"the global adapter cannot be read: {error}") from error
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise _invalid_adapter(f"the global adapter's {key} is not float32 or has values that are not finite")
    head_tensors = {name: _take_head_parameter(tensors, name, model.get_parameter(name)) for name in head}
    for name, value in (whole or {}).items():
        head_tensors[name] += value
    weights = {}
    for key in [key for key in tensors if key.endswith(_A)]:
        weight = key.removeprefix(KEY_PREFIX).removesuffix(_A)
        weights[weight] = _take_factors(tensors, weight, model)
    if tensors:
        raise _invalid_adapter(f"the global adapter's {min(tensors)} belongs to no parameter of this model")
    return AdapterTensors(weights, head_tensors)


def _decoded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, of which each may be encoded (`spec.codec.downlink`)."""
    arrays = decode_whole({key: tensor.numpy() for key, tensor in tensors.items()})
    return {key: tensors[key] if key in tensors else torch.from_numpy(array) for key, array in arrays.items()}


def _take_head_parameter(tensors: dict[str, Tensor], name: str, parameter: nn.Parameter) -> Tensor:
    tensor = tensors.pop(parameter_key(name), None)
    if tensor is None:
        raise _invalid_adapter(f"the global adapter has no {parameter_key(name)}")
    if tensor.shape != parameter.shape:
        raise _invalid_adapter(
            f"the global adapter's {parameter_key(name)} has shape {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}"
        )
    return tensor


def _take_factors(tensors: dict[str, Tensor], weight: str, model: nn.Module) -> Factors:
    shape = linear_shape(dict(model.named_modules()).get(weight, nn.Identity()))
    if shape is None:
        raise _invalid_adapter(f"the global adapter's {lora_a_key(weight)} belongs to no linear layer of this model")
    a, b = tensors.pop(lora_a_key(weight)), tensors.pop(lora_b_key(weight), None)
    if b is None:
        raise _invalid_adapter(f"the global adapter has no {lora_b_key(weight)}")
    if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:  # noqa: PLR2004 - matrices
        sizes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise _invalid_adapter(
            f"the global adapter's {lora_a_key(weight)} and its lora_B have shapes {sizes}, which do not fit a weight of shape {shape}"
        )
    return Factors(a, b)


def _invalid_adapter(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_TASK, message)
