"""When trackers are written, and what the condition says: pure, with the time as an argument."""

import pytest
from stand_in_runs import World, a_run

from fedpipe_operator.api import Condition, ConditionStatus, FederatedFineTune, Reason
from fedpipe_operator.api.tracking import MlflowSpec, TrackingSpec
from fedpipe_operator.errors import TransientError
from fedpipe_operator.tracking.turns import Turn, is_complete, version_of

GONE = TransientError("TrackerUnreachable", "http://mlflow: no connection")


def of(world: World, tracking: TrackingSpec) -> FederatedFineTune:
    resource = world.run.resource
    return resource.model_copy(update={"spec": resource.spec.model_copy(update={"tracking": tracking})})


def test_a_version_that_was_written_is_not_due_and_a_new_one_is() -> None:
    turn = Turn().written("round 1", "MLflow: http://…", is_over=False)

    assert Turn().is_due("round 1", 0.0)
    assert not turn.is_due("round 1", 1e9)
    assert turn.is_due("round 2", 0.0)
    assert turn.observation == ("Tracked", True, Reason.TRACKERS_WRITTEN, "MLflow: http://…")


def test_a_failure_is_tried_again_after_10_20_40_seconds_and_at_most_ten_minutes() -> None:
    pauses, turn = list[float](), Turn()
    for _ in range(9):
        turn = turn.failed("round 1", GONE, now=1000.0)
        pauses.append(turn.due - 1000.0)

    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert not turn.is_due("round 1", 1599.0)
    assert turn.is_due("round 1", 1600.0)


def test_a_failure_is_the_condition_s_reason_until_a_success() -> None:
    failed = Turn().failed("round 1", GONE, now=0.0)

    assert failed.observation == ("Tracked", False, "TrackerUnreachable", "http://mlflow: no connection")
    assert failed.written("round 1", "there", is_over=True).observation.reason == Reason.TRACKERS_COMPLETE
    assert failed.written("round 1", "there", is_over=True).failures == 0


def test_after_a_day_of_failures_a_version_is_given_up_and_the_next_one_is_tried() -> None:
    turn, now = Turn(), 0.0
    while not turn.is_settled("end"):
        turn = turn.failed("end", GONE, now)
        now = turn.due

    assert 80_000 < now < 100_000
    assert not turn.is_due("end", now)
    assert turn.is_due("another spec", now)


def test_before_there_is_a_plan_and_without_a_tracker_there_is_no_version(ended: World) -> None:
    assert version_of(a_run(tracking={"tensorboard": True}).resource) == ""
    assert version_of(ended.run.resource) == ""


def test_the_version_changes_with_a_round_the_end_and_the_trackers(ended: World) -> None:
    resource = of(ended, TrackingSpec(tensorboard=True))
    status = resource.status
    changed = [
        resource.model_copy(update={"status": status.model_copy(update={"history": status.history[:1]})}),
        resource.model_copy(update={"status": status.model_copy(update={"conditions": ()})}),
        resource.model_copy(update={"status": status.model_copy(update={"metric": None})}),
        of(ended, TrackingSpec(mlflow=MlflowSpec(tracking_uri="http://mlflow:5000"))),
    ]

    assert len({version_of(one) for one in (resource, *changed)}) == 5


@pytest.mark.parametrize(
    ("reason", "status", "generation", "expected"),
    [
        (Reason.TRACKERS_COMPLETE, ConditionStatus.TRUE, 1, True),
        (Reason.TRACKERS_WRITTEN, ConditionStatus.TRUE, 1, False),
        (Reason.TRACKERS_COMPLETE, ConditionStatus.TRUE, 0, False),
        ("TrackerUnreachable", ConditionStatus.FALSE, 1, False),
    ],
)
def test_what_a_restarted_operator_need_not_write_again(
    ended: World, reason: str, status: ConditionStatus, generation: int, expected: bool
) -> None:
    condition = Condition(type="Tracked", status=status, reason=reason, observed_generation=generation)
    before = ended.run.resource
    resource = before.model_copy(update={"status": before.status.model_copy(update={"conditions": (condition,)})})

    assert is_complete(resource) == expected
