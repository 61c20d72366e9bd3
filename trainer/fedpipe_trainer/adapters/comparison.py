"""Computes the logits of a model whose weights are read layer by layer: to compare base + adapter with what is merged, at any size."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fedpipe_trainer import device
from fedpipe_trainer.adapters.streaming_merge import MergePlan, unrounded_value
from fedpipe_trainer.adapters.wire import AdapterTensors, Factors
from fedpipe_trainer.contract import FailureReason, Objective, Seq2SeqLM
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import AUTO_CLASSES
from fedpipe_trainer.model.checkpoint import DTYPES
from fedpipe_trainer.model.skeleton import Skeleton

_SAMPLES, _LENGTH = 2, 16  # of the random input on which logits are compared
_TOLERANCE: Final = 1e-3
"""Share of the largest logit that the order of additions may change in 32 bits."""
_LEAST_SCALE: Final = 1e-3
_EXPERTS: Final = "experts"
"""What transformers calls the list of them."""
_MODELS: Final = 3
"""That are compared: base + adapter, the merged weights as they are stored, and the same in 32 bits."""


def largest_difference(objective: Objective, skeleton: Skeleton, adapter: AdapterTensors, plan: MergePlan) -> float | None:
    """The largest difference of a logit between base + adapter and the merged weights.

    None where parameters are made of several tensors or of none, and where experts have adapters: they see the tokens that a router gives
    them, so that what another model computes is not in a third of its own.

    Raises:
        TaskFailed: BadModel, it is more than rounding makes.
    """
    changed = {name: one for name, one in plan.by_parameter.items() if one.weight in adapter.weights}
    if not plan.is_complete or any(_EXPERTS in name.split(".") for name in changed):
        return None

    def base_value(parameter: str) -> Tensor:
        source = plan.by_parameter[parameter].source
        return adapter.head[parameter] if source is None else source.read()

    def merged_value(parameter: str) -> Tensor:
        return unrounded_value(changed[parameter], skeleton.model, adapter)

    ids = valid_ids(skeleton.tokenizer, skeleton.config.get_text_config().vocab_size)
    values = _Values(base_value, merged_value, {name: DTYPES[one.dtype] for name, one in changed.items()}, adapter.weights)
    with device.tune_malloc_for_loading():  # else the weights that have been used stay in the heap
        return _compare(skeleton.config, objective, values, ids)


@dataclass(frozen=True)
class _Values:
    """The parameters of the models that are compared, by name; each is read when it is needed."""

    base: Callable[[str], Tensor]
    merged: Callable[[str], Tensor]
    """Of those that the merge changes, in 32 bits."""
    stored_as: Mapping[str, torch.dtype]
    """Of exactly these: the type in which the merged model has them."""
    factors: Mapping[str, Factors]
    """The global adapter, by module."""


def _compare(config: PretrainedConfig, objective: Objective, values: _Values, ids: Tensor) -> float:
    """The largest difference of a logit between base + adapter and the merged weights, both computed in 32 bits.

    One pass over the base computes both, so that each weight is read once: the batch has every sample as often as there are models. Only
    where a changed module computes something that is no sample's, there is a pass for each model.

    Args:
        config: of the model.
        objective: determines the class of the model.
        values: the parameters of both models, and the adapter.
        ids: input ids of the comparison.

    Raises:
        TaskFailed: BadModel, the difference is more than rounding the merged weights to their type makes.
    """
    expected, rounded, unrounded = _logits(config, objective, values, ids)
    tolerance = _TOLERANCE * max(float(expected.abs().max()), _LEAST_SCALE)
    # By how much rounding changes a logit depends on the model. So it is left out, to see whether anything else remains.
    without_rounding = _distance(unrounded, expected)
    if not without_rounding <= tolerance:
        found = f"a logit differs by {without_rounding:.3g}, where the largest is {float(expected.abs().max()):.3g}"
        msg = (
            f"the merged model is not the base with the adapter: {found}, which is more than rounding; export the adapter only"
            " (export.merged: false), or leave weights that the model uses twice out of planning.targetModules"
        )
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    return _distance(rounded, expected)


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


def _logits(config: PretrainedConfig, objective: Objective, values: _Values, ids: Tensor) -> tuple[Tensor, ...]:
    """Those of base + adapter, of the merged weights as they are stored, and of the same in 32 bits; each samples × …."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AUTO_CLASSES[objective.type].from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.eval()
    try:
        return _forward_pass(model, objective, values, ids.repeat(_MODELS, 1), range(_MODELS)).chunk(_MODELS)
    except _InputOfAllSamplesError:  # one pass for each model, which reads each weight as often
        return tuple(_forward_pass(model, objective, values, ids, range(number, number + 1)) for number in range(_MODELS))


