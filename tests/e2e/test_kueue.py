"""Runs whose Jobs Kueue itself admits, by a queue with a quota: the one that waits loses none of its own time."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cluster_user import Kubectl, Plain, condition
from fleet_namespace import SHORT, FleetNamespace
from installed_operator import is_test_cluster
from kueue import queue, running
from local_runs import MANUAL
from testcluster.layout import HOST

from fedpipe_operator.cluster.objects import kube_job

# Its webhook stands before every Job of the cluster.
pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.exclusive]

DEADLINE_SECONDS: Final = 120
LONG: Final = {"bits": 32, "rank": 4, "steps": 1_000_000}


@pytest.fixture(scope="module")
def kueue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    if not is_test_cluster():
        pytest.skip("the API server must reach a webhook on this machine")
    folder: Path = tmp_path_factory.mktemp("kueue")
    with running(folder, HOST) as kubectl:
        yield kubectl


def queued(namespace: FleetNamespace, run: Plain) -> Plain:
    """The run, in the namespace's queue."""
    run["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": namespace.name}
    return run


def waits(namespace: FleetNamespace) -> bool:
    message = condition(namespace.get_run("second"), "Progressing").get("message", "")
    return "north waits for the queue to admit its Job" in message


def has_waited_longer_than_the_deadline(namespace: FleetNamespace) -> bool:
    job = kube_job(namespace.job("second-profile-north-a0"))
    assert job is not None
    assert job.is_suspended
    return time.time() > job.created_at + DEADLINE_SECONDS + 15


@pytest.mark.usefixtures("kueue")
def test_of_two_runs_in_a_queue_for_one_the_second_waits_beyond_its_deadline_and_completes(namespace: FleetNamespace) -> None:
    namespace.kubectl.apply(*queue(namespace.name, memory="2Gi"), namespace.site("north", maxConcurrentJobs=2))
    long = MANUAL | {"plans": [LONG]}
    namespace.kubectl.apply(queued(namespace, namespace.run("first", rounds={"count": 1, "deadline": "1h"}, planning=long)))
    namespace.wait_for_trainer("first-train-r1-north-a0")

    rounds = {"count": 1, "deadline": f"{DEADLINE_SECONDS}s"}
    namespace.kubectl.apply(queued(namespace, namespace.run("second", **(SHORT | {"rounds": rounds}))))
    namespace.wait("the second run waits for the queue", lambda: waits(namespace))
    namespace.wait("it has waited longer than its deadline", lambda: has_waited_longer_than_the_deadline(namespace))
    assert waits(namespace)

    namespace.patch_run("first", suspend=True)
    second = namespace.wait_until_complete("second")
    assert second["status"]["updates"]["summary"] == "1/1"
    assert second["status"].get("excluded", {}) == {}
