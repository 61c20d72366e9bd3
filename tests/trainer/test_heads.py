"""Heads beside that of one label for one text: pairs of texts, several labels, numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from tokenizers import processors
from toy_training import a_training_task, make_runtime
from toys import END, START, byte_tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fedpipe_trainer.contract import DataPolicy, EvaluateTask, Evaluation, SequenceClassification
from fedpipe_trainer.data import Example, collate, encode, select_rows
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.losses import summed_loss
from fedpipe_trainer.metrics import multi_label_metrics, regression_metrics
from fedpipe_trainer.model import facts
from fedpipe_trainer.model.architecture import read_config
from fedpipe_trainer.recipes import evaluate, train

Toy = Callable[[str], Path]
PAIRS = SequenceClassification(text="a", text_pair="b", labels=("no", "yes"), max_length=16)
MANY = SequenceClassification(text="a", problem="MultiLabel", labels=("x", "y", "z"), max_length=16)
NUMBER = SequenceClassification(text="a", text_pair="b", problem="Regression", max_length=16)
ROWS = [{"a": f"turn {at}", "b": ("left", "right")[at % 2], "label": ("no", "yes")[at % 2]} for at in range(8)]
QUERY = {"bert.encoder.layer.1.attention.self.query": 4}


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and BERT's frame of a pair: `<s> a </s> b </s>`, the second of type 1."""
    tokenizer = byte_tokenizer(add_end_token=False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("</s>", END), ("<s>", START)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_pair_is_one_sample_and_the_model_is_told_which_tokens_are_the_second() -> None:
    tokenizer = pair_tokenizer()
    text = list(tokenizer(["ab"], add_special_tokens=False)["input_ids"][0])

    [sample] = encode([{"a": "ab", "b": "ab", "label": "yes"}], PAIRS, tokenizer)
    batch = collate([sample, Example([1, 2, 3], [0], 2)], PAIRS, 256)

    assert sample == Example([START, *text, END, *text, END], [1], 4)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0]]


def test_a_long_pair_loses_tokens_of_its_longer_text() -> None:
    [sample] = encode([{"a": "x" * 100, "b": "ab", "label": "yes"}], PAIRS, pair_tokenizer())

    assert (len(sample.input_ids), sample.second) == (16, 13)


def test_a_text_alone_has_no_token_types() -> None:
    assert "token_type_ids" not in collate(encode([{"a": "ab", "label": '["x"]'}], MANY, pair_tokenizer()), MANY, 256)


def test_labels_are_a_list_or_its_text_and_a_row_may_have_none(tmp_path: Path) -> None:
    labels = (["z", "x", "x"], "[]", '["x"]', "['x']")  # the last as pandas writes it
    path = write(tmp_path / "rows.jsonl", *({"a": "k", "label": one} for one in labels))

    samples = encode(select_rows(path, MANY, DataPolicy()).rows, MANY, pair_tokenizer())

    assert [sample.labels for sample in samples] == [[1, 0, 1], [0, 0, 0], *[[1, 0, 0]] * 2]
    assert collate(samples[:2], MANY, 256)["labels"].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("value", ["3.25", 3.25])
def test_a_regression_learns_numbers(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "rows.jsonl", {"a": "k", "b": "l", "label": value}, {"a": "k", "b": "l", "label": -100})

    samples = encode(select_rows(path, NUMBER, DataPolicy()).rows, NUMBER, pair_tokenizer())

    assert collate(samples, NUMBER, 256)["labels"].tolist() == [3.25, -100.0]


@pytest.mark.parametrize(
    ("objective", "value", "problem"),
    [
        (MANY, "x", "it is a text, but not the JSON of a list of labels"),
        (MANY, {"x": 1}, "it is not a list of labels"),
        (MANY, [""], "it is empty"),
        (MANY, ["x", "secret"], "have in column 'label' none of the run's 3 labels"),
        (NUMBER, "secret", "it is not a number"),
        (NUMBER, float("nan"), "no value in column 'label'"),
        (NUMBER, True, "it is not a number"),
        (NUMBER, float("inf"), "it is not a number"),
        (NUMBER, -250_000, "it is above 1000 or below −1000, and the loss is its square: scale the column"),
    ],
)
def test_a_row_without_a_usable_label_is_refused_and_not_quoted(
    tmp_path: Path, objective: SequenceClassification, value: Any, problem: str
) -> None:
    path = write(tmp_path / "rows.jsonl", {"a": "k", "b": "l", "label": value})

    with pytest.raises(TaskFailed, match=problem) as caught:
        select_rows(path, objective, DataPolicy())
    assert "secret" not in str(caught.value)