def _forward_pass(model: PreTrainedModel, objective: Objective, values: _Values, ids: Tensor, models: range) -> Tensor:
    """The logits of these of the models, to which equal parts of the batch belong."""
    decoder_inputs = {"decoder_input_ids": ids} if isinstance(objective, Seq2SeqLM) else {}
    # The order of a module's hooks: its parts are computed before its parameters are let go.
    with torch.no_grad(), _each_computes_its_part(model, values, models, len(ids)), _read_on_demand(model, values.base):
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_inputs).logits
    return logits


@contextmanager
def _read_on_demand(model: PreTrainedModel, value: Callable[[str], Tensor]) -> Iterator[None]:
    """Within this context, a layer has its weights while it computes, as do the embedding and the output layer, the largest of all modules.

    What else is outside of the layers has them all the time: its parameters are also read from elsewhere.
    """
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    layers = {name: module for name, module in model.named_modules() if module in ends or _is_layer(name, model)}
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


class _InputOfAllSamplesError(Exception):
    """A module that the merge changes gets an input without a batch, as DeBERTa's projections get the embeddings of positions."""


@contextmanager
def _each_computes_its_part(model: nn.Module, values: _Values, models: range, samples: int) -> Iterator[None]:
    """Within this context, a module that the merge changes computes each part of its batch as another of these models does.

    Raises:
        _InputOfAllSamplesError: there are several models, and a module's input has no parts for them.
    """
    changed = {name.rpartition(".")[0] for name in values.stored_as}
    hooks = [model.get_submodule(path).register_forward_hook(_Parts(path, values, models, samples)) for path in sorted(changed)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Parts:
    """What a module that the merge changes computes instead, as a hook of it: of each part of its batch what one of the models does.

    The first of all models adds B·A·x to the output of the base: what an adapter does, and no merge. The others have merged weights,
    whose product with their part of the input replaces the base's.
    """

    path: str
    """Of the module."""
    values: _Values
    models: range
    """To which the parts belong."""
    samples: int
    """Of the whole batch."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if len(self.models) > 1 and len(inputs[0]) != self.samples:
            raise _InputOfAllSamplesError
        merged = self._merged(module) if self.models != range(1) else {}
        parts = zip(self.models, inputs[0].chunk(len(self.models)), output.chunk(len(self.models)), strict=True)
        return torch.cat([self._part(number, module, merged, x, y) for number, x, y in parts])

    def _part(self, number: int, module: nn.Module, merged: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        match number:
            case 0:
                factors = self.values.factors.get(self.path)
                return y if factors is None else y + (x @ factors.a.T) @ factors.b.T
            case 1:
                rounded = {name: value.to(self.values.stored_as[f"{self.path}.{name}"]).float() for name, value in merged.items()}
                return _forward(module, rounded, x)
            case _:
                return _forward(module, merged, x)

    def _merged(self, module: nn.Module) -> dict[str, Tensor]:
        full = {name: f"{self.path}.{name}" for name in module._parameters}  # noqa: SLF001 - as above
        return {name: self.values.merged(parameter) for name, parameter in full.items() if parameter in self.values.stored_as}


def _forward(module: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """What the module computes with other parameters. Its own forward function, and not a call, which would come to the hook again."""
    own = dict(module._parameters)  # noqa: SLF001 - as above
    module._parameters.update({name: nn.Parameter(value, requires_grad=False) for name, value in parameters.items()})  # noqa: SLF001 - as above
    try:
        output: Tensor = module.forward(inputs)
    finally:
        module._parameters.update(own)  # noqa: SLF001 - as above
    return output
