"""Losses, predictions and generated answers of toy models."""

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
from fedpipe_trainer.evaluation import DecodingConfig, EvaluationTotals, evaluate_batches, evaluation_mode, generate_answers, mean_loss
from fedpipe_trainer.recipes import evaluate
from fedpipe_trainer.task_runtime import TaskRuntime

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

    single = [mean_loss(model, [example], objective=CAUSAL, pad_id=PAD, batch_size=1) for example in (long, short)]
    together, targets = mean_loss(model, [long, short], objective=CAUSAL, pad_id=PAD, batch_size=1)

    assert targets == 20
    assert together == pytest.approx((19 * single[0][0] + single[1][0]) / 20)


def test_an_evaluation_restores_the_mode_of_the_model(toy: Toy) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))
    for was_training in (True, False):
        model.train(was_training)
        with evaluation_mode(model):
            assert not model.training
            assert not torch.is_grad_enabled()
        assert model.training is was_training
        assert torch.is_grad_enabled()


def test_a_failed_evaluation_restores_the_mode_of_the_model(toy: Toy) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy("llama")).train()
    with pytest.raises(ValueError, match="stop"), evaluation_mode(model):
        raise ValueError("stop")
    assert model.training


def balance(model: Any, examples: list[Example]) -> None:
    """Shift the random head so that both classes are predicted."""
    logits = torch.stack([model(**collate([example], CLASSES, PAD)).logits[0] for example in examples])
    differences = (logits[:, 1] - logits[:, 0]).sort().values
    model.classifier.bias += torch.tensor([1.0, 0.0]) * differences[1:3].mean()


def test_predictions_are_returned_by_the_position_of_their_example(toy: Toy) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(toy("bert"), num_labels=2).eval()
    examples = [Example([i] * n, [0]) for i, n in enumerate((3, 9, 5, 4, 7))]

    predicted = {}
    with evaluation_mode(model):
        balance(model, examples)
        for batch in evaluate_batches(model, examples, objective=CLASSES, pad_id=PAD, batch_size=2):
            predicted |= dict(zip(batch.positions, batch.predicted, strict=True))
        expected = [(int(model(**collate([example], CLASSES, PAD)).logits.argmax()),) for example in examples]

    assert len(set(expected)) > 1
    assert [predicted[i] for i in range(len(examples))] == expected


@pytest.mark.parametrize(
    ("name", "model_class", "objective"),
    [("llama", AutoModelForCausalLM, CAUSAL), ("gpt2", AutoModelForCausalLM, CAUSAL), ("t5", AutoModelForSeq2SeqLM, SEQ2SEQ)],
)
def test_answers_are_greedy_whatever_the_batch_size(toy: Toy, name: str, model_class: type, objective: CausalLM | Seq2SeqLM) -> None:
    model = model_class.from_pretrained(toy(name))  # type: ignore[attr-defined] # the Auto classes share no typed base
    prompts = [[5, 6, 7], [9] * 11, [1, 2, 3, 4, 5]]
    configs = [DecodingConfig(max_new_tokens=6, pad_id=PAD, end_ids=(END,), batch_size=size) for size in (1, 3)]

    single, batched = (generate_answers(model, prompts, objective, decoding=config, before_batch=lambda: None) for config in configs)

    assert any(single)
    assert single == batched
    assert single == [decode_greedily(model, prompt, objective, 6) for prompt in prompts]


LENGTHS = (3, 9, 5, 4, 7, 6, 8)
CASES: list[tuple[str, Any, Objective, list[Example]]] = [
    ("llama", AutoModelForCausalLM, CAUSAL, [Example(list(range(1, n + 1)), [IGNORED, *range(2, n + 1)]) for n in LENGTHS]),
    ("t5", AutoModelForSeq2SeqLM, SEQ2SEQ, [Example([i] * n, [n] * (i + 1)) for i, n in enumerate(LENGTHS)]),
    ("bert", AutoModelForSequenceClassification, CLASSES, [Example([i] * n, [i % 2]) for i, n in enumerate(LENGTHS)]),
]


