"""The importance score Gradient: the mean of |W · dL/dW| over a weight's elements (GoRA, arXiv 2502.12171).

The base is frozen, so training computes no gradient of its weights. Here each target layer computes its own during the
backward pass, G = Σ gradᵀ·input over the tokens (d_out × d_in), and keeps one number of it: the dense gradient of one
weight exists at a time, and never leaves its layer. GoRA averages the gradients of the batches before it takes absolute
values, which needs all dense gradients at once; here the scores of the batches are averaged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpipe_trainer.adapters import FROZEN_ADAPTER, AdapterTensors, attach_adapters
from fedpipe_trainer.data import Example, collate
from fedpipe_trainer.losses import summed_loss
from fedpipe_trainer.model import dense_weight
from fedpipe_trainer.profiling.subject import Subject

SAMPLES: Final = 32
"""16 a half: enough for a rank correlation of 0.98 between the halves on MiniLM and 20 Newsgroups."""
FEWEST_BATCHES: Final = 2
"""One for each half."""
Scores = dict[str, float]
Record = Callable[[str, nn.Module, Tensor], None]
"""Takes the name of a layer, the layer, and the gradient of its weight (float32, d_out × d_in)."""


def scores_of_halves(subject: Subject, batches: Sequence[Sequence[Example]]) -> tuple[Scores, Scores]:
    """Score by weight on the batches of even and of odd number; a weight that gets no gradient has no score.

    The head of a classification has its initial random values, the same at every site.
    """
    with attach_adapters(subject.base, FROZEN_ADAPTER, AdapterTensors(), subject.seed) as adapters:
        scores = [_scores_of_batch(subject, adapters.model, batch) for batch in batches]
    return _mean(scores[0::2]), _mean(scores[1::2])


def backward(subject: Subject, model: PreTrainedModel, examples: Sequence[Example]) -> None:
    """The backward pass of the mean loss over the targets of these examples, if anything on its way needs a gradient."""
    batch = collate(examples, subject.objective, subject.base.pad_id)
    loss, targets = summed_loss(model, {name: tensor.to(subject.base.device) for name, tensor in batch.items()}, subject.objective)
    if loss.requires_grad:
        (loss / max(1, targets)).backward()


def _scores_of_batch(subject: Subject, model: PreTrainedModel, examples: Sequence[Example]) -> Scores:
    scores: Scores = {}
    with recorded_gradients({weight.name: model.get_submodule(weight.name) for weight in subject.weights}, partial(_add_score, scores)):
        backward(subject, model, examples)
    model.zero_grad()  # the head is trainable, and the next batch must not add to its gradient
    return scores


def _add_score(scores: Scores, name: str, layer: nn.Module, gradient: Tensor) -> None:
    # A layer that is called more than once has a score for each call: their sum bounds that of the summed gradients.
    score = float((dense_weight(layer).float() * gradient).abs().mean())
    scores[name] = scores.get(name, 0.0) + score


@contextmanager
def recorded_gradients(layers: dict[str, nn.Module], record: Record) -> Iterator[None]:
    """Call `record(name, layer, G)` in a backward pass of this context for each layer."""
    handles = [layer.register_forward_hook(partial(_watch_output, name, record)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_output(name: str, record: Record, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401 - a module returns anything
    """A forward hook: when the gradient of the output arrives, compute that of the weight."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    if not output.requires_grad:  # the lowest layers: nothing below them is trained
        output = output.detach().requires_grad_().clone()
    if not output.requires_grad:  # this model computes without gradients
        return output
    x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])

    def compute(gradient: Tensor) -> None:
        record(name, layer, gradient.reshape(-1, gradient.shape[-1]).float().T @ x.float())

    output.register_hook(compute)
    return output


def _mean(scores: Sequence[Scores]) -> Scores:
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: sum(one.get(name, 0.0) for one in scores) / len(scores) for name in names}
