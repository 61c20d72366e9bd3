"""Passes of a model over examples without learning from them: losses, predicted classes, generated answers.

Batches are made of examples of like length, the longest first: little padding, and memory that is too small shows at
once; then they are halved. Neither changes what a result means: losses are sums over targets, padding is masked, and
what is returned is in the order of what was given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpipe_trainer.contract import CausalLM, Objective, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import Example, collate
from fedpipe_trainer.executable_batch_size import find_executable_batch_size
from fedpipe_trainer.losses import summed_loss

T = TypeVar("T")


@dataclass(frozen=True)
class Pass:
    """What one batch gave."""

    positions: list[int]
    """Which examples were in it."""
    loss_sum: float
    """The loss summed over its targets."""
    targets: int
    tokens: int
    predicted: list[int]
    """For a classification the likeliest class, in the order of `positions`; else empty."""


@dataclass
class Total:
    """What the batches so far gave together."""

    loss_sum: float = 0.0
    targets: int = 0
    tokens: int = 0
    batches: list[int] = field(default_factory=list)
    """Examples in each batch."""
    predicted: dict[int, int] = field(default_factory=dict)
    """Class by position."""

    def add(self, done: Pass) -> None:
        """Count one more batch."""
        self.loss_sum += done.loss_sum
        self.targets += done.targets
        self.tokens += done.tokens
        self.batches.append(len(done.positions))
        self.predicted.update(zip(done.positions, done.predicted, strict=bool(done.predicted)))

    @property
    def mean_loss(self) -> float:
        """The loss per target; 0 without any target."""
        return self.loss_sum / max(self.targets, 1)

    @property
    def batch_size(self) -> int:
        """Examples at once: those of the smallest batch but the last, which holds what is left."""
        return min(self.batches[:-1] or self.batches, default=0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        # Not inference_mode: what a layer keeps from it could never take part in training again.
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def passes(model: nn.Module, examples: Sequence[Example], *, objective: Objective, pad_id: int, batch_size: int) -> Iterator[Pass]:
    """Run the model over all examples, a batch at a time. The caller holds `evaluating(model)` open meanwhile.

    Raises:
        TaskFailed: OutOfMemory with a single example.
    """
    device = next(model.parameters()).device

    def forward(positions: list[int]) -> Pass:
        batch = {name: tensor.to(device) for name, tensor in collate([examples[i] for i in positions], objective, pad_id).items()}
        tokens = int(batch["attention_mask"].sum())
        if isinstance(objective, SequenceClassification):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = functional.cross_entropy(logits.float(), batch["labels"], reduction="sum")
            return Pass(positions, float(loss), len(positions), tokens, logits.argmax(dim=-1).tolist())
        loss, targets = summed_loss(model, batch, objective)
        return Pass(positions, float(loss), targets, tokens, [])

    for _, done in _in_batches([len(example.input_ids) for example in examples], batch_size, forward):
        yield done


def mean_loss(model: nn.Module, examples: Sequence[Example], *, objective: Objective, pad_id: int, batch_size: int) -> tuple[float, int]:
    """The mean loss over all targets of the examples, and how many targets they have.

    For a language model a target is a token of a response, for a classification the label of an example. Without any
    target the loss is 0.
    """
    total = Total()
    with evaluating(model):
        for done in passes(model, examples, objective=objective, pad_id=pad_id, batch_size=batch_size):
            total.add(done)
    return total.mean_loss, total.targets


@dataclass(frozen=True)
class Decoding:
    """How answers are generated: greedily, up to `max_new_tokens`, or to the end token."""

    max_new_tokens: int
    pad_id: int
    end_id: int
    batch_size: int


def answers(
    model: nn.Module, prompts: Sequence[list[int]], objective: CausalLM | Seq2SeqLM, *, how: Decoding, between: Callable[[], None]
) -> list[list[int]]:
    """The model's answer to each prompt: token ids without prompt, end token and padding.

    Args:
        model: a transformers model that generates.
        prompts: token ids.
        objective: whether the answer follows the prompt (CausalLM) or stands apart (Seq2SeqLM).
        how: see `Decoding`.
        between: called before each batch; it may raise to end the work.

    Raises:
        TaskFailed: OutOfMemory with a single prompt.
    """
    device = next(model.parameters()).device

    def answer(positions: list[int]) -> list[list[int]]:
        between()
        inputs, mask = _padded_left([prompts[i] for i in positions], how.pad_id)
        generated = _generate(model, inputs.to(device), mask.to(device), how)
        skipped = inputs.shape[1] if isinstance(objective, CausalLM) else 1  # the decoder's start token
        return [_until(ids, how.end_id) for ids in generated[:, skipped:].tolist()]

    found: list[list[int]] = [[] for _ in prompts]
    with evaluating(model):
        for positions, texts in _in_batches([len(prompt) for prompt in prompts], how.batch_size, answer):
            for position, ids in zip(positions, texts, strict=True):
                found[position] = ids
    return found


def _generate(model: nn.Module, inputs: Tensor, mask: Tensor, how: Decoding) -> Tensor:
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # torch types every attribute of a module as Tensor | Module
    return generate(
        input_ids=inputs,
        attention_mask=mask,
        max_new_tokens=how.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=how.pad_id,
        eos_token_id=how.end_id,
    )


def _in_batches(lengths: Sequence[int], batch_size: int, do: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Each batch of positions and what `do` made of it: of like length, the longest first, smaller once memory ran out."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        batch = order[:batch_size]
        result, count = find_executable_batch_size(partial(_with_first, do, batch), len(batch), longest=lengths[batch[0]])
        yield batch[:count], result
        del order[:count]
        if count < len(batch):
            batch_size = count


def _with_first(do: Callable[[list[int]], T], batch: list[int], count: int) -> T:
    return do(batch[:count])


def _padded_left(prompts: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts that all end where the answers begin: ids and attention mask, both (batch, length), int64."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
