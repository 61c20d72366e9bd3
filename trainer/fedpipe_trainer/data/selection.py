"""The rows of a data file that a task may use: those whose label the data owner's policy allows, and the run has.

The two are kept apart. What the policy leaves out counts as skipped. A label that the run does not have is an error where the run's author
declared the labels; where they were derived from the sites' profiles, its rows are dropped, and counted as such.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fedpipe_trainer.contract import (
    DataPolicy,
    FailureReason,
    Objective,
    Preference,
    SequenceClassification,
    fields_of_columns,
    optional_columns,
)
from fedpipe_trainer.data.formats import labels_of, row_check, value_readers
from fedpipe_trainer.data.preferences import is_tie
from fedpipe_trainer.data.readers import Bounds
from fedpipe_trainer.data.rows import Rows, read_rows
from fedpipe_trainer.data.spill import Integers
from fedpipe_trainer.data.templates import columns_of
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.printable import printable

_LOG = logging.getLogger(__name__)


def select_rows(
    path: str | Path, objective: Objective, policy: DataPolicy, folder: Path | None = None, bounds: Bounds | None = None
) -> Rows:
    """Read the rows of this file that a task may use. Those that the policy leaves out count as skipped, those of other labels as dropped.

    Pairs of equal answers count as skipped, too. Of the columns that a format may have (`optional_columns`), those that the policy
    allows are read. Many rows are kept on the volume of `folder`, see `SpilledBytes`. With bounds, the first rows alone are read.

    Raises:
        TaskFailed: PolicyDenied, the policy leaves out every row; BadData, a row has a label that the objective does not have, or, if it
            drops these, every row has; every pair is of equal answers; or as `read_rows`. The message names the file and the line, and
            quotes nothing.
    """
    optional = optional_columns(objective)
    allowed = [column for column in optional if policy.columns is None or column in policy.columns]
    columns = [*columns_of(objective), *allowed]
    readers, check, fields = value_readers(objective), row_check(objective), fields_of_columns(objective)
    found = read_rows(path, columns, readers, check, fields=fields, folder=folder, bounds=bounds)
    _tell_unread([column for column in optional if column not in allowed])
    if isinstance(objective, Preference):
        return _without_ties(path, found, objective)
    if not isinstance(objective, SequenceClassification):
        return found
    return with_run_labels(path, _with_allowed_labels(path, found, objective, policy), objective)


def _tell_unread(denied: Sequence[str]) -> None:
    """Name the columns that the task would read if the policy allowed it: whether a file has them is not told, nor looked at."""
    if denied:
        _LOG.info("policy.columns does not allow %s: the task is done without, whether or not the data have it", " or ".join(denied))


def _without_ties(path: str | Path, found: Rows, objective: Preference) -> Rows:
    """However many they are: raters often cannot choose, and no row of theirs is wrong."""
    kept = Integers((at for at, row in enumerate(found.rows) if not is_tie(row, objective)), found.folder)
    ties = len(found.rows) - len(kept)
    if not ties:
        return found
    columns = f"{objective.chosen_column!r} and {objective.rejected_column!r}"
    summary = f"{ties} of {len(found.rows)} rows of {path} prefer nothing: {columns} are the same"
    if not kept:
        raise TaskFailed(FailureReason.BAD_DATA, f"{summary}: correct task.chosenColumn and task.rejectedColumn, or the data")
    _LOG.warning("%s. They are skipped", printable(summary))
    return replace(found.at(kept), skipped=found.skipped + ties, notes=(*found.notes, summary))


def _with_allowed_labels(path: str | Path, found: Rows, objective: SequenceClassification, policy: DataPolicy) -> Rows:
    column = objective.label
    if policy.labels is None:
        return found
    # A label has no space around it, however the policy or a row spells it.
    allowed = {label.strip() for label in policy.labels}
    kept = _positions(found, objective, allowed)
    left_out = len(found.rows) - len(kept)
    if not kept:
        message = f"policy.labels of the data owner allows none of the values that column {column!r} of {path} has"
        raise TaskFailed(FailureReason.POLICY_DENIED, f"{message}: correct the policy, or task.label of the run")
    if not left_out:
        return found
    note = f"policy.labels leaves out {left_out} of {len(found.rows)} rows of {path} by column {column!r}"
    _LOG.warning("%s", printable(note))
    return replace(found.at(kept), skipped=found.skipped + left_out, notes=(*found.notes, note))


def with_run_labels(path: str | Path, rows: Rows, objective: Objective) -> Rows:
    """These rows of a file without those of other labels, if the objective has labels and drops the others.

    Raises:
        TaskFailed: BadData, a row has another label, and the objective does not drop them; or every row has.
    """
    if not isinstance(objective, SequenceClassification) or not objective.labels:
        return rows
    known = set(objective.labels)
    kept = _positions(rows, objective, known)
    others = len(rows.rows) - len(kept)
    if not others:
        return rows
    if not objective.drops_other_labels or not kept:
        raise TaskFailed(FailureReason.BAD_DATA, _other_labels(path, rows, objective))
    found = f"{others} of {len(rows.rows)} rows of {path} are dropped: the run lacks their label in column {objective.label!r}"
    _LOG.warning("%s", printable(found))
    return replace(rows.at(kept), dropped=others, notes=(*rows.notes, found))


def _other_labels(path: str | Path, rows: Rows, objective: SequenceClassification) -> str:
    known, count = set(objective.labels), len(rows.rows)
    others = (number for number, labels in zip(rows.lines, _labels(rows, objective), strict=True) if not known.issuperset(labels))
    first = next(others)
    found = f"{1 + sum(1 for _ in others)} of {count} rows of {path}, the first at {rows.unit} {first}, have in column {objective.label!r}"
    if objective.drops_other_labels:
        return f"{found} none of the {len(known)} labels that the run found in the data: declare spec.task.labels in a new run"
    return f"{found} none of the run's {len(known)} labels: correct the rows, or add their labels to spec.task.labels of the run"


def _positions(rows: Rows, objective: SequenceClassification, labels: Collection[str]) -> Integers:
    """Of the rows that have none but these labels."""
    known = frozenset(labels)
    return Integers((at for at, of_row in enumerate(_labels(rows, objective)) if known.issuperset(of_row)), rows.folder)


def _labels(rows: Rows, objective: SequenceClassification) -> Iterator[tuple[str, ...]]:
    """The labels of each row."""
    return (labels_of({objective.label: text}, objective) for text in rows.rows.column(objective.label))
