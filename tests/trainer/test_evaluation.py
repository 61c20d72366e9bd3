"""Losses, predictions and answers on toy models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from fedpipe_trainer.contract import CausalLM, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import IGNORED, Example, collate
from fedpipe_trainer.evaluation import Decoding, answers, evaluating, mean_loss, passes

CAUSAL = CausalLM(prompt="{a}", response="{b}")
SEQ2SEQ = Seq2SeqLM(prompt="{a}", response="{b}")
CLASSES = SequenceClassification(labels=("no", "yes"))
PAD, END = 256, 257

Toy = Callable[[str], Path]


def causal_examples() -> list[Example]:
    return [Example(list(range(1, n + 1)), [IGNORED, *range(2, n + 1)]) for n in (3, 9, 5, 4, 7)]


def test_the_mean_loss_does_not_depend_on_batches_or_padding(toy: Toy) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))

    one_by_one = mean_loss(model, causal_examples(), objective=CAUSAL, pad_id=PAD, batch_size=1)
    at_once = mean_loss(model, causal_examples(), objective=CAUSAL, pad_id=PAD, batch_size=5)

    assert one_by_one == (pytest.approx(at_once[0], rel=1e-6), 23)


def test_the_mean_loss_is_over_targets_not_over_batches(toy: Toy) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))
    long, short = Example([1] * 20, [IGNORED] + [1] * 19), Example([7, 8], [IGNORED, 8])

    alone = [mean_loss(model, [example], objective=CAUSAL, pad_id=PAD, batch_size=1) for example in (long, short)]
    together, targets = mean_loss(model, [long, short], objective=CAUSAL, pad_id=PAD, batch_size=1)

    assert targets == 20
    assert together == pytest.approx((19 * alone[0][0] + alone[1][0]) / 20)


def test_an_evaluation_leaves_the_model_in_its_former_mode(toy: Toy) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))
    for was_training in (True, False):
        model.train(was_training)
        with evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
        assert model.training is was_training
        assert torch.is_grad_enabled()


def test_a_failure_in_an_evaluation_leaves_the_model_in_its_former_mode(toy: Toy) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy("llama")).train()
    with pytest.raises(ValueError, match="stop"), evaluating(model):
        raise ValueError("stop")
    assert model.training


def test_predictions_come_under_the_position_of_their_example(toy: Toy) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(toy("bert"), num_labels=2).eval()
    examples = [Example([i] * n, [0]) for i, n in enumerate((3, 9, 5, 4, 7))]

    found = {}
    with evaluating(model):
        for done in passes(model, examples, objective=CLASSES, pad_id=PAD, batch_size=2):
            found |= dict(zip(done.positions, done.predicted, strict=True))
        alone = [int(model(**collate([example], CLASSES, PAD)).logits.argmax()) for example in examples]

    assert len(set(alone)) > 1
    assert [found[i] for i in range(len(examples))] == alone


@pytest.mark.parametrize(
    ("name", "model_class", "objective"),
    [("llama", AutoModelForCausalLM, CAUSAL), ("gpt2", AutoModelForCausalLM, CAUSAL), ("t5", AutoModelForSeq2SeqLM, SEQ2SEQ)],
)
def test_answers_are_the_greedy_ones_whatever_the_batch(toy: Toy, name: str, model_class: type, objective: CausalLM | Seq2SeqLM) -> None:
    model = model_class.from_pretrained(toy(name))  # type: ignore[attr-defined] # the Auto classes share no typed base
    prompts = [[5, 6, 7], [9] * 11, [1, 2, 3, 4, 5]]
    how = [Decoding(max_new_tokens=6, pad_id=PAD, end_id=END, batch_size=size) for size in (1, 3)]

    alone, together = (answers(model, prompts, objective, how=each, between=lambda: None) for each in how)

    assert any(alone)
    assert alone == together
    assert alone == [greedily(model, prompt, objective, 6) for prompt in prompts]


def greedily(model: torch.nn.Module, prompt: list[int], objective: CausalLM | Seq2SeqLM, count: int) -> list[int]:
    """The definition: the likeliest token, one at a time, everything computed anew."""
    answer: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            if isinstance(objective, CausalLM):
                logits = model(input_ids=torch.tensor([prompt + answer])).logits
            else:
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[PAD, *answer]])).logits
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            answer.append(token)
    return answer
