"""The rows of a data file that a task may use: those whose label the data owner's policy allows, if it lists some."""

import logging
from dataclasses import replace
from pathlib import Path

from fedpipe_trainer.contract import DataPolicy, FailureReason, Objective, SequenceClassification
from fedpipe_trainer.data.rows import Rows, read_rows
from fedpipe_trainer.data.templates import columns_of
from fedpipe_trainer.errors import TaskFailed

_LOG = logging.getLogger(__name__)


def select_rows(path: str | Path, objective: Objective, policy: DataPolicy) -> Rows:
    """Read the rows of this file that a task may use. Those that the policy leaves out count as skipped.

    Raises:
        TaskFailed: PolicyDenied, the policy leaves out every row; BadData, a row has a label that the objective does not have, or as
            `read_rows`. The message names the file and the line, and quotes nothing.
    """
    found = read_rows(path, columns_of(objective))
    if not isinstance(objective, SequenceClassification):
        return found
    allowed = _with_allowed_labels(path, found, objective.label, policy)
    _require_known_labels(path, allowed, objective)
    return allowed


def _with_allowed_labels(path: str | Path, found: Rows, column: str, policy: DataPolicy) -> Rows:
    if policy.labels is None:
        return found
    allowed = set(policy.labels)
    kept = [at for at, row in enumerate(found.rows) if row[column] in allowed]
    left_out = len(found.rows) - len(kept)
    if not kept:
        message = f"policy.labels of the data owner allows none of the values that column {column!r} of {path} has"
        raise TaskFailed(FailureReason.POLICY_DENIED, f"{message}: correct the policy, or task.label of the run")
    if left_out:
        _LOG.warning("policy.labels leaves out %d of %d rows of %s by column %r", left_out, len(found.rows), path, column)
    rows, lines = [found.rows[at] for at in kept], [found.lines[at] for at in kept]
    return replace(found, rows=rows, lines=lines, skipped=found.skipped + left_out)


def _require_known_labels(path: str | Path, rows: Rows, objective: SequenceClassification) -> None:
    """Require labels that the objective has; one without labels has all."""
    known = set(objective.labels)
    unknown = [line for line, row in zip(rows.lines, rows.rows, strict=True) if row[objective.label] not in known] if known else []
    if unknown:
        found = f"{len(unknown)} of {len(rows.rows)} rows of {path}, the first at line {unknown[0]}, have in column {objective.label!r}"
        advice = "correct the rows, or add their labels to spec.task.labels of the run"
        raise TaskFailed(FailureReason.BAD_DATA, f"{found} none of the run's {len(known)} labels: {advice}")
