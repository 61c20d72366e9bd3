"""When a run has the finalizer: beside `test_run_reconciler.py`, where whole runs are deleted."""

from typing import Any

import pytest
from stand_in_runs import a_run

from fedpipe_operator.api import Condition, ConditionStatus
from fedpipe_operator.api.meta import FINALIZER
from fedpipe_operator.cluster.finalizer import sync_finalizer


class Merges:
    """The API server, as far as it is asked to change an object."""

    def __init__(self) -> None:
        self.changes: list[Any] = []

    def merge(self, _kind: object, _namespace: str, _name: str, change: Any) -> None:
        self.changes.append(change)


@pytest.mark.parametrize(
    ("kind", "reason", "stays"),
    [
        ("Progressing", "Exporting", True),
        ("Progressing", "SuspendedBySpec", True),
        ("Progressing", "StoreUnreachable", True),
        ("Complete", "RoundsCompleted", False),
        ("Failed", "ExportFailed", False),
    ],
)
def test_a_run_that_uploads_keeps_its_finalizer_until_its_end_whatever_its_status_says(kind: str, reason: str, stays: bool) -> None:
    resource, api = a_run().resource, Merges()
    condition = Condition(type=kind, status=ConditionStatus.TRUE, reason=reason, message="", last_transition_time="2026-01-01T00:00:00Z")
    resource = resource.model_copy(update={"status": resource.status.model_copy(update={"conditions": (condition,)})})
    body = {"metadata": {"namespace": "default", "name": "toy", "resourceVersion": "1", "finalizers": [FINALIZER]}}

    sync_finalizer(body, resource, api)  # type: ignore[arg-type]  # as much of it as is asked for

    assert api.changes == ([] if stays else [{"metadata": {"finalizers": [], "resourceVersion": "1"}}])
