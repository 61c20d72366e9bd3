"""Attaches adapters to a base model for the duration of a task: a trained adapter and a frozen residual.

A site of rank r trains the first r components of a weight's global adapter. The frozen residual is the rest: the
components of the global adapter that a site of lower rank keeps, frozen and active, beside what it trains. So the site
starts from the complete global model and not from a truncated one. In peft, the trained adapter is named "trained" and
has the plan's scale; the frozen residual is named "frozen_residual" and has scale 1.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpipe_trainer.adapters.wire import AdapterTensors, Factors, lora_a_key, lora_b_key, parameter_key
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import linear_shape
from fedpipe_trainer.model.base import Base

_TRAINED: Final = "trained"
_FROZEN_RESIDUAL: Final = "frozen_residual"
_whole: Final[MutableMapping[nn.Module, Mapping[str, Tensor]]] = WeakKeyDictionary()
"""By model with adapters, the base's values of the parameters of modules that are trained whole, by name."""


@dataclass(frozen=True)
class AdapterSpec:
    """The adapter that a site trains: rank and scale by weight (scale: the factor that multiplies B·A), and dropout before A."""

    ranks: Mapping[str, int]
    scale: Callable[[str], float]
    dropout: float = 0.0


FROZEN_ADAPTER: Final = AdapterSpec(ranks={}, scale=lambda _weight: 0.0)
"""Trains nothing: the complete global adapter is the frozen residual. For evaluation and export."""


@dataclass(frozen=True)
class Adapters:
    """A base model with its adapters attached."""

    model: PreTrainedModel
    """The base model, which now applies the adapters in every call."""
    trainable: Mapping[str, nn.Parameter] = field(default_factory=dict)
    """The parameters that the optimiser changes (factors without their scale), by key of the adapter file, sorted."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """The base's values of the parameters of modules that are trained whole, by name."""

    def update(self) -> dict[str, Tensor]:
        """What the site sends: what it trained, and of the modules that are trained whole the difference from the base."""
        sent: dict[str, Tensor] = dict(self.trainable)
        for name, value in self.whole.items():
            key = parameter_key(name)
            sent[key] = sent[key].detach().cpu() - value
        return sent


@contextmanager
def attach_adapters(base: Base, spec: AdapterSpec, start: AdapterTensors, seed: int) -> Iterator[Adapters]:
    """Attach the adapters to the base; remove them at the end, which leaves the base unchanged.

    Args:
        base: the loaded base, without adapters.
        spec: ranks and scales of the trained adapter; a weight of rank 0 has none.
        start: the global adapter to start from; empty before the first round.
        seed: seeds the initial factors A and the initial head, which are the same at every site of a run.

    Raises:
        TaskFailed: BadTask, a rank is given for something that is not a linear layer of the model.
    """
    ranks = {weight: rank for weight, rank in sorted(spec.ranks.items()) if rank}
    shapes = _shapes(base.model, ranks)
    split = {weight: min(ranks.get(weight, 0), factors.rank) for weight, factors in start.weights.items()}
    residuals = {weight: factors.rank - split[weight] for weight, factors in sorted(start.weights.items()) if factors.rank > split[weight]}
    configs = {_TRAINED: _trained_config(base.model, ranks, spec), _FROZEN_RESIDUAL: _residual_config(base.model, residuals)}
    lora_model = _inject(base.model, configs)
    layers = {name: module for name, module in base.model.named_modules() if isinstance(module, LoraLayer)}
    try:
        for weight, rank in ranks.items():
            global_factors = start.weights[weight].components(0, split[weight]) if weight in start.weights else None
            scale = spec.scale(weight)
            a = init_lora_a(weight, rank, shapes[weight][1], seed)
            _set_factors(layers[weight], _TRAINED, _initial_factors(a, shapes[weight][0], global_factors, scale))
            _check_scale(layers[weight], _TRAINED, scale)
        for weight in residuals:
            _set_factors(layers[weight], _FROZEN_RESIDUAL, start.weights[weight].components(split[weight], None))
            _check_scale(layers[weight], _FROZEN_RESIDUAL, 1.0)
        _init_head(base, start.head, seed)
        _whole[base.model] = base.whole
        yield Adapters(base.model, _select_trainable(base, layers, ranks), base.whole)
    finally:
        _whole.pop(base.model, None)
        base.model.zero_grad()  # the head stays in the base: gradients of a failed task must not reach the next task
        base.model.requires_grad_(requires_grad=False)
        if lora_model is not None:
            lora_model.unload()


@contextmanager
def disabled_adapters(model: nn.Module) -> Iterator[None]:
    """In this context, the model computes as its base does, whatever is attached to it, and however it is trained."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        with _with_values(model, _whole.get(model, {})):
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)  # which makes the frozen residual require gradients, too
            for parameter in layer.parameters():
                parameter.requires_grad = False
        for parameter in trained:
            parameter.requires_grad = True


@contextmanager
def _with_values(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """In this context, the model's parameters of these names have these values."""
    parameters = {name: model.get_parameter(name) for name in values}
    trained = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = values[name].to(parameter.device, parameter.dtype)
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = trained[name]


