"""The reference of a preference training: the base without any adapter. By how much does it prefer the chosen answers?

Its margins never change for a base and its tokens, so a training and an evaluation take them from where an earlier pass, task or round
put them (`reference_cache`). What measures a site computes them every time, as a first round does.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpipe_trainer.adapters import disabled_adapters
from fedpipe_trainer.data import IGNORED

Batch = dict[str, Tensor]
Kept = Callable[[Batch, Callable[[], Tensor]], Tensor]
"""The margins of a batch that were kept, or what the function computes."""

_kept: MutableMapping[nn.Module, Kept] = WeakKeyDictionary()


def margins(model: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - any transformers model
    """By pair, how much more probable the chosen answer is than the rejected one: a difference of log-probabilities, in float32.

    Args:
        model: a causal language model.
        batch: of n pairs, as of `data.collate`: (2n, length), the chosen answers first.

    Returns:
        Of shape (n,). What a prompt adds to both cancels out; only tokens of the answers are summed.
    """
    # Logits over a vocabulary are the largest tensor of a step: they are computed only for columns where a row has a target.
    targets = batch["labels"][:, 1:]
    columns = torch.nonzero((targets != IGNORED).any(dim=0)).squeeze(1)
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=columns, use_cache=False)
    kept = targets[:, columns]
    losses = functional.cross_entropy(output.logits.float().flatten(0, 1), kept.flatten(), ignore_index=IGNORED, reduction="none")
    chosen, rejected = losses.view_as(kept).sum(dim=1).chunk(2)
    return rejected - chosen


def reference_margins(model: nn.Module, batch: Batch) -> Tensor:
    """`margins` of the base: without adapters, dropout and gradients."""

    def compute() -> Tensor:
        with torch.no_grad(), _base_of(model):
            return margins(model, batch)

    kept = _kept.get(model)
    return compute() if kept is None else kept(batch, compute)


@contextmanager
def kept_reference(model: nn.Module, kept: Kept) -> Iterator[None]:
    """In this context, the reference's margins of this model come from where they are kept."""
    _kept[model] = kept
    try:
        yield
    finally:
        del _kept[model]


@contextmanager
def _base_of(model: nn.Module) -> Iterator[None]:
    """The model as its base in evaluation mode; afterwards each of its modules is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with disabled_adapters(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
