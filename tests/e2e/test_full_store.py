"""A store that is full when a trainer uploads its result, or when the operator plans a round."""

import pytest
from cluster_user import Plain, condition
from fleet_namespace import SHORT, FleetNamespace
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


def test_an_operator_that_finds_the_store_full_waits_for_free_space(namespace: FleetNamespace) -> None:
    with small_store_in(namespace) as small_store, namespace.served_by_its_own_operator() as served:
        served.start("north", store=small_store.of_a_run(), **SHORT)
        served.wait("the profile's Job exists", lambda: served.kubectl.list("jobs"))
        served.operator.scale(0)
        try:
            job = served.job("toy-profile-north-a0")["metadata"]["name"]
            served.kubectl("wait", f"job/{job}", "--for=condition=Complete", "--timeout=300s")
            small_store.fill()
        finally:
            served.operator.scale(1)
        blocked = served.wait_for_reason("StoreFull")
        small_store.clear()
        served.wait_until_complete()

        assert condition(blocked, "Progressing")["status"] == "False"
        assert "StoreFull" in served.events("FederatedFineTune", "toy")
