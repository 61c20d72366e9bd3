"""Two operators: one acts, the other stands by under the Lease and takes over when the first one is lost, or is upgraded."""

import time
from collections.abc import Iterator
from typing import Final

import pytest
from cluster_user import Plain
from fleet_namespace import FleetNamespace, OpenNamespace
from installed_operator import GRACE_SECONDS, is_test_cluster
from job_history import duplicate_jobs, job_spans_by_site, overlaps
from lease_history import LeaseHistory, watched_lease
from stored_adapters import adapters
from testcluster import outages

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.exclusive]

FAILOVER_SECONDS: Final = 15.0
HANDOVER_SECONDS: Final = 5.0
RUN: Final[Plain] = {"export": {"adapter": False, "merged": False}}


@pytest.fixture(scope="module")
def undisturbed(open_namespace: OpenNamespace) -> Iterator[FleetNamespace]:
    """A namespace in which the run `toy` of two sites and two rounds is complete; one operator served it."""
    with open_namespace("e2e-served-by-one") as namespace:
        namespace.start("north", "south", **RUN)
        namespace.wait_until_complete()
        yield namespace


def assert_nobody_was_in_the_way(namespace: FleetNamespace, run: Plain) -> None:
    """No Job exists twice, no site had more at once than it allows, and no update was lost."""
    assert duplicate_jobs(namespace.kubectl) == []
    assert [overlaps(spans) for spans in job_spans_by_site(namespace.kubectl).values()] == [[], []]
    assert [entry["updates"] for entry in run["status"]["history"]] == ["2/2", "2/2"]


def handovers(history: LeaseHistory) -> list[str]:
    """Who held the Lease in turn, without the moments in which nobody did."""
    return [holder for holder in history.holders() if holder]


def test_a_leader_that_is_killed_is_replaced_within_seconds_and_the_run_ends_with_the_same_adapters(
    undisturbed: FleetNamespace, namespace: FleetNamespace
) -> None:
    operator, kills = namespace.operator, []
    operator.upgrade({"replicas": 2})
    try:
        with watched_lease(operator.kubectl.namespace) as history:
            namespace.start("north", "south", **RUN)
            for job in ("toy-train-r1-north-a0", "toy-train-r2-south-a0"):
                namespace.wait_for_trainer(job)
                killed_at = time.time()
                kills.append((killed_at, operator.kill_leader()))
            run = namespace.wait_until_complete()
    finally:
        operator.upgrade()

    failovers = [history.acquired(leader) - killed_at for killed_at, leader in kills]
    print(f"seconds from the kill of a leader until the other replica led: {', '.join(f'{one:.1f}' for one in failovers)}")  # noqa: T201
    assert max(failovers) <= FAILOVER_SECONDS
    assert len(set(handovers(history))) == 3
    assert adapters(namespace) == adapters(undisturbed)
    assert_nobody_was_in_the_way(namespace, run)


def test_an_upgrade_during_a_run_hands_the_lease_over_and_loses_nothing(undisturbed: FleetNamespace, namespace: FleetNamespace) -> None:
    operator = namespace.operator
    old = operator.holder()
    try:
        with watched_lease(operator.kubectl.namespace) as history:
            namespace.start("north", "south", **RUN)
            namespace.wait_for_trainer("toy-train-r1-north-a0")
            operator.upgrade({"pendingGraceSeconds": GRACE_SECONDS + 1})
            new = operator.holder()
            run = namespace.wait_until_complete()
    finally:
        operator.upgrade()

    pause = history.acquired(new) - history.released()
    print(f"seconds of an upgrade in which no operator led: {pause:.1f}")  # noqa: T201
    assert handovers(history) == [old, new]
    assert pause <= HANDOVER_SECONDS
    assert adapters(namespace) == adapters(undisturbed)
    assert_nobody_was_in_the_way(namespace, run)


def test_a_leader_that_was_paused_acts_no_more_once_the_other_has_taken_over(namespace: FleetNamespace) -> None:
    if not is_test_cluster():
        pytest.skip("needs a cluster of tests/cluster: it pauses the processes of a pod")
    operator = namespace.operator
    operator.upgrade({"replicas": 2})
    try:
        paused = next(pod for pod in operator.pods() if pod["metadata"]["name"] == operator.holder())
        with outages.paused(paused["metadata"]["uid"]):
            namespace.wait("the other one leads", lambda: operator.holder() != paused["metadata"]["name"], seconds=40)
        namespace.wait("the paused one was restarted", lambda: (paused["metadata"]["uid"], 1) in operator.containers(), seconds=60)
        log = operator.kubectl("logs", paused["metadata"]["name"], "--previous", "--tail=5")
    finally:
        operator.upgrade()

    assert "this replica must not act" in log
