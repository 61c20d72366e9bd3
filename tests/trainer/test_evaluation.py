"""Losses, predictions and answers on toy models."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from fedpipe_trainer.contract import (
    CausalLM,
    Data,
    EvaluateTask,
    Evaluation,
    FailureReason,
    Model,
    Objective,
    Progress,
    RunRef,
    Seq2SeqLM,
    SequenceClassification,
)
from fedpipe_trainer.data import IGNORED, Example, collate
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.evaluation import Decoding, Total, answers, evaluating, mean_loss, passes
from fedpipe_trainer.recipes import evaluate
from fedpipe_trainer.workplace import Workplace

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


LENGTHS = (3, 9, 5, 4, 7, 6, 8)
CASES: list[tuple[str, Any, Objective, list[Example]]] = [
    ("llama", AutoModelForCausalLM, CAUSAL, [Example(list(range(1, n + 1)), [IGNORED, *range(2, n + 1)]) for n in LENGTHS]),
    ("t5", AutoModelForSeq2SeqLM, SEQ2SEQ, [Example([i] * n, [n] * (i + 1)) for i, n in enumerate(LENGTHS)]),
    ("bert", AutoModelForSequenceClassification, CLASSES, [Example([i] * n, [i % 2]) for i, n in enumerate(LENGTHS)]),
]


@pytest.mark.parametrize(("name", "model_class", "objective", "examples"), CASES, ids=[case[0] for case in CASES])
def test_an_evaluation_whose_batch_does_not_fit_memory_goes_on_in_halves_to_the_same_result(
    toy: Toy, name: str, model_class: Any, objective: Objective, examples: list[Example]
) -> None:
    model = model_class.from_pretrained(toy(name))
    wanted, found = total(model, examples, objective), total(cramped(model, 3), examples, objective)

    assert wanted.batches == [7]
    assert found.batches == [2, 2, 2, 1]  # of 7, halved to 4, then to 2
    assert (wanted.batch_size, found.batch_size) == (7, 2)
    assert found.mean_loss == pytest.approx(wanted.mean_loss, rel=1e-5)
    assert (found.targets, found.tokens, found.predicted) == (wanted.targets, wanted.tokens, wanted.predicted)


@pytest.mark.parametrize(("name", "model_class", "objective"), [case[:3] for case in CASES[:2]], ids=["llama", "t5"])
def test_answers_whose_batch_does_not_fit_memory_are_given_in_halves(
    toy: Toy, name: str, model_class: Any, objective: CausalLM | Seq2SeqLM
) -> None:
    model = model_class.from_pretrained(toy(name))
    prompts = [[5, 6, 7], [9] * 11, [1, 2, 3, 4, 5], [8, 8]]
    how = Decoding(max_new_tokens=6, pad_id=PAD, end_id=END, batch_size=4)

    wanted = answers(model, prompts, objective, how=how, between=lambda: None)
    found = answers(cramped(model, 2), prompts, objective, how=how, between=lambda: None)

    assert found == wanted


def test_a_single_example_that_does_not_fit_memory_ends_the_evaluation(toy: Toy) -> None:
    model = cramped(AutoModelForCausalLM.from_pretrained(toy("llama")), 0)

    with pytest.raises(TaskFailed, match="one sample of up to 9 tokens") as failed:
        mean_loss(model, causal_examples(), objective=CAUSAL, pad_id=PAD, batch_size=4)

    assert failed.value.reason is FailureReason.OUT_OF_MEMORY


def test_a_sites_limit_of_memory_holds_while_it_evaluates(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a", "label": "no"}) + "\n")
    limits: dict[str, int] = {}

    def say(progress: Progress) -> None:
        limits[progress.phase] = resource.getrlimit(resource.RLIMIT_DATA)[0]

    place = Workplace(folder=tmp_path, cache=tmp_path, say=say, stop_requested=lambda: False, memory_limit_bytes=64 * 2**30)
    rows = str(tmp_path / "rows.jsonl")
    task = EvaluateTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        round=1,
        model=Model(source=toy("bert").as_uri()),
        result=(tmp_path / "result.json").as_uri(),
        objective=CLASSES,
        data=Data(train=rows, validation=rows),
        bits=32,
        batch_size=2,
        evaluation=Evaluation(),
    )

    assert evaluate.run(task, place).batch_size == 1
    assert limits["load"] == resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    assert 0 < limits["evaluate"] < 2 * 64 * 2**30


def total(model: torch.nn.Module, examples: list[Example], objective: Objective) -> Total:
    found = Total()
    with evaluating(model):
        for done in passes(model, examples, objective=objective, pad_id=PAD, batch_size=len(examples)):
            found.add(done)
    return found


def cramped(model: torch.nn.Module, most: int) -> torch.nn.Module:
    """The model on a device that holds no more than `most` samples at once."""

    def check(_model: torch.nn.Module, _arguments: object, inputs: dict[str, torch.Tensor]) -> None:
        if len(inputs["attention_mask"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(check, with_kwargs=True)
    return model


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
