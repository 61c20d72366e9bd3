"""The status of a run in every situation, with its conditions and the health that kstatus computes: what tools are tested with."""

from typing import Any

from crds import default_status
from stand_in_runs import a_run

from fedpipe_operator.api import ConditionStatus, FineTuneStatus, Reason
from fedpipe_operator.rounds import Observed, Run
from fedpipe_operator.rounds.stages import End, Step
from fedpipe_operator.rounds.status import blocked, finished, invalid, status_of
from fedpipe_operator.rounds.work_states import StageContext

RUNNING = Step(Reason.TRAINING, "1 of 3 sites done")
COMPLETE = Step(Reason.ROUNDS_COMPLETED, "after round 2", end=End.COMPLETE)
FAILED = Step(Reason.QUORUM_OUT_OF_REACH, "round 1 needs 3 updates of 3 sites", end=End.FAILED)
TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


def status_after(
    step: Step, before: FineTuneStatus | None = None, *, generation: int = 1, now: float = 1000.0, **spec: Any
) -> FineTuneStatus:
    """The status that a reconcile with this step leaves."""
    run = a_run(**spec)
    metadata = run.resource.metadata.model_copy(update={"generation": generation})
    resource = run.resource.model_copy(update={"metadata": metadata, "status": before or FineTuneStatus()})
    return status_of(StageContext(Run(resource, run.sites), Observed(), now), step)


def suspended_status(before: FineTuneStatus | None = None) -> FineTuneStatus:
    return status_after(Step(Reason.SUSPENDED_BY_SPEC, "set spec.suspend to false"), before, suspend=True)


def blocked_status(before: FineTuneStatus | None = None, *, generation: int = 1) -> FineTuneStatus:
    return blocked(before or FineTuneStatus(), "StoreUnreachable", "no connection", generation=generation, now=1000.0)


def invalid_status(before: FineTuneStatus | None = None, *, generation: int = 1) -> FineTuneStatus:
    return invalid(before or FineTuneStatus(), ["spec.task.prompt: wrong"], generation=generation, now=1000.0)


def finished_status(before: FineTuneStatus, *, generation: int) -> FineTuneStatus:
    return finished(before, generation=generation, now=2000.0)


def unobserved_status() -> FineTuneStatus:
    return FineTuneStatus.model_validate(default_status("FederatedFineTune"))


