from io import StringIO

import pytest
from rich.console import Console, RenderableType

from fedpipe_operator.report import comparison_rows, comparison_table, samples_table
from fedpipe_operator.rounds.records import Comparison, RoundEvaluation
from fedpipe_trainer.contract import Sample


def evaluation(**metrics: float) -> RoundEvaluation:
    return RoundEvaluation(round=0, finished_at=0.0, loss=1.5, metrics=metrics)


@pytest.fixture
def classified() -> Comparison:
    return Comparison(
        base=evaluation(accuracy=0.052, macroF1=0.01),
        local_only={"b": evaluation(accuracy=0.61, macroF1=0.58), "a": evaluation(accuracy=0.7249, macroF1=0.7)},
        federated=evaluation(accuracy=0.7841, macroF1=0.77),
    )


@pytest.fixture
def generated() -> Comparison:
    return Comparison(
        base=evaluation(perplexity=31.4159, bleu=3.25, rougeL=0.2),
        local_only={"a": evaluation(perplexity=5.031, bleu=40.04, rougeL=0.55)},
        federated=evaluation(perplexity=4.2, bleu=61.27, rougeL=0.6661),
    )


def printed(table: RenderableType) -> str:
    console = Console(file=StringIO(), width=140, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_rows_are_the_base_the_local_only_baselines_and_the_federated_model(classified: Comparison) -> None:
    rows = comparison_rows(classified, "accuracy", {"a": 300, "b": 100})
    assert [(row.label, row.samples, row.value) for row in rows] == [
        ("base model, untouched", 0, 0.052),
        ("a, local only", 300, 0.7249),
        ("b, local only", 100, 0.61),
        ("federated", 400, 0.7841),
    ]
    assert [row.best for row in rows] == [False, False, False, True]


def test_the_best_is_the_lowest_perplexity_and_the_highest_bleu(generated: Comparison) -> None:
    better = generated.model_copy(update={"local_only": {"a": evaluation(perplexity=2.0, bleu=1.0)}})
    assert [row.best for row in comparison_rows(better, "perplexity")] == [False, True, False]
    assert [row.best for row in comparison_rows(better, "bleu")] == [False, False, True]


def test_a_tie_marks_every_row_that_shares_the_best(classified: Comparison) -> None:
    tied = classified.model_copy(update={"local_only": {"a": classified.federated}})
    assert [row.best for row in comparison_rows(tied, "accuracy")] == [False, True, True]


def test_a_metric_that_was_not_measured_marks_nothing(classified: Comparison) -> None:
    rows = comparison_rows(classified, "bleu")
    assert [row.value for row in rows] == [None] * 4
    assert not any(row.best for row in rows)


def test_a_model_that_diverged_is_never_the_best(generated: Comparison) -> None:
    diverged = generated.model_copy(update={"base": evaluation(perplexity=float("nan"))})
    assert [row.best for row in comparison_rows(diverged, "perplexity")] == [False, False, True]


def test_the_loss_can_be_the_metric(classified: Comparison) -> None:
    assert [row.value for row in comparison_rows(classified, "loss")] == [1.5] * 4


def test_the_table_shows_accuracy_in_percent_and_marks_the_best_line(classified: Comparison) -> None:
    lines = printed(comparison_table(classified, "accuracy", {"a": 300, "b": 100})).splitlines()
    assert [" ".join(line.split()) for line in lines if "best" in line] == ["federated 400 78.4 % 77.0 % best"]


def test_the_table_of_a_generation_task_has_its_other_metrics(generated: Comparison) -> None:
    text = printed(comparison_table(generated, "perplexity"))
    assert [title for title in ("perplexity", "BLEU", "ROUGE-L") if title in text] == ["perplexity", "BLEU", "ROUGE-L"]
    assert next(line.split() for line in text.splitlines() if "best" in line) == ["federated", "–", "4.20", "61.3", "0.666", "best"]


def test_samples_are_marked_right_or_wrong_and_documents_are_cut() -> None:
    text = printed(samples_table([Sample(text="word " * 99, expected="a", predicted="a "), Sample(text="t", expected="a", predicted="b")]))
    assert [line.split()[:3] for line in text.splitlines() if line.strip().startswith(("✓", "✗"))] == [["✓", "a", "a"], ["✗", "a", "b"]]
    assert "…" in text


def test_samples_of_a_generation_task_carry_no_mark() -> None:
    text = printed(samples_table([Sample(text="t", expected="a", predicted="b")], marked=False))
    assert not {"✓", "✗"} & set(text)


def test_neither_markup_nor_terminal_codes_of_a_site_take_effect() -> None:
    text = printed(samples_table([Sample(text="\x1b[2Jhidden\x07", expected="[red]a[/red]", predicted="[/]")]))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]a[/red]" in text


def test_markup_in_a_sites_name_is_text(classified: Comparison) -> None:
    named = classified.model_copy(update={"local_only": {"[bold]x": evaluation(accuracy=0.1)}})
    assert "[bold]x, local only" in printed(comparison_table(named, "accuracy"))
