"""The layers of a loaded model in the order of computation, and the part of the model below a layer.

A plan that trains from layer j on needs no backward pass below it: nothing there requires a gradient. That lower part is
always computed in evaluation mode, so that its output depends on the input alone and can be cached.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from fedpipe_trainer.contract import FailureReason, Plan
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import count_encoder_layers, layer_of
from fedpipe_trainer.model.whole_modules import lowest_layer_of


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers, counted from the input as in `WeightShape.layer`: a decoder's layers follow the encoder's.

    Raises:
        TaskFailed: BadTask, the architecture has no list of layers as long as its configuration says.
    """
    config = model.config.get_text_config()
    lengths = {getattr(config, name, None) for name in ("num_hidden_layers", "num_decoder_layers", "decoder_layers")}
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) in lengths]
    outermost = [module for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if len(outermost) != 1 + bool(model.config.is_encoder_decoder):
        msg = f"the layers of a {config.model_type} model are not one list, so it cannot be trained from a layer on: set lowestLayer to 0"
        raise TaskFailed(FailureReason.BAD_TASK, msg)
    return [layer for layers in outermost for layer in layers]


def check_depth(plan: Plan, model: PreTrainedModel, head: tuple[str, ...], whole: tuple[str, ...] = ()) -> None:
    """Check that the plan's `lowest_layer` fits its ranks, its `cache_activations` and the model.

    Args:
        plan: of the site.
        model: the base.
        head: all parameters that are trained in full.
        whole: those of them that modules of the base have.

    Raises:
        TaskFailed: BadTask, with a sentence about what contradicts what.
    """
    lowest = plan.lowest_layer
    if plan.cache_activations and model.config.is_encoder_decoder:
        raise _bad_plan("the plan caches activations, which works only for models with one stack of layers, and this is an encoder-decoder")
    if plan.cache_activations and not lowest:
        raise _bad_plan("the plan caches activations, but its lowestLayer is 0, and below that layer there are none")
    if not lowest:
        return
    layers = layers_of(model)
    if lowest > len(layers):
        raise _bad_plan(f"the plan's lowestLayer is {lowest}, but the model has only {len(layers)} layers")
    if lowest == len(layers) and not head:
        raise _bad_plan(f"the plan's lowestLayer is {lowest}, so none of its {len(layers)} layers is trained, but there is no head")
    if lowest > (highest := lowest_layer_of(model, whole, len(layers))):
        msg = (
            f"the plan's lowestLayer is {lowest}, but a module of planning.modulesToSave belongs to layer {highest} or to what is below it"
        )
        raise _bad_plan(f"{msg}: train from a layer up to {highest} on")
    encoder_layers = count_encoder_layers(model)
    below = sorted(weight for weight, rank in plan.ranks.items() if rank and layer_of(weight, encoder_layers) < lowest)
    if below:
        raise _bad_plan(f"the plan's lowestLayer is {lowest}, but it gives a rank to {below[0]}, which belongs to a lower layer")


@contextmanager
def lower_part_in_evaluation_mode(model: PreTrainedModel, lowest_layer: int) -> Iterator[None]:
    """In this context, every forward pass of a model in training mode computes everything below this layer in evaluation mode.

    The mode changes during the pass, when the last of the lower layers returns. So it holds for embeddings, too, and for
    what an architecture computes between its layers, wherever that is.
    """
    if not lowest_layer:
        yield
        return
    layers = layers_of(model)
    upper = {module for layer in layers[lowest_layer:] for module in layer.modules()}
    others = [module for module in model.modules() if module not in upper and module is not model]

    def set_mode(*, training: bool) -> None:
        for module in others:
            module.training = training

    hooks = [
        model.register_forward_pre_hook(lambda _model, _inputs: set_mode(training=False)),
        layers[lowest_layer - 1].register_forward_hook(lambda _layer, _inputs, _output: set_mode(training=model.training)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        set_mode(training=model.training)


def _bad_plan(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_TASK, message)
