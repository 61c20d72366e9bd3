"""The labels of a classification whose spec declares none: those that the site's data have."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from fedpipe_trainer.contract import DataPolicy, FailureReason, Objective, SequenceClassification
from fedpipe_trainer.contract.result import LONGEST_LABEL, MAX_LABELS
from fedpipe_trainer.data.rows import Rows
from fedpipe_trainer.errors import TaskFailed

ROWS_OF_A_LABEL: Final = 2
"""Rows of the site that must have a label before its profile names it: a value of a single row may be that row's text."""
_MOST_VALUES: Final = 100_000
_MOST_CHARACTERS: Final = 1 << 25
"""Of the different values of a column that may have labels, together."""


def with_found_labels(objective: Objective, files: Sequence[Rows], policy: DataPolicy) -> Objective:
    """The objective; if it is a classification without labels, with those found in the data, and without the rows of any other.

    A value of one row only is no label: its rows are left out. Where most rows have such values, the column has no labels but texts.

    Raises:
        TaskFailed: BadData, the column has no labels, or too many; PolicyDenied, more than policy.maxLabels.
    """
    if not isinstance(objective, SequenceClassification) or objective.labels or objective.problem == "Regression":
        return objective
    rows_of = _count_values(files, objective.label)
    labels = sorted(label for label, count in rows_of.items() if count >= ROWS_OF_A_LABEL)
    if 2 * sum(rows_of[label] for label in labels) < rows_of.total():
        found = f"most of the {rows_of.total()} rows have a value in column {objective.label!r} that no other row of the site has"
        advice = "name the column that has the labels in task.label of the run, or declare them in spec.task.labels"
        raise TaskFailed(FailureReason.BAD_DATA, f"{found}: {advice}")
    longest = max(len(label) for label in labels)
    if len(labels) > MAX_LABELS or longest > LONGEST_LABEL:
        found = f"{len(labels)} different labels, the longest of {longest} characters"
        limits = f"at most {MAX_LABELS} of {LONGEST_LABEL} are allowed"
        msg = f"column {objective.label!r} has {found}; {limits}: name the column that has the labels"
        raise TaskFailed(FailureReason.BAD_DATA, msg)
    if len(labels) > policy.max_labels:
        found = (
            f"column {objective.label!r} has {len(labels)} different values, and policy.maxLabels of the data owner is {policy.max_labels}"
        )
        advice = "name the labels in spec.task.labels of the run, or correct task.label, or have policy.maxLabels raised"
        raise TaskFailed(FailureReason.POLICY_DENIED, f"{found}: {advice}")
    return objective.model_copy(update={"labels": tuple(labels), "drops_other_labels": True})


def _count_values(files: Sequence[Rows], column: str) -> Counter[str]:
    """The rows of each value.

    Raises:
        TaskFailed: BadData, there are so many that they would fill the memory, of which labels are never made.
    """
    found: Counter[str] = Counter()
    characters = 0
    for file in files:
        for value in file.rows.column(column):
            characters += 0 if value in found else len(value)
            found[value] += 1
            if len(found) > _MOST_VALUES or characters > _MOST_CHARACTERS:
                advice = "name the column that has the labels in task.label of the run, or declare them in spec.task.labels"
                message = f"column {column!r} has more than {len(found) - 1} different values, which are no labels: {advice}"
                raise TaskFailed(FailureReason.BAD_DATA, message)
    return found