def test_the_policy_leaves_out_rows_one_of_whose_labels_it_does_not_allow(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"a": "1", "label": ["x"]}, {"a": "2", "label": ["x", "y"]}, {"a": "3", "label": []})

    assert [row["a"] for row in select_rows(path, MANY, DataPolicy(labels=("x",))).rows] == ["1", "3"]


@pytest.mark.parametrize("objective", [PAIRS, MANY, NUMBER], ids=["pairs", "labels", "numbers"])
def test_the_loss_is_that_of_transformers(toy: Toy, objective: SequenceClassification) -> None:
    model = AutoModelForSequenceClassification.from_config(read_config(toy("bert"), objective)).eval()
    values = {"SingleLabel": ([1], [0]), "MultiLabel": ([1, 0, 1], [0, 0, 0]), "Regression": ([2.5], [-1.0])}[objective.problem]
    batch = collate([Example([1, 2, 3], values[0], 2), Example([4, 5], values[1])], objective, 256)

    with torch.no_grad():
        loss, targets = summed_loss(model, batch, objective)
        expected = model(**batch).loss

    assert targets == 2
    assert float(loss) / 2 == pytest.approx(float(expected), rel=1e-5)


def test_a_model_without_token_types_is_told_none(toy: Toy) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(toy("llama"), num_labels=2).eval()
    examples = [Example([1, 2, 3], [1], 2)]

    with torch.no_grad():
        told, untold = (summed_loss(model, collate(some, PAIRS, 256), PAIRS)[0] for some in (examples, [Example([1, 2, 3], [1])]))

    assert torch.equal(told, untold)


@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=30))
def test_f1_of_several_labels_is_that_of_scikit_learn(samples: list[tuple[bool, ...]]) -> None:
    expected, predicted = ([list(map(int, one[at : at + 3])) for one in samples] for at in (0, 3))
    seen = [at for at in range(3) if any(row[at] for row in (*expected, *predicted))]
    found = multi_label_metrics(expected, predicted)

    if seen:
        scores = {name: f1_score(expected, predicted, average=name, labels=seen, zero_division=0.0) for name in ("micro", "macro")}
        assert found == {"microF1": pytest.approx(scores["micro"]), "macroF1": pytest.approx(scores["macro"])}
    else:
        assert found == {"microF1": 1.0, "macroF1": 1.0}


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30))
def test_correlations_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    expected, predicted = ([float(one) for one in values] for values in zip(*pairs, strict=True))
    found = regression_metrics(expected, predicted)

    assert found["mse"] == pytest.approx(sum((e - p) ** 2 for e, p in pairs) / len(pairs))
    if len(set(expected)) > 1 and len(set(predicted)) > 1:
        assert found["pearson"] == pytest.approx(pearsonr(expected, predicted).statistic, abs=1e-9)
        assert found["spearman"] == pytest.approx(spearmanr(expected, predicted).statistic, abs=1e-9)
    else:
        assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


def test_the_head_of_a_regression_has_one_output_whatever_the_labels(toy: Toy) -> None:
    shapes = facts(toy("bert"), NUMBER, ()).head

    assert shapes["base_model.model.classifier.weight"] == (1, 32)
    assert facts(toy("bert"), MANY, ()).head["base_model.model.classifier.weight"] == (-1, 32)


@pytest.mark.parametrize(
    ("objective", "labels", "measured"),
    [
        (PAIRS, ("no", "yes"), {"accuracy", "macroF1"}),
        (MANY, (["x"], ["y", "z"]), {"microF1", "macroF1"}),
        (NUMBER, (1.5, -1.5), {"mse", "pearson", "spearman"}),
    ],
    ids=["pairs", "labels", "numbers"],
)
def test_a_site_trains_and_evaluates(
    toy: Toy, tmp_path: Path, objective: SequenceClassification, labels: tuple[Any, Any], measured: set[str]
) -> None:
    task = a_training_task(toy("bert"), tmp_path, QUERY, objective=objective, steps=3)
    rows = [{"a": f"turn {at}", "b": "left", "label": labels[at % 2]} for at in range(8)]
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.jsonl", *rows)
    asked = EvaluateTask(
        **task.model_dump(include={"run", "site", "round", "attempt", "model", "result", "objective", "data", "contributors"}),
        bits=32,
        batch_size=4,
        evaluation=Evaluation(max_samples=8, samples=1),
        policy=DataPolicy(max_shown_rows=1),
    )

    trained = train.run(task, make_runtime(tmp_path / "train"))
    evaluated = evaluate.run(asked, make_runtime(tmp_path / "evaluate"))

    assert len(trained.losses) == 3
    assert set(evaluated.metrics) == measured
    assert (evaluated.samples, evaluated.targets) == (8, 8)
    assert evaluated.examples[0].text.startswith("turn 0")