def init_lora_a(weight: str, rank: int, d_in: int, seed: int) -> Tensor:
    """An initial factor A (rank × d_in), from peft's uniform distribution and a random generator for this weight alone.

    Rows are drawn in order, so the first rows do not depend on the rank: sites of different ranks share them.
    """
    bound = 1.0 / math.sqrt(d_in)  # kaiming_uniform with a = √5
    return torch.rand(rank, d_in, generator=_generator(seed, weight)).mul_(2.0).sub_(1.0).mul_(bound)


def lora_config(model: nn.Module, ranks: Mapping[str, int], **options: Any) -> LoraConfig:  # noqa: ANN401 - peft's own options
    """A configuration that targets exactly these weights by name."""
    return LoraConfig(
        target_modules=sorted(ranks),
        fan_in_fan_out=any(isinstance(model.get_submodule(weight), Conv1D) for weight in ranks),
        **options,
    )


def _shapes(model: nn.Module, ranks: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    modules = dict(model.named_modules())
    shapes = {}
    for weight in ranks:
        shape = linear_shape(modules.get(weight, nn.Identity()))
        if shape is None:
            msg = f"the plan gives {weight!r} a rank, but this model has no linear layer of that name"
            raise TaskFailed(FailureReason.BAD_TASK, msg)
        shapes[weight] = shape
    return shapes


def _trained_config(model: nn.Module, ranks: Mapping[str, int], spec: AdapterSpec) -> LoraConfig | None:
    # alpha = scale · r makes peft's alpha / r the plan's scale, whatever the scaling method.
    alphas = {weight: spec.scale(weight) * rank for weight, rank in ranks.items()}
    return _pattern_config(model, ranks, alphas, spec.dropout) if ranks else None


def _residual_config(model: nn.Module, ranks: Mapping[str, int]) -> LoraConfig | None:
    return _pattern_config(model, ranks, ranks, 0.0) if ranks else None


def _pattern_config(model: nn.Module, ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float) -> LoraConfig:
    return lora_config(
        model,
        ranks,
        rank_pattern={re.escape(weight): rank for weight, rank in ranks.items()},
        alpha_pattern={re.escape(weight): alpha for weight, alpha in alphas.items()},
        lora_dropout=dropout,
        init_lora_weights=False,
    )


def _inject(model: Any, configs: Mapping[str, LoraConfig | None]) -> LoraModel | None:  # noqa: ANN401 - any transformers model
    """Inject the adapters into the model and activate all of them; None if there is no adapter.

    This does not use `PeftModel`: its constructor reads a deprecated property of transformers to find out whether
    reentrant checkpointing needs gradients of the inputs. Checkpointing here is not reentrant (`steps.training_mode`).
    """
    present = {name: config for name, config in configs.items() if config is not None}
    if not present:
        return None
    first, *others = present
    lora_model = LoraModel(model, present, first)
    for name in others:
        lora_model.inject_adapter(model, name)
    lora_model.set_adapter(list(present))
    return lora_model


def _initial_factors(a: Tensor, d_out: int, global_factors: Factors | None, scale: float) -> Factors:
    """The first components of the global adapter (B divided by the scale), then the remaining initial rows of A with zero B."""
    b = torch.zeros(d_out, a.shape[0])
    if global_factors is not None:
        a[: global_factors.rank] = global_factors.a
        b[:, : global_factors.rank] = global_factors.b / scale
    return Factors(a, b)


def _set_factors(layer: Any, adapter: str, factors: Factors) -> None:  # noqa: ANN401 - peft's layers are untyped
    for linear, value in ((layer.lora_A[adapter], factors.a), (layer.lora_B[adapter], factors.b)):
        linear.weight = nn.Parameter(value.to(device=linear.weight.device, dtype=torch.float32))


def _check_scale(layer: Any, adapter: str, expected: float) -> None:  # noqa: ANN401 - peft's layers are untyped
    if not math.isclose(layer.scaling[adapter], expected, rel_tol=1e-9):
        msg = f"peft scales adapter {adapter!r} by {layer.scaling[adapter]}, the plan by {expected}"
        raise AssertionError(msg)


def _init_head(base: Base, global_head: Mapping[str, Tensor], seed: int) -> None:
    """Set what is trained in full to its global values, else the checkpoint's own, else from the seed: normal weights, zero biases."""
    std = getattr(base.model.config, "initializer_range", None) or 0.02
    with torch.no_grad():
        for name in base.head:
            parameter = base.model.get_parameter(name)
            value = next((values[name] for values in (global_head, base.own_head, base.whole) if name in values), None)
            if value is None:
                constant = torch.zeros if name.endswith("bias") else torch.ones
                is_matrix = parameter.ndim > 1
                value = torch.randn(parameter.shape, generator=_generator(seed, name)) * std if is_matrix else constant(parameter.shape)
            parameter.copy_(value)


def _select_trainable(base: Base, layers: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, nn.Parameter]:
    trainable = {parameter_key(name): base.model.get_parameter(name) for name in base.head}
    for weight in ranks:
        trainable[lora_a_key(weight)] = layers[weight].lora_A[_TRAINED].weight
        trainable[lora_b_key(weight)] = layers[weight].lora_B[_TRAINED].weight
    base.model.requires_grad_(requires_grad=False)
    for parameter in trainable.values():
        parameter.requires_grad = True
    return dict(sorted(trainable.items()))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
