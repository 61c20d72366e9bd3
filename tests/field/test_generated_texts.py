"""Generated texts outside the Latin script have metrics that can reach their best."""

from typing import Any

import pytest

from fedpipe_trainer.metrics import Answer, generation_metrics

BEST = {"bleu": pytest.approx(100), "rougeL": pytest.approx(1)}


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("今天天气很好，我们去公园。", "zh"),  # noqa: RUF001 -- its comma
        ("今日は天気が良いので公園に行きます。", "ja-mecab"),
        ("วันนี้อากาศดีมาก", "char"),
        ("Сегодня очень хорошая погода.", "intl"),
        ("الطقس جميل جدا اليوم في الحديقة", "13a"),
        ("Die Größe der Straße überrascht", "13a"),
    ],
)
def test_a_perfect_answer_in_any_script_has_the_best_metrics(text: str, tokenizer: Any) -> None:
    assert generation_metrics([Answer("x", (text,), text)], None, tokenizer) == BEST


def test_an_umlaut_breaks_no_word() -> None:
    wrong = generation_metrics([Answer("x", ("Größe",), "Gr ße")], None)

    assert wrong["rougeL"] == 0.0
