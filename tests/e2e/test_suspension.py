"""A run that is paused, outlives an upgrade of its operator, and goes on where it was."""

import pytest
from cluster_user import condition
from deeds import made_twice
from installed_operator import GRACE_SECONDS
from wards import Ward

pytestmark = pytest.mark.e2e


def pods_at_work(ward: Ward) -> list[str]:
    return [pod["metadata"]["name"] for pod in ward.kubectl.list("pods") if pod["status"]["phase"] in ("Pending", "Running")]


def operators_environment(ward: Ward) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in ward.operator.pods()[0]["spec"]["containers"][0]["env"]}


def test_a_run_suspended_in_round_two_goes_on_in_round_two_with_an_upgraded_operator(ward: Ward) -> None:
    ward.start("north", export={"adapter": False, "merged": False})
    ward.wait_for("Training", round_=2)
    ward.trainer_at_work("toy-train-r2-north-a0")

    ward.change(suspend=True)
    ward.wait_for("SuspendedBySpec")
    ward.wait("its pods end", lambda: pods_at_work(ward) == [])
    before = ward.operator.pods()[0]["metadata"]["uid"]
    ward.operator.upgrade({"pendingGraceSeconds": GRACE_SECONDS + 1, "aggregationJobThreshold": "1"})

    assert ward.operator.pods()[0]["metadata"]["uid"] != before
    assert operators_environment(ward)["FEDPIPE_PENDING_GRACE_SECONDS"] == str(GRACE_SECONDS + 1)
    suspended = ward.look()
    assert (condition(suspended, "Suspended")["status"], suspended["status"]["round"]) == ("True", 2)
    assert pods_at_work(ward) == []

    ward.change(suspend=False)
    run = ward.wait_until_complete()

    assert [(entry["round"], entry["updates"]) for entry in run["status"]["history"]] == [(1, "1/1"), (2, "1/1")]
    assert made_twice(ward.kubectl) == []
    assert {"SuspendedBySpec", "RoundsCompleted"} <= ward.events("FederatedFineTune", "toy").keys()
    rounds = [job["metadata"]["labels"]["fedpipe.io/round"] for job in ward.kubectl.list("jobs", "fedpipe.io/task=train")]
    assert sorted(rounds) in (["1", "2"], ["1", "2", "2"])
    aggregations = ward.kubectl.list("jobs", "fedpipe.io/task=aggregate")
    assert [job["metadata"]["name"] for job in aggregations] == ["toy-aggregate-r2-a0"], "the upgraded operator leaves it to a Job"