@pytest.mark.parametrize(("name", "model_class", "objective", "examples"), CASES, ids=[case[0] for case in CASES])
def test_an_evaluation_whose_batch_does_not_fit_in_memory_continues_with_half_the_size_to_the_same_result(
    toy: Toy, name: str, model_class: Any, objective: Objective, examples: list[Example]
) -> None:
    model = model_class.from_pretrained(toy(name))
    expected, halved = totals(model, examples, objective), totals(limit_batch(model, 3), examples, objective)

    assert expected.batches == [7]
    assert halved.batches == [2, 2, 2, 1]  # of 7, halved to 4, then to 2
    assert (expected.batch_size, halved.batch_size) == (7, 2)
    assert halved.mean_loss == pytest.approx(expected.mean_loss, rel=1e-5)
    assert (halved.targets, halved.tokens, halved.predicted) == (expected.targets, expected.tokens, expected.predicted)


@pytest.mark.parametrize(("name", "model_class", "objective"), [case[:3] for case in CASES[:2]], ids=["llama", "t5"])
def test_answers_whose_batch_does_not_fit_in_memory_are_generated_with_half_the_size(
    toy: Toy, name: str, model_class: Any, objective: CausalLM | Seq2SeqLM
) -> None:
    model = model_class.from_pretrained(toy(name))
    prompts = [[5, 6, 7], [9] * 11, [1, 2, 3, 4, 5], [8, 8]]
    decoding = DecodingConfig(max_new_tokens=6, pad_id=PAD, end_ids=(END,), batch_size=4)

    expected = generate_answers(model, prompts, objective, decoding=decoding, before_batch=lambda: None)
    halved = generate_answers(limit_batch(model, 2), prompts, objective, decoding=decoding, before_batch=lambda: None)

    assert halved == expected


def test_a_single_example_that_does_not_fit_in_memory_fails_the_evaluation(toy: Toy) -> None:
    model = limit_batch(AutoModelForCausalLM.from_pretrained(toy("llama")), 0)

    with pytest.raises(TaskFailed, match="one sample of up to 9 tokens") as failed:
        mean_loss(model, causal_examples(), objective=CAUSAL, pad_id=PAD, batch_size=4)

    assert failed.value.reason is FailureReason.OUT_OF_MEMORY


def test_the_memory_limit_of_a_site_is_set_during_an_evaluation(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a", "label": "no"}) + "\n")
    limits: dict[str, int] = {}

    def record_limit(progress: Progress) -> None:
        limits[progress.phase] = resource.getrlimit(resource.RLIMIT_DATA)[0]

    runtime = TaskRuntime(
        folder=tmp_path, cache=tmp_path, write_progress=record_limit, stop_requested=lambda: False, memory_limit_bytes=64 * 2**30
    )
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

    assert evaluate.run(task, runtime).batch_size == 1
    assert limits["load"] == resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    assert 0 < limits["evaluate"] < 2 * 64 * 2**30


def totals(model: torch.nn.Module, examples: list[Example], objective: Objective) -> EvaluationTotals:
    sums = EvaluationTotals()
    with evaluation_mode(model):
        for batch in evaluate_batches(model, examples, objective=objective, pad_id=PAD, batch_size=len(examples)):
            sums.add(batch)
    return sums


def limit_batch(model: torch.nn.Module, max_samples: int) -> torch.nn.Module:
    """The model on a device that holds at most `max_samples` samples at once."""

    def check(_model: torch.nn.Module, _arguments: object, inputs: dict[str, torch.Tensor]) -> None:
        if len(inputs["attention_mask"]) > max_samples:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(check, with_kwargs=True)
    return model


def decode_greedily(model: torch.nn.Module, prompt: list[int], objective: CausalLM | Seq2SeqLM, count: int) -> list[int]:
    """Greedy decoding by definition: always the most probable token, without a cache."""
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
