"""Which rows of a file a task may use, and how messages name those that it may not: by their lines."""

import json
from pathlib import Path

import pytest

from fedpipe_trainer.contract import CausalLM, DataPolicy, FailureReason, SequenceClassification
from fedpipe_trainer.data import Rows, select_rows
from fedpipe_trainer.errors import TaskFailed

TASK = SequenceClassification(labels=("no", "yes"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five rows from line 2 on; the labels of lines 4 and 6 are others."""
    labels = ("no", "yes", "rare", "no", "rarer")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + "".join(json.dumps({"text": str(at), "label": label}) + "\n" for at, label in enumerate(labels)))
    return path


def texts_and_lines(found: Rows) -> list[tuple[str, int]]:
    return [(row["text"], line) for row, line in zip(found.rows, found.lines, strict=True)]


def test_a_label_that_the_run_does_not_have_is_told_by_its_line(path: Path) -> None:
    with pytest.raises(TaskFailed) as caught:
        select_rows(path, TASK, DataPolicy())

    assert caught.value.reason is FailureReason.BAD_DATA
    assert caught.value.message == (
        f"2 of 5 rows of {path}, the first at line 4, have in column 'label' none of the run's 2 labels: "
        "correct the rows, or add their labels to spec.task.labels of the run"
    )


DERIVED = TASK.model_copy(update={"drops_other_labels": True})
"""Of a run that declares no labels."""


def test_rows_of_labels_that_a_run_did_not_derive_are_dropped_and_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = select_rows(path, DERIVED, DataPolicy())

    assert texts_and_lines(found) == [("0", 2), ("1", 3), ("3", 5)]
    assert (found.dropped, found.skipped) == (2, 0)
    assert f"2 of 5 rows of {path} are dropped: the run lacks their label in column 'label'" in caplog.text
    assert "rare" not in caplog.text


def test_what_the_policy_leaves_out_is_skipped_and_not_dropped(path: Path) -> None:
    found = select_rows(path, DERIVED, DataPolicy(labels=("no", "yes", "rare")))

    assert (len(found.rows), found.skipped, found.dropped) == (3, 1, 1)


def test_without_any_row_of_a_derived_label_the_task_fails_and_says_what_to_do(path: Path) -> None:
    with pytest.raises(TaskFailed) as caught:
        select_rows(path, DERIVED.model_copy(update={"labels": ("art", "war")}), DataPolicy())

    assert caught.value.reason is FailureReason.BAD_DATA
    assert caught.value.message == (
        f"5 of 5 rows of {path}, the first at line 2, have in column 'label' none of the 2 labels that the run found in the data: "
        "declare spec.task.labels in a new run"
    )


def test_rows_that_the_policy_leaves_out_are_counted_and_told_by_their_number(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = select_rows(path, TASK, DataPolicy(labels=("no", "yes", "other")))

    assert texts_and_lines(found) == [("0", 2), ("1", 3), ("3", 5)]
    assert found.skipped == 2
    assert f"policy.labels leaves out 2 of 5 rows of {path} by column 'label'" in caplog.text
    assert "rare" not in caplog.text


def test_a_task_without_labels_has_all_that_are_there(path: Path) -> None:
    assert len(select_rows(path, SequenceClassification(), DataPolicy()).rows) == 5


def test_a_text_has_no_labels(path: Path) -> None:
    found = select_rows(path, CausalLM(prompt="{text}", response="{label}"), DataPolicy(labels=()))

    assert (len(found.rows), found.skipped) == (5, 0)
