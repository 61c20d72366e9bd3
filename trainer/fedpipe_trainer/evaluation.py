"""Forward passes of a model over examples without training: losses, predicted classes, generated answers.

A batch holds examples of similar length, and the longest come first: there is little padding, and if memory is too small,
the first batch shows it and the batch size is halved. The results do not depend on either: losses are sums over targets,
padding is masked, and results are in the order of the examples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedpipe_trainer.contract import CausalLM, Objective, Preference, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import Example, collate, lengths_of
from fedpipe_trainer.executable_batch_size import find_executable_batch_size
from fedpipe_trainer.losses import model_inputs, reward_margins, summed_head_loss, summed_loss, summed_preference_loss

T = TypeVar("T")
Prediction = tuple[float, ...]
"""What a head predicts, in the form of an example's labels; of a pair of answers, the margin of their rewards."""


@dataclass(frozen=True)
class BatchResult:
    """The result of one batch."""

    positions: list[int]
    """Indices of the examples in the batch."""
    loss_sum: float
    """The loss, summed over the targets."""
    targets: int
    tokens: int
    predicted: list[Prediction]
    """Of a head or of pairs, the prediction for each example, in the order of `positions`; otherwise empty."""


@dataclass
class EvaluationTotals:
    """The sums over all batches so far."""

    loss_sum: float = 0.0
    targets: int = 0
    tokens: int = 0
    batches: list[int] = field(default_factory=list)
    """The number of examples in each batch."""
    predicted: dict[int, Prediction] = field(default_factory=dict)
    """By index of the example."""

    def add(self, batch: BatchResult) -> None:
        """Add the result of a batch."""
        self.loss_sum += batch.loss_sum
        self.targets += batch.targets
        self.tokens += batch.tokens
        self.batches.append(len(batch.positions))
        self.predicted.update(zip(batch.positions, batch.predicted, strict=bool(batch.predicted)))

    @property
    def mean_loss(self) -> float:
        """The mean loss per target; 0 if there are no targets."""
        return self.loss_sum / max(self.targets, 1)

    @property
    def batch_size(self) -> int:
        """Examples per batch: the size of the smallest batch, except for the last, which holds the remaining examples."""
        return min(self.batches[:-1] or self.batches, default=0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients; at the end, restore its mode."""
    was_training = model.training
    model.eval()
    try:
        # Not inference_mode: tensors that a layer caches in it could not be used in training later.
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate_batches(
    model: nn.Module, examples: Sequence[Example], *, objective: Objective, pad_id: int, batch_size: int
) -> Iterator[BatchResult]:
    """Run the model on all examples, one batch at a time. The caller must have entered `evaluation_mode(model)`.

    Raises:
        TaskFailed: OutOfMemory, a single example does not fit in memory.
    """
    device = next(model.parameters()).device

    def forward(positions: list[int]) -> BatchResult:
        batch = {name: tensor.to(device) for name, tensor in collate([examples[i] for i in positions], objective, pad_id).items()}
        tokens = int(batch["attention_mask"].sum())
        if isinstance(objective, SequenceClassification):
            logits = model(**model_inputs(model, batch)).logits
            loss = summed_head_loss(logits, batch["labels"], objective)
            return BatchResult(positions, float(loss), len(positions), tokens, _predictions(logits, objective))
        if isinstance(objective, Preference):
            rewards = reward_margins(model, batch, objective.beta)
            predicted: list[Prediction] = [(margin,) for margin in rewards.tolist()]
            return BatchResult(positions, float(summed_preference_loss(rewards)), len(positions), tokens, predicted)
        loss, targets = summed_loss(model, batch, objective)
        return BatchResult(positions, float(loss), targets, tokens, [])

    for _, result in _run_in_batches(lengths_of(examples), batch_size, forward):
        yield result


def _predictions(logits: Tensor, objective: SequenceClassification) -> list[Prediction]:
    if objective.problem == "Regression":
        return [(value,) for value in logits.float().squeeze(1).tolist()]
    if objective.problem == "MultiLabel":
        return [tuple(row) for row in (logits > 0).int().tolist()]  # a probability of more than a half
    return [(index,) for index in logits.argmax(dim=-1).tolist()]


def mean_loss(model: nn.Module, examples: Sequence[Example], *, objective: Objective, pad_id: int, batch_size: int) -> tuple[float, int]:
    """The mean loss over all targets of the examples, and the number of targets.

    A target is a token of a response for a language model, the label of an example for a classification. If there are no
    targets, the loss is 0.
    """
    totals = EvaluationTotals()
    with evaluation_mode(model):
        for batch in evaluate_batches(model, examples, objective=objective, pad_id=pad_id, batch_size=batch_size):
            totals.add(batch)
    return totals.mean_loss, totals.targets


@dataclass(frozen=True)
class DecodingConfig:
    """How answers are generated: greedily, up to an end token or `max_new_tokens`."""

    max_new_tokens: int
    pad_id: int
    end_ids: tuple[int, ...]
    """Any of these tokens ends an answer."""
    batch_size: int
    min_new_tokens: int = 0
    """The end token does not count before so many tokens."""


def generate_answers(
    model: nn.Module,
    prompts: Sequence[list[int]],
    objective: CausalLM | Seq2SeqLM,
    *,
    decoding: DecodingConfig,
    before_batch: Callable[[], None],
) -> list[list[int]]:
    """Generate an answer to each prompt: token ids without prompt, end token and padding.

    Args:
        model: a transformers model with a `generate` method.
        prompts: token ids.
        objective: whether the model's output begins with the prompt (CausalLM) or not (Seq2SeqLM).
        decoding: see `DecodingConfig`.
        before_batch: called before each batch; it may raise an exception to stop.

    Raises:
        TaskFailed: OutOfMemory, a single prompt does not fit in memory.
    """
    device = next(model.parameters()).device

    def generate(positions: list[int]) -> list[list[int]]:
        before_batch()
        inputs, mask = _pad_left([prompts[i] for i in positions], decoding.pad_id)
        output = _generate(model, inputs.to(device), mask.to(device), decoding)
        skipped = inputs.shape[1] if isinstance(objective, CausalLM) else 1  # the decoder's start token
        return [_cut_at_end_token(ids, decoding.end_ids) for ids in output[:, skipped:].tolist()]

    answers: list[list[int]] = [[] for _ in prompts]
    with evaluation_mode(model):
        for positions, generated in _run_in_batches([len(prompt) for prompt in prompts], decoding.batch_size, generate):
            for position, ids in zip(positions, generated, strict=True):
                answers[position] = ids
    return answers


def _generate(model: nn.Module, inputs: Tensor, mask: Tensor, decoding: DecodingConfig) -> Tensor:
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # torch types every attribute of a module as Tensor | Module
    return generate(
        input_ids=inputs,
        attention_mask=mask,
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens or None,  # 0 would replace the minimum that the model sets
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=decoding.pad_id,
        eos_token_id=list(decoding.end_ids),
    )


def _run_in_batches(lengths: Sequence[int], batch_size: int, function: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Call `function` on batches of positions, sorted by length with the longest first; smaller batches after memory ran out."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        batch = order[:batch_size]
        result, count = find_executable_batch_size(partial(_call_on_first, function, batch), len(batch), longest=lengths[batch[0]])
        yield batch[:count], result
        del order[:count]
        if count < len(batch):
            batch_size = count


def _call_on_first(function: Callable[[list[int]], T], batch: list[int], count: int) -> T:
    return function(batch[:count])


def _pad_left(prompts: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left, so that all answers begin at the same position: ids and attention mask, both (batch, length), int64."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _cut_at_end_token(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    return ids[: next((at for at, token in enumerate(ids) if token in end_ids), len(ids))]
