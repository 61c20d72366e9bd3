"""A store that is full when a trainer uploads its result; the operator's own case is in test_store_outages."""

import pytest
from cluster_user import Plain, condition
from fleet_namespace import FleetNamespace
from small_store import small_store_in
from testcluster import outages

pytestmark = pytest.mark.e2e


def failure(namespace: FleetNamespace) -> Plain | None:
    """The run's condition Failed, once it is True."""
    found = condition(namespace.get_run(), "Failed")
    return found if found.get("status") == "True" else None


def test_a_trainer_that_finds_the_store_full_reports_it_and_the_run_fails(namespace: FleetNamespace) -> None:
    with small_store_in(namespace) as store:
        namespace.start("north", store=store.of_a_run(), rounds={"count": 1, "attempts": 1})
        # Filled earlier, the operator would find it full, and wait.
        with outages.paused(namespace.wait_for_trainer("toy-profile-north-a0")["metadata"]["uid"]):
            store.fill()
        failed = namespace.wait("the run fails", lambda: failure(namespace))

    assert failed["reason"] == "QuorumOutOfReach"
    assert "north: TransferFailed" in failed["message"]