SITUATIONS: dict[str, tuple[FineTuneStatus, dict[str, str], str]] = {
    "running": (
        status_after(RUNNING),
        {"Ready": "False Training", "Stalled": "False NotStalled", "Complete": "False NotFinished", "Failed": "False NotFailed"}
        | {"Progressing": "True Training", "Suspended": "False NotSuspended", "Valid": "True SpecValid"},
        "InProgress",
    ),
    "running, first seen with the default status": (
        status_after(RUNNING, unobserved_status()),
        {"Ready": "False Training", "Stalled": "False NotStalled", "Complete": "False NotFinished", "Progressing": "True Training"},
        "InProgress",
    ),
    "suspended": (
        suspended_status(),
        {"Ready": "False SuspendedBySpec", "Stalled": "False NotStalled", "Complete": "False NotFinished", "Failed": "False NotFailed"}
        | {"Progressing": "False SuspendedBySpec", "Suspended": "True SuspendedBySpec"},
        "InProgress",
    ),
    "resumed": (
        status_after(RUNNING, suspended_status()),
        {"Ready": "False Training", "Stalled": "False NotStalled", "Progressing": "True Training", "Suspended": "False NotSuspended"},
        "InProgress",
    ),
    "blocked when first seen": (
        blocked_status(unobserved_status()),
        {"Ready": "False StoreUnreachable", "Stalled": "False NotStalled", "Complete": "False NotFinished", "Failed": "False NotFailed"}
        | {"Progressing": "False StoreUnreachable", "Valid": "True SpecValid", "Suspended": "Unknown Pending"}
        | {"Profiled": "Unknown Pending", "Planned": "Unknown Pending"},
        "InProgress",
    ),
    "blocked while it ran": (
        blocked_status(status_after(RUNNING)),
        {"Ready": "False StoreUnreachable", "Stalled": "False NotStalled", "Complete": "False NotFinished", "Failed": "False NotFailed"}
        | {"Progressing": "False StoreUnreachable", "Suspended": "False NotSuspended", "Planned": "False Waiting"},
        "InProgress",
    ),
    "no longer blocked": (
        status_after(RUNNING, blocked_status(unobserved_status())),
        {"Ready": "False Training", "Stalled": "False NotStalled", "Progressing": "True Training", "Suspended": "False NotSuspended"},
        "InProgress",
    ),
    "invalid when first seen": (
        invalid_status(unobserved_status()),
        {"Ready": "False SpecInvalid", "Stalled": "True SpecInvalid", "Complete": "False NotFinished", "Failed": "False NotFailed"}
        | {"Progressing": "False SpecInvalid", "Valid": "False SpecInvalid", "Suspended": "Unknown Pending"},
        "Failed",
    ),
    "invalid by an edit while it ran": (
        invalid_status(status_after(RUNNING)),
        {"Ready": "False SpecInvalid", "Stalled": "True SpecInvalid", "Complete": "False NotFinished", "Failed": "False NotFailed"}
        | {"Progressing": "False SpecInvalid", "Valid": "False SpecInvalid", "Suspended": "False NotSuspended"},
        "Failed",
    ),
    "corrected, and running": (
        status_after(RUNNING, invalid_status(unobserved_status())),
        {"Ready": "False Training", "Stalled": "False NotStalled", "Progressing": "True Training", "Valid": "True SpecValid"},
        "InProgress",
    ),
    "corrected, and blocked": (
        blocked_status(invalid_status(unobserved_status())),
        {"Ready": "False StoreUnreachable", "Stalled": "False NotStalled", "Progressing": "False StoreUnreachable"}
        | {"Valid": "True SpecValid"},
        "InProgress",
    ),
    "failed": (
        status_after(FAILED),
        {"Ready": "False QuorumOutOfReach", "Stalled": "True QuorumOutOfReach", "Complete": "False QuorumOutOfReach"}
        | {"Failed": "True QuorumOutOfReach", "Progressing": "False QuorumOutOfReach", "Suspended": "False NotSuspended"},
        "Failed",
    ),
    "complete": (
        status_after(COMPLETE),
        {"Ready": "True RoundsCompleted", "Stalled": "False NotStalled", "Complete": "True RoundsCompleted", "Failed": "False NotFailed"}
        | {"Progressing": "False RoundsCompleted", "Suspended": "False NotSuspended"},
        "Current",
    ),
    "complete, with an invalid edit": (
        invalid_status(status_after(COMPLETE)),
        {"Ready": "False SpecInvalid", "Stalled": "True SpecInvalid", "Complete": "True RoundsCompleted", "Failed": "False NotFailed"},
        "Failed",
    ),
    "complete, with that edit corrected": (
        finished_status(invalid_status(status_after(COMPLETE)), generation=1),
        {"Ready": "True RoundsCompleted", "Stalled": "False NotStalled", "Complete": "True RoundsCompleted", "Failed": "False NotFailed"}
        | {"Valid": "True SpecValid", "Progressing": "False RoundsCompleted"},
        "Current",
    ),
    "failed, with an invalid edit corrected": (
        finished_status(invalid_status(status_after(FAILED)), generation=1),
        {"Ready": "False QuorumOutOfReach", "Stalled": "True QuorumOutOfReach", "Failed": "True QuorumOutOfReach"}
        | {"Valid": "True SpecValid"},
        "Failed",
    ),
}


def body_of(status: FineTuneStatus, *, generation: int = 1) -> dict[str, Any]:
    run = a_run().resource.model_dump(mode="json", by_alias=True, exclude_none=True)
    plain = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return run | {"status": plain, "metadata": run["metadata"] | {"generation": generation}}
