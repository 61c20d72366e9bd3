"""Puts adapters on a base for the length of a task: the site's own, trained, and the global update's tail, frozen but active.

A site of rank r trains the first r components of a weight's global update and keeps the rest as it is, so it starts
from the true global model and not from a truncation of it. Peft carries both: adapter "site" at the plan's scale,
adapter "tail" at scale 1.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpipe_trainer.adapters.wire import Factors, GlobalUpdate, key_of, key_of_a, key_of_b
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import linear_shape
from fedpipe_trainer.model.base import Base

_SITE: Final = "site"
_TAIL: Final = "tail"


@dataclass(frozen=True)
class Site:
    """What a site trains: rank and scale by weight (scale: the factor before B·A), and dropout before A."""

    ranks: Mapping[str, int]
    scale: Callable[[str], float]
    dropout: float = 0.0


NO_ADAPTER_SPEC: Final = Site(ranks={}, scale=lambda _weight: 0.0)
"""Nothing is trained: the whole global update is tail. For evaluation and export."""


@dataclass(frozen=True)
class Adapters:
    """The adapters on a base."""

    model: PreTrainedModel
    """The base with the adapters in it; call it as ever."""
    trained: Mapping[str, nn.Parameter] = field(default_factory=dict)
    """What the optimiser changes and the site sends (factors without their scale), by its key in the adapter file, sorted."""


@contextmanager
def attached(base: Base, site: Site, start: GlobalUpdate, seed: int) -> Iterator[Adapters]:
    """Put the adapters on the base, and take them off at the end so that the base is as it was.

    Args:
        base: the loaded base, without adapters.
        site: ranks and scales of what is trained; rank 0 is no trained adapter there.
        start: the global update to start from; empty before the first round.
        seed: draws fresh factors A and a fresh head, the same at every site of a run.

    Raises:
        TaskFailed: BadTask, a rank is for something that is no linear layer of the model.
    """
    ranks = {weight: rank for weight, rank in sorted(site.ranks.items()) if rank}
    shapes = _shapes(base.model, ranks)
    split = {weight: min(ranks.get(weight, 0), factors.rank) for weight, factors in start.weights.items()}
    tails = {weight: factors.rank - split[weight] for weight, factors in sorted(start.weights.items()) if factors.rank > split[weight]}
    wrapped = _wrap(base.model, {_SITE: _site_config(base.model, ranks, site), _TAIL: _tail_config(base.model, tails)})
    layers = {name: module for name, module in base.model.named_modules() if isinstance(module, LoraLayer)}
    try:
        for weight, rank in ranks.items():
            learned = start.weights[weight].components(0, split[weight]) if weight in start.weights else None
            scale = site.scale(weight)
            a = fresh_factor(weight, rank, shapes[weight][1], seed)
            _fill(layers[weight], _SITE, _started(a, shapes[weight][0], learned, scale))
            _check_scale(layers[weight], _SITE, scale)
        for weight in tails:
            _fill(layers[weight], _TAIL, start.weights[weight].components(split[weight], None))
            _check_scale(layers[weight], _TAIL, 1.0)
        _start_head(base, start.head, seed)
        yield Adapters(base.model, _select_trained(base, layers, ranks))
    finally:
        base.model.zero_grad()  # the head stays: gradients of a task that failed must not reach the next
        base.model.requires_grad_(requires_grad=False)
        if wrapped is not None:
            wrapped.unload()


def fresh_factor(weight: str, rank: int, d_in: int, seed: int) -> Tensor:
    """A fresh factor A (rank × d_in), uniform as peft draws it, from a stream of the weight's own.

    Rows are drawn in order, so the first rows are the same whatever the rank: sites of unequal rank share them.
    """
    bound = 1.0 / math.sqrt(d_in)  # kaiming_uniform with a = √5
    return torch.rand(rank, d_in, generator=_stream(seed, weight)).mul_(2.0).sub_(1.0).mul_(bound)


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


def _site_config(model: nn.Module, ranks: Mapping[str, int], site: Site) -> LoraConfig | None:
    # alpha = scale · r makes peft's own alpha / r the plan's scale, for every kind of scaling.
    alphas = {weight: site.scale(weight) * rank for weight, rank in ranks.items()}
    return _pattern_config(model, ranks, alphas, site.dropout) if ranks else None


def _tail_config(model: nn.Module, ranks: Mapping[str, int]) -> LoraConfig | None:
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


def _wrap(model: Any, configs: Mapping[str, LoraConfig | None]) -> LoraModel | None:  # noqa: ANN401 - any transformers model
    """Put the adapters on the model, all of them active; None if there is no adapter.

    Not by `PeftModel`, whose constructor asks transformers for a deprecated property to see whether inputs need
    gradients for the reentrant kind of checkpointing: ours is not reentrant (`steps.training_mode`).
    """
    chosen = {name: config for name, config in configs.items() if config is not None}
    if not chosen:
        return None
    first, *others = chosen
    wrapped = LoraModel(model, chosen, first)
    for name in others:
        wrapped.inject_adapter(model, name)
    wrapped.set_adapter(list(chosen))
    return wrapped


def _started(a: Tensor, d_out: int, learned: Factors | None, scale: float) -> Factors:
    """The first components of the global update (B divided by the scale), then the fresh rows left of A with zero B."""
    b = torch.zeros(d_out, a.shape[0])
    if learned is not None:
        a[: learned.rank] = learned.a
        b[:, : learned.rank] = learned.b / scale
    return Factors(a, b)


def _fill(layer: Any, adapter: str, factors: Factors) -> None:  # noqa: ANN401 - peft's layers come untyped
    for holder, value in ((layer.lora_A[adapter], factors.a), (layer.lora_B[adapter], factors.b)):
        holder.weight = nn.Parameter(value.to(device=holder.weight.device, dtype=torch.float32))


def _check_scale(layer: Any, adapter: str, wanted: float) -> None:  # noqa: ANN401 - likewise
    if not math.isclose(layer.scaling[adapter], wanted, rel_tol=1e-9):
        msg = f"peft scales adapter {adapter!r} by {layer.scaling[adapter]}, the plan says {wanted}"
        raise AssertionError(msg)


def _start_head(base: Base, learned: Mapping[str, Tensor], seed: int) -> None:
    """Set the head to its global values, or draw it from the seed as transformers would: normal weights, zero biases."""
    std = getattr(base.model.config, "initializer_range", None) or 0.02
    with torch.no_grad():
        for name in base.head:
            parameter = base.model.get_parameter(name)
            value = learned.get(name)
            if value is None:
                flat = torch.zeros if name.endswith("bias") else torch.ones
                drawn = parameter.ndim > 1
                value = torch.randn(parameter.shape, generator=_stream(seed, name)) * std if drawn else flat(parameter.shape)
            parameter.copy_(value)


def _select_trained(base: Base, layers: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, nn.Parameter]:
    trained = {key_of(name): base.model.get_parameter(name) for name in base.head}
    for weight in ranks:
        trained[key_of_a(weight)] = layers[weight].lora_A[_SITE].weight
        trained[key_of_b(weight)] = layers[weight].lora_B[_SITE].weight
    base.model.requires_grad_(requires_grad=False)
    for parameter in trained.values():
        parameter.requires_grad = True
    return dict(sorted(trained.items()))


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
