"""A cluster injects a container that never ends into every pod: a run takes no deadline for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cluster_user import Plain, condition
from fleet_namespace import SHORT, FleetNamespace
from local_runs import MANUAL
from sidecars import NAME, injected
from testcluster.configs import PAUSE
from testcluster.layout import HOST

from fedpipe_operator.api.meta import ANNOTATION_EXIT_CODE, ANNOTATION_REASON

pytestmark = pytest.mark.e2e

TRAINING: Final = "toy-train-r1-north-a0"
LONG: Final = {"bits": 32, "rank": 4, "steps": 1_000_000}
END_TRAINER: Final = "import os, signal; os.kill(1, signal.SIGTERM)"


@pytest.fixture
def meshed(namespace: FleetNamespace, tmp_path: Path) -> Iterator[FleetNamespace]:
    """A namespace into whose pods a container is injected."""
    with injected(namespace.kubectl, tmp_path, HOST, PAUSE):
        yield namespace


def annotations(job: Plain) -> Plain:
    found: Plain = job["metadata"].get("annotations", {})
    return found


def is_ended(job: Plain) -> bool:
    return any(one["type"] == "Failed" and one["status"] == "True" for one in job["status"].get("conditions", []))


def test_a_run_completes_though_no_pod_of_it_ends(meshed: FleetNamespace) -> None:
    meshed.start("north", **SHORT | {"rounds": {"count": 1, "deadline": "1h"}})
    pod = meshed.wait_for_trainer(TRAINING, seconds=400)
    assert NAME in [one["name"] for one in pod["spec"]["containers"]]
    run = meshed.wait_until_complete(seconds=400)

    assert run["status"]["updates"]["summary"] == "1/1"
    profile = meshed.job("toy-profile-north-a0")
    assert (annotations(profile)[ANNOTATION_REASON], annotations(profile)[ANNOTATION_EXIT_CODE]) == ("Completed", "0")
    assert is_ended(profile)


def test_a_trainer_that_ends_without_its_update_is_followed_by_the_next_attempt(meshed: FleetNamespace) -> None:
    planning = MANUAL | {"plans": [LONG]}
    meshed.start("north", rounds={"count": 1, "deadline": "1h"}, planning=planning, export={"adapter": False, "merged": False})
    pod = meshed.wait_for_trainer(TRAINING, seconds=400)["metadata"]["name"]
    meshed.wait("steps are trained", lambda: '"phase":"train"' in meshed.kubectl("logs", pod, "-c", "trainer", "--tail=1"))

    meshed.kubectl("exec", pod, "-c", "trainer", "--", "python", "-c", END_TRAINER)
    meshed.wait(
        "the Job has its trainer's exit code", lambda: annotations(meshed.job(TRAINING)).get(ANNOTATION_EXIT_CODE) == "143", seconds=180
    )
    meshed.wait_for_trainer("toy-train-r1-north-a1")

    assert annotations(meshed.job(TRAINING))[ANNOTATION_REASON] == "Terminated"
    assert condition(meshed.get_run(), "Progressing")["reason"] == "Training"
    assert "DeadlineExceeded" not in json.dumps(meshed.get_run()["status"])
