"""Metrics compared with values computed by hand."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from fedpipe_trainer.contract import FailureReason, perplexity_of
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.metrics import (
    Answer,
    classification_metrics,
    compile_slot_pattern,
    generation_metrics,
    question_metrics,
    slot_error_rate,
    words_of,
)

SLOTS = re.compile(r"\[([^\]]*)\]")


def test_accuracy_and_macro_f1() -> None:
    values = classification_metrics([0, 0, 0, 1], [0, 0, 1, 1])

    assert values["accuracy"] == 0.75
    assert values["macroF1"] == pytest.approx((0.8 + 2 / 3) / 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    expected, predicted = zip(*pairs, strict=True)

    assert classification_metrics(expected, predicted) == {
        "accuracy": pytest.approx(accuracy_score(expected, predicted)),
        "macroF1": pytest.approx(f1_score(expected, predicted, average="macro", zero_division=0.0)),
    }


def test_a_class_that_is_never_predicted_counts_as_zero() -> None:
    assert classification_metrics([0, 1], [0, 0])["macroF1"] == pytest.approx((2 / 3 + 0) / 2)


def test_perplexity_is_finite_for_every_finite_loss() -> None:
    assert perplexity_of(0.0) == 1.0
    assert perplexity_of(2.0) == pytest.approx(math.e**2)
    assert math.isfinite(perplexity_of(1e9))


def test_an_answer_that_is_one_of_the_references_is_perfect() -> None:
    right = "Alimentum is a place in the city centre."
    answers = [Answer("name[Alimentum]", ("Something else entirely, my friend.", right), right), Answer("x", (right,), right)]

    assert generation_metrics(answers, SLOTS) == {"bleu": pytest.approx(100.0), "rougeL": pytest.approx(1.0), "slotErrorRate": 0.0}


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    [answer] = [Answer("x", ("the cat sat on the mat",), "the cat on mat")]

    assert generation_metrics([answer], None)["rougeL"] == pytest.approx(2 * 1.0 * (4 / 6) / (1.0 + 4 / 6))


def test_an_empty_answer_has_the_worst_metrics() -> None:
    assert generation_metrics([Answer("name[A]", ("a reference of words",), "")], SLOTS) == {
        "bleu": 0.0,
        "rougeL": 0.0,
        "slotErrorRate": 1.0,
    }


def test_no_answers_have_no_metrics() -> None:
    assert generation_metrics([], SLOTS) == {}


def test_the_slot_error_rate_is_the_share_of_missing_values() -> None:
    answers = [
        Answer("name[Blue Spice], area[city centre], food[]", ("",), "blue spice is by the river"),
        Answer("name[Aromi], name[Aromi]", ("",), "Aromi!"),
    ]

    assert slot_error_rate(answers, SLOTS) == pytest.approx(1 / 3)


def test_prompts_without_slots_have_no_slot_error_rate() -> None:
    assert "slotErrorRate" not in generation_metrics([Answer("plain", ("a",), "a")], SLOTS)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("([a-z", "not a regular expression"),
        (r"\[[^\]]*\]", "no group"),
        ("(a{4294967296})", "not a regular expression"),
        ("(" * 500 + "a" + ")" * 500, "not a regular expression"),
    ],
)
def test_an_invalid_slot_pattern_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(TaskFailed, match=message) as caught:
        compile_slot_pattern(pattern)
    assert caught.value.reason is FailureReason.BAD_TASK


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's mat-42!", ["the", "cat", "s", "mat", "42"]),  # as rouge-score has them
        ("Größe über Straße", ["grösse", "über", "strasse"]),
        ("Привет, мир", ["привет", "мир"]),
        ("القطُّ نائم", ["القطُّ", "نائم"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("猫在睡觉。", ["猫", "在", "睡", "觉"]),
        ("GPU版の猫", ["gpu", "版", "の", "猫"]),
        ("ＡＢ１ ﬁne", ["ab1", "fine"]),  # noqa: RUF001 - full width on purpose
        ("แมวนอน", ["แ", "ม", "ว", "น", "อ", "น"]),
        ("고양이 잔다", ["고양이", "잔다"]),
    ],
)
def test_rouge_finds_the_words_of_any_script(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("今天天气很好，我们去公园。", "zh"),  # noqa: RUF001 - its comma
        ("今日は天気が良いので公園に行きます。", "ja-mecab"),
        ("วันนี้อากาศดีมาก", "char"),
        ("Сегодня очень хорошая погода, пойдём в парк.", "intl"),
        ("الطقس جميل جدا اليوم في الحديقة", "13a"),
    ],
)
def test_a_perfect_answer_in_any_script_has_the_best_metrics(text: str, tokenizer: Any) -> None:
    assert generation_metrics([Answer("x", (text,), text)], None, tokenizer) == {"bleu": pytest.approx(100), "rougeL": pytest.approx(1)}


def test_a_half_right_answer_in_chinese_is_half_right() -> None:
    [answer] = [Answer("x", ("今天天气很好",), "今天天气不错")]

    assert generation_metrics([answer], None, "zh")["rougeL"] == pytest.approx(4 / 6)
    assert 0 < generation_metrics([answer], None, "zh")["bleu"] < 80


@pytest.mark.parametrize(
    ("said", "references", "exact", "f1"),
    [
        ("the Eiffel Tower!", ("Eiffel tower",), 1, 1),
        ("tower", ("x", "Eiffel Tower"), 0, 2 / 3),
        ("in Paris in", ("Paris",), 0, 0.5),
        ("", ("Paris",), 0, 0),
        ("Don't", ("dont",), 1, 1),
        ("东京都", ("东京",), 0, 0.8),
    ],
)
def test_exact_match_and_token_f1_are_those_of_squad(said: str, references: tuple[str, ...], exact: float, f1: float) -> None:
    assert question_metrics([Answer("q", references, said)]) == {"exactMatch": exact, "tokenF1": pytest.approx(f1)}
