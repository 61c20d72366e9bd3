"""The operator is killed repeatedly: the adapters are the same, bit for bit, and no Job is created twice."""

import random
import time
from collections.abc import Iterator
from typing import Final

import pytest
from cluster_user import FFT, Plain, condition
from fleet_namespace import SHORT, FleetNamespace, OpenNamespace, is_finished
from job_history import all_jobs_finished, duplicate_jobs
from stored_adapters import adapters, sha256_of
from testcluster import outages
from testcluster.layout import default_layout
from worker_session import Lock

pytestmark = pytest.mark.e2e

KILLS: Final = 8
SEED: Final = 20261124
LEAST_KILLS: Final = 5
"""Before the run's end: another operator acts up to 14 s after a kill, and Jobs that end meanwhile bring several points at once."""
KILL_WINDOW: Final = 0.55
"""Kills fall into this fraction of a run's Jobs, in the order of their creation, so that the run is unfinished at every kill."""
SECONDS_PER_JOB: Final = 4.0
"""Kills fall into this time after the creation of a Job: the two sites' Jobs are created in pairs, every eight seconds or more."""


@pytest.fixture(scope="module")
def undisturbed(open_namespace: OpenNamespace) -> Iterator[FleetNamespace]:
    """A namespace in which the run `toy` of two sites and two rounds is complete."""
    with open_namespace("e2e-undisturbed") as namespace:
        namespace.start("north", "south")
        namespace.wait_until_complete()
        yield namespace


def wait_for_jobs(namespace: FleetNamespace, count: int) -> None:
    namespace.wait(f"{count} Jobs were created", lambda: len(namespace.kubectl.list("jobs")) >= count)


def kill_operator_at(namespace: FleetNamespace, points: list[float]) -> int:
    """Kill the operator at these points of the run and restart the API server once; return the number of kills before the run's end.

    A point is a number of created Jobs; its fraction is a part of the time after the last of them.
    """
    for number, point in enumerate(points):
        wait_for_jobs(namespace, int(point))
        time.sleep(point % 1 * SECONDS_PER_JOB)  # a random instant, not an event that could be polled
        run = namespace.get_run()
        if is_finished(run):
            return number
        print(f"kill {number + 1} at Job {point:.1f}: {condition(run, 'Ready').get('reason')}")  # noqa: T201
        namespace.operator.kill()
        if number == len(points) // 2:
            outages.restart_api_server(default_layout())
    return len(points)


def export_digests(namespace: FleetNamespace) -> dict[str, str]:
    """The SHA-256 of each exported file."""
    store = namespace.store_of(namespace.get_run())
    return {key: sha256_of(store, key) for key in store.list("export") if key.endswith(".safetensors")}


def assert_cleaned_up(namespace: FleetNamespace, run: Plain) -> None:
    """Finished Jobs and their pods stay for their logs; Secrets with tasks and active Jobs must be gone."""
    namespace.wait("every Job has finished", lambda: all_jobs_finished(namespace.kubectl))
    namespace.wait(
        "no Secret with a task is left", lambda: [one for one in namespace.remaining_objects(run) if one.startswith("Secret ")] == []
    )


def test_an_undisturbed_run_creates_no_job_twice_and_cleans_up(undisturbed: FleetNamespace) -> None:
    assert duplicate_jobs(undisturbed.kubectl) == []
    assert_cleaned_up(undisturbed, undisturbed.get_run())


def test_the_capacity_that_a_run_measured_is_stored(undisturbed: FleetNamespace) -> None:
    undisturbed.wait("no run is active", lambda: undisturbed.get_site("north")["status"]["activeRuns"] == 0, seconds=30)
    body = undisturbed.get_site("north")
    measured = body["status"]["capacity"]["measured"]

    assert (measured["run"], measured["device"]) == ("toy", "cpu")
    assert (measured["trainSamples"], measured["validationSamples"]) == (24, 6)
    assert 0 < measured["memory"] <= body["status"]["capacity"]["claimed"]["memory"]


def test_a_run_whose_operator_is_killed_repeatedly_ends_with_the_same_adapters(
    undisturbed: FleetNamespace, namespace: FleetNamespace, cluster_lock: Lock
) -> None:
    generator, jobs = random.Random(SEED), len(undisturbed.kubectl.list("jobs"))  # noqa: S311 -- no secret
    points = sorted(generator.uniform(0, KILL_WINDOW * jobs) for _ in range(KILLS))
    print(f"seed {SEED}, kills within {KILL_WINDOW * jobs:.1f} Jobs")  # noqa: T201
    cluster_lock.acquire_exclusive()

    namespace.start("north", "south")
    killed = kill_operator_at(namespace, points)
    run = namespace.wait_until_complete()

    assert killed >= LEAST_KILLS
    assert adapters(namespace) == adapters(undisturbed)
    assert export_digests(namespace) == export_digests(undisturbed) != {}
    assert duplicate_jobs(namespace.kubectl) == []
    assert_cleaned_up(namespace, run)


def test_a_run_whose_object_is_lost_goes_on_in_another_with_equal_bytes(undisturbed: FleetNamespace, namespace: FleetNamespace) -> None:
    """As in a new cluster, the bucket is all that is left: the first object's status and Jobs are gone, and the second has another UID."""
    namespace.start("north", "south")
    lost = namespace.wait_for_reason("Training", round_=2, seconds=600)
    namespace.kubectl("delete", FFT, "toy", "--timeout=90s")

    namespace.kubectl.apply(namespace.run(continueFrom=lost["metadata"]["uid"]))
    run = namespace.wait_until_complete()

    assert run["metadata"]["uid"] != lost["metadata"]["uid"]
    assert run["status"]["store"]["prefix"].endswith(f"/toy/{lost['metadata']['uid']}")
    assert [entry["round"] for entry in run["status"]["history"]] == [1, 2]
    assert namespace.kubectl.list("jobs", "fedpipe.io/task=profile") == []
    assert adapters(namespace) == adapters(undisturbed)
    assert export_digests(namespace) == export_digests(undisturbed)


def test_a_watch_recovers_from_an_api_server_restart_without_an_operator_restart(namespace: FleetNamespace, cluster_lock: Lock) -> None:
    cluster_lock.acquire_exclusive()
    namespace.start("north", **SHORT)
    namespace.wait_for_trainer("toy-train-r1-north-a0")
    before = namespace.operator.containers()

    outages.restart_api_server(default_layout())
    namespace.wait_until_complete()

    assert namespace.operator.containers() == before


def test_an_object_deleted_while_the_watch_was_down_leaves_the_cache(namespace: FleetNamespace, cluster_lock: Lock) -> None:
    """The watch never delivers the deletion: when the operator resumes, its resource version is too old and it lists again."""
    cluster_lock.acquire_exclusive()
    namespace.start("north", name="deleted", **SHORT)
    namespace.wait_for_trainer("deleted-profile-north-a0")
    (operator,) = namespace.operator.pods()

    with outages.paused(operator["metadata"]["uid"]):
        outages.restart_api_server(default_layout())  # which cuts the watch; else the kernel would buffer its events
        namespace.kubectl("delete", FFT, "deleted")
        namespace.kubectl("delete", "jobs", "--all")  # the garbage collector's own watch may take longer to recover than this test
        namespace.wait("the Job is gone", lambda: namespace.kubectl.list("jobs") == [], seconds=20)
        outages.restart_api_server(default_layout())  # whose watch cache holds no earlier events
    namespace.kubectl.apply(namespace.run("next", **SHORT))
    namespace.wait_until_complete("next")

    assert "the cache differs from the API server" in namespace.operator.log(previous=True)
