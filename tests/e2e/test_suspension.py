"""A suspended run survives an upgrade of the operator and resumes where it stopped."""

from collections.abc import Iterator

import pytest
from cluster_user import condition
from fleet_namespace import FleetNamespace, OpenNamespace
from installed_operator import GRACE_SECONDS
from job_history import duplicate_jobs, name_in_run

from fedpipe_operator.api.meta import LABEL_RUN

pytestmark = pytest.mark.e2e


@pytest.fixture
def namespace(open_namespace: OpenNamespace) -> Iterator[FleetNamespace]:
    """A namespace with an operator of its own."""
    with open_namespace("e2e-suspension") as found, found.served_by_its_own_operator() as served:
        yield served


def active_pods(namespace: FleetNamespace) -> list[str]:
    pods = namespace.kubectl.list("pods", LABEL_RUN)
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]


def operator_environment(namespace: FleetNamespace) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in namespace.operator.pods()[0]["spec"]["containers"][0]["env"]}


def test_a_run_suspended_in_round_two_resumes_in_round_two_with_an_upgraded_operator(namespace: FleetNamespace) -> None:
    namespace.start("north", export={"adapter": False, "merged": False})
    namespace.wait_for_reason("Training", round_=2, seconds=600)
    namespace.wait_for_trainer("toy-train-r2-north-a0")

    namespace.patch_run(suspend=True)
    namespace.wait_for_reason("SuspendedBySpec")
    namespace.wait("its pods end", lambda: active_pods(namespace) == [])

    before = namespace.operator.pods()[0]["metadata"]["uid"]
    namespace.operator.upgrade({"pendingGraceSeconds": GRACE_SECONDS + 1, "aggregationJobThreshold": "1"})

    assert namespace.operator.pods()[0]["metadata"]["uid"] != before
    assert operator_environment(namespace)["FEDPIPE_PENDING_GRACE_SECONDS"] == str(GRACE_SECONDS + 1)
    suspended = namespace.get_run()
    assert (condition(suspended, "Suspended")["status"], suspended["status"]["round"]) == ("True", 2)
    assert active_pods(namespace) == []

    namespace.patch_run(suspend=False)
    run = namespace.wait_until_complete()

    assert [(entry["round"], entry["updates"]) for entry in run["status"]["history"]] == [(1, "1/1"), (2, "1/1")]
    assert duplicate_jobs(namespace.kubectl) == []
    assert {"SuspendedBySpec", "RoundsCompleted"} <= namespace.events("FederatedFineTune", "toy").keys()
    rounds = [job["metadata"]["labels"]["fedpipe.io/round"] for job in namespace.kubectl.list("jobs", "fedpipe.io/task=train")]
    # The trainer may have sent its update before it was ended: then its Job went with its pod, and no other one was needed.
    assert sorted(rounds) in (["1"], ["1", "2"], ["1", "2", "2"])
    aggregations = namespace.kubectl.list("jobs", "fedpipe.io/task=aggregate")
    assert [name_in_run(job["metadata"]["name"]) for job in aggregations] == ["toy-aggregate-r2-a0"], (
        "with the new limit, the aggregation of round 2 is a Job"
    )
