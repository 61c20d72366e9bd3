"""The operator killed again and again: the same adapter, bit for bit, and nothing done twice."""

import hashlib
import random
import time
from datetime import datetime
from typing import Final

import pytest
from cluster_user import FFT, Plain, condition
from deeds import have_ended, made_twice
from testcluster import outages
from testcluster.layout import default_layout
from wards import SHORT, Ward, is_over

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit
from fedpipe_operator.store import S3Store
from fedpipe_operator.store.objects import required_object

pytestmark = pytest.mark.e2e

KILLS: Final = 10
SEED: Final = 20261124
SHARE: Final = 0.8
"""Of the time that an undisturbed run is at work: a tormented one takes longer, so it is killed to the last in the midst of its work."""


def sha256_of(store: S3Store, key: str) -> str:
    """Of an object that must be there."""
    data = store.read(key)
    assert data is not None, key
    return hashlib.sha256(data).hexdigest()


def adapters(ward: Ward) -> dict[int, str]:
    """The SHA-256 of each round's global adapter, of the bytes that are in the store."""
    run = ward.look()
    store = ward.store_of(run)
    found = {}
    for round_ in range(1, run["spec"]["rounds"]["count"] + 1):
        result = required_object(store, names.round_commit(round_), RoundCommit)
        found[round_] = sha256_of(store, names.global_adapter(round_, result.adapter.sha256))
        assert found[round_] == result.adapter.sha256
    return found


def seconds_at_work(ward: Ward) -> float:
    """From the start of the run's first container, before which a node may have pulled the image for long, to the run's end."""
    states = [one["state"] for pod in ward.kubectl.list("pods") for one in pod["status"].get("containerStatuses", ())]
    began = min(datetime.fromisoformat(state["terminated"]["startedAt"]) for state in states if "terminated" in state)
    return (datetime.fromisoformat(condition(ward.look(), "Complete")["lastTransitionTime"]) - began).total_seconds()


def torment(ward: Ward, instants: list[float]) -> int:
    """Kill the operator at these seconds of the run, and restart the API server once; how often it was killed before the run's end."""
    began = time.monotonic()
    for number, instant in enumerate(instants):
        time.sleep(max(0.0, began + instant - time.monotonic()))  # an instant drawn by chance, not something that is waited for
        run = ward.look()
        if is_over(run):
            return number
        print(f"kill {number + 1} at {instant:.1f} s: {condition(run, 'Ready').get('reason')}")  # noqa: T201
        ward.operator.kill()
        if number == len(instants) // 2:
            outages.restart_api_server(default_layout())
    return len(instants)


def exported(ward: Ward) -> dict[str, str]:
    """The SHA-256 of each file that the run exported."""
    store = ward.store_of(ward.look())
    return {key: sha256_of(store, key) for key in store.list("export") if key.endswith(".safetensors")}


def assert_nothing_is_left(ward: Ward, run: Plain) -> None:
    """Ended Jobs and their pods stay for their logs; Secrets with tasks, and whatever is at work, may not."""
    ward.wait("every Job has ended", lambda: have_ended(ward.kubectl))
    ward.wait("no task is left", lambda: [one for one in ward.left_of(run) if one.startswith("Secret ")] == [])


def test_an_undisturbed_run_does_nothing_twice_and_leaves_nothing(undisturbed: Ward) -> None:
    assert made_twice(undisturbed.kubectl) == []
    assert_nothing_is_left(undisturbed, undisturbed.look())


def test_a_tormented_run_ends_with_the_same_adapters(undisturbed: Ward, ward: Ward) -> None:
    chance, time_of_work = random.Random(SEED), SHARE * seconds_at_work(undisturbed)  # noqa: S311 -- no secret
    instants = sorted(chance.uniform(0, time_of_work) for _ in range(KILLS))
    print(f"seed {SEED}, kills within {time_of_work:.0f} s")  # noqa: T201

    ward.start("north", "south")
    killed = torment(ward, instants)
    run = ward.wait_until_complete()

    assert killed == KILLS
    assert adapters(ward) == adapters(undisturbed)
    assert exported(ward) == exported(undisturbed) != {}
    assert made_twice(ward.kubectl) == []
    assert_nothing_is_left(ward, run)


def test_a_watch_that_an_api_server_lost_heals_by_itself(ward: Ward) -> None:
    ward.start("north", **SHORT)
    ward.trainer_at_work("toy-evaluate-north-a0")
    before = ward.operator.incarnations()

    outages.restart_api_server(default_layout())
    ward.wait_until_complete()

    assert ward.operator.incarnations() == before


def test_what_went_while_the_watch_was_away_is_not_believed_in_for_ever(ward: Ward) -> None:
    """The deletion is never told: the watch is too old for it when the operator comes to itself, and begins again with a list."""
    ward.start("north", name="gone", **SHORT)
    ward.trainer_at_work("gone-profile-north-a0")
    (operator,) = ward.operator.pods()

    with outages.held_still(operator["metadata"]["uid"]):
        outages.restart_api_server(default_layout())  # its connections are gone, else the kernel would keep the news for it
        ward.kubectl("delete", FFT, "gone")
        ward.wait("the Job is gone", lambda: ward.kubectl.list("jobs") == [], seconds=20)
        outages.restart_api_server(default_layout())  # which knows of nothing that was before
    ward.kubectl.apply(ward.run("next", **SHORT))
    ward.wait_until_complete("next")

    assert "what is remembered is not what the API server has" in ward.operator.log(previous=True)
