"""Computes the logits of a model whose weights are read layer by layer: to compare base + adapter with what is merged, at any size."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fedpipe_trainer.adapters.wire import Factors
from fedpipe_trainer.contract import FailureReason, Objective, Seq2SeqLM
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import AUTO_CLASSES

_SAMPLES, _LENGTH = 2, 16  # of the random input on which logits are compared
_TOLERANCE: Final = 1e-3
"""Share of the largest logit that the order of additions may change in 32 bits."""
_LEAST_SCALE: Final = 1e-3


@dataclass(frozen=True)
class Values:
    """The parameters of the models that are compared, by name; each is read when it is needed."""

    base: Callable[[str], Tensor]
    merged: Callable[[str], Tensor]
    """In the type in which they are stored."""
    unrounded: Callable[[str], Tensor]
    """The same in 32 bits."""


def compare(config: PretrainedConfig, objective: Objective, weights: Mapping[str, Factors], values: Values, ids: Tensor) -> float:
    """The largest difference of a logit between base + adapter and the merged weights, both computed in 32 bits.

    Args:
        config: of the model.
        objective: determines the class of the model.
        weights: the factors of the global adapter.
        values: the parameters of both models.
        ids: input ids of the comparison.

    Raises:
        TaskFailed: BadModel, the difference is more than rounding the merged weights to their type makes.
    """
    expected = _logits(config, objective, values.base, weights, ids)
    difference = _distance(_logits(config, objective, values.merged, {}, ids), expected)
    tolerance = _TOLERANCE * max(float(expected.abs().max()), _LEAST_SCALE)
    if difference <= tolerance:
        return difference
    # By how much rounding changes a logit depends on the model. So it is left out, to see whether anything else remains.
    without_rounding = _distance(_logits(config, objective, values.unrounded, {}, ids), expected)
    if not without_rounding <= tolerance:
        found = f"a logit differs by {without_rounding:.3g}, where the largest is {float(expected.abs().max()):.3g}"
        msg = (
            f"the merged model is not the base with the adapter: {found}, which is more than rounding; export the adapter only"
            " (export.merged: false), or leave weights that the model uses twice out of planning.targetModules"
        )
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    return difference


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def valid_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """Random ids (samples × length) of ordinary tokens; the last of a sample is the end of sequence, as classifiers of T5 and BART need."""
    special = {*tokenizer.all_special_ids}
    ordinary = [one for one in range(min(vocabulary, len(tokenizer))) if one not in special] or [0]
    places = torch.randint(len(ordinary), (_SAMPLES, _LENGTH), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(ordinary)[places]
    end = tokenizer.eos_token_id
    if isinstance(end, int) and end < vocabulary:
        ids[:, -1] = end
    return ids


def _logits(
    config: PretrainedConfig, objective: Objective, value: Callable[[str], Tensor], weights: Mapping[str, Factors], ids: Tensor
) -> Tensor:
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AUTO_CLASSES[objective.type].from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.eval()
    decoder_inputs = {"decoder_input_ids": ids} if isinstance(objective, Seq2SeqLM) else {}
    with torch.no_grad(), _read_on_demand(model, value), _with_factors(model, weights):
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_inputs).logits
    return logits


@contextmanager
def _read_on_demand(model: PreTrainedModel, value: Callable[[str], Tensor]) -> Iterator[None]:
    """Within this context, a layer has its weights while it computes; what is outside of the layers has them all the time."""
    layers = {name: module for name, module in model.named_modules() if _is_layer(name, model)}
    others = [(name, one) for name, one in model.named_modules() if not any(f"{name}.".startswith(f"{layer}.") for layer in layers)]
    hooks = []
    for name, layer in layers.items():
        inner = [(f"{name}.{path}" if path else name, one) for path, one in layer.named_modules()]
        hooks.append(layer.register_forward_pre_hook(lambda _layer, _inputs, inner=inner: _fill(inner, value)))
        hooks.append(layer.register_forward_hook(lambda _layer, _inputs, _output, inner=inner: _empty(inner)))
    _fill(others, value)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_layer(name: str, model: nn.Module) -> bool:
    """Whether this is an entry of an outermost list of modules."""
    path = name.split(".")
    if len(path) < 2 or not path[-1].isdecimal():  # noqa: PLR2004 - a list and a number in it
        return False
    return isinstance(model.get_submodule(".".join(path[:-1])), nn.ModuleList) and not any(part.isdecimal() for part in path[:-1])


def _fill(modules: list[tuple[str, nn.Module]], value: Callable[[str], Tensor]) -> None:
    # Each module gets a tensor of its own, also where the model ties two: what is merged into one must not change the other.
    for path, module in modules:
        for name in list(module._parameters):  # noqa: SLF001 - parameters() would follow ties and submodules
            if module._parameters[name] is not None:  # noqa: SLF001 - likewise
                full = f"{path}.{name}" if path else name
                module._parameters[name] = nn.Parameter(value(full).float(), requires_grad=False)  # noqa: SLF001 - likewise


def _empty(modules: list[tuple[str, nn.Module]]) -> None:
    for _, module in modules:
        for name, parameter in module._parameters.items():  # noqa: SLF001 - as above
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)  # noqa: SLF001 - as above


@contextmanager
def _with_factors(model: nn.Module, weights: Mapping[str, Factors]) -> Iterator[None]:
    """Within this context, each of these modules adds B·A·x to its output: what an adapter does, and no merge."""

    def hook(factors: Factors) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda _module, inputs, output: output + (inputs[0] @ factors.a.T) @ factors.b.T

    hooks = [model.get_submodule(weight).register_forward_hook(hook(factors)) for weight, factors in weights.items()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
