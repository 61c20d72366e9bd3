"""The series of a run and of a site, from their objects as the watch delivered them. Pure.

Names of objects are DNS names by the API server's own rules, so no label needs to be made harmless; condition types, stages and states are
the operator's words.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from fedpipe_operator.api import ConditionStatus, ConditionType
from fedpipe_operator.metrics.run_record import RunRecord
from fedpipe_operator.metrics.samples import Sample

Body = Mapping[str, Any]

STATUSES: Final = ("true", "false", "unknown")
UPDATE_STATES: Final = ("expected", "needed", "received", "refused", "late")
_ENDS: Final = (ConditionType.COMPLETE, ConditionType.FAILED)
_PERCENT: Final = 100


def run_series(body: Body, record: RunRecord | None) -> Iterator[Sample]:
    """The series of a run; what only a reconcile knows is left out until there is one (`record`)."""
    meta, status = body["metadata"], body.get("status") or {}
    of = (meta["namespace"], meta["name"])
    yield from _conditions("run_status_condition", of, status)
    if (ended_at := _ended_at(status)) is not None:
        yield Sample("run_ended_timestamp_seconds", of, ended_at)
    yield Sample("run_round", of, status.get("round", 0))
    rounds = ((body.get("spec") or {}).get("rounds") or {}).get("count")
    if isinstance(rounds, int):
        yield Sample("run_rounds", of, rounds)
    percentage = (status.get("progress") or {}).get("percentage")
    if isinstance(percentage, int | float):
        yield Sample("run_progress_ratio", of, percentage / _PERCENT)
    updates = status.get("updates") or {}
    yield from (Sample("run_updates", (*of, state), updates[state]) for state in UPDATE_STATES if state in updates)
    history: Sequence[Body] = status.get("history") or ()
    yield from (Sample("run_metric", (*of, name), value) for name, value in _figures(status, history, record).items())
    energy = record.truncated_energy if record else None
    energy = history[-1].get("truncatedEnergy") if energy is None and history else energy
    if energy is not None:
        yield Sample("run_truncated_energy_ratio", of, energy)
    if record is not None and record.stage is not None:
        yield Sample("run_stage_started_timestamp_seconds", (*of, record.stage.name), record.stage.started_at)
        yield Sample("run_stage_deadline_seconds", (*of, record.stage.name), record.stage.deadline_seconds)


def site_series(body: Body, *, pending: int, running: int) -> Iterator[Sample]:
    """The series of a site, with the numbers of its Jobs."""
    meta = body["metadata"]
    of = (meta["namespace"], meta["name"])
    yield from _conditions("site_status_condition", of, body.get("status") or {})
    yield Sample("site_jobs", (*of, "pending"), pending)
    yield Sample("site_jobs", (*of, "running"), running)
    measured = ((body.get("status") or {}).get("capacity") or {}).get("measured") or {}
    bandwidths = (
        ("site_memory_bandwidth_bytes_per_second", of, "memoryBandwidth"),
        ("site_bandwidth_bits_per_second", (*of, "up"), "bandwidthUp"),
        ("site_bandwidth_bits_per_second", (*of, "down"), "bandwidthDown"),
    )
    yield from (Sample(name, labels, measured[field]) for name, labels, field in bandwidths if measured.get(field) is not None)


def _conditions(name: str, of: tuple[str, str], status: Body) -> Iterator[Sample]:
    for condition in status.get("conditions") or ():
        found = str(condition["status"]).lower()
        yield from (Sample(name, (*of, condition["type"], one), one == found) for one in STATUSES)


def _ended_at(status: Body) -> float | None:
    """Unix seconds of the transition that ended the run; None while it is not over."""
    ends = (one for one in status.get("conditions") or () if one["type"] in _ENDS and one["status"] == ConditionStatus.TRUE)
    return next((datetime.fromisoformat(one["lastTransitionTime"]).timestamp() for one in ends), None)


def _figures(status: Body, history: Sequence[Body], record: RunRecord | None) -> Mapping[str, float]:
    """Of the last evaluation: all of them from the last reconcile; of a run that was over before, those that its status keeps."""
    if record is not None and record.figures:
        return record.figures
    metric = status.get("metric")
    loss = history[-1].get("loss") if history else None
    return ({} if loss is None else {"loss": loss}) | ({metric["name"]: metric["value"]} if metric else {})
