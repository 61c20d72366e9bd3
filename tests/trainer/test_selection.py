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
