"""A node is emptied while a trainer is at work on it."""

from typing import Final

import pytest
from testcluster import outages
from testcluster.layout import default_layout
from wards import Ward

from fedpipe_operator import names
from fedpipe_operator.store.objects import read_object
from fedpipe_trainer.contract import Outcome, TrainResult

pytestmark = pytest.mark.e2e

LONG: Final = {"learningRate": 1e-3, "epochs": 1000, "maxSteps": 2000}
"""Steps of milliseconds, so many that a drain meets them."""


def updates(ward: Ward) -> list[TrainResult]:
    """What the site reported of its attempts at round 1."""
    store = ward.store_of(ward.look())
    found = (read_object(store, names.update_result(1, "north", attempt), TrainResult) for attempt in range(3))
    return [one for one in found if one is not None]


def training_pod(ward: Ward) -> tuple[str, str]:
    """Name and node of the trainer's pod, once its steps are on their way."""
    pod = ward.trainer_at_work("toy-train-r1-north-a0")
    name = pod["metadata"]["name"]
    ward.wait("steps are trained", lambda: '"phase":"train"' in ward.kubectl("logs", name, "--tail=1"))
    return name, pod["spec"]["nodeName"]


def test_another_pod_goes_on_from_the_checkpoint(ward: Ward) -> None:
    run = ward.run(rounds={"count": 1, "attempts": 1}, training=LONG, export={"adapter": False, "merged": False})
    ward.kubectl.apply(ward.site("north", nodeSelector={}), run)

    name, node = training_pod(ward)
    try:
        outages.drain(default_layout(), node)
        ended = ward.wait_until_complete()
    finally:
        outages.uncordon(default_layout(), node)

    nodes = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in ward.kubectl.list("pods", "fedpipe.io/task=train")}
    done = [one for one in updates(ward) if one.outcome is Outcome.COMPLETED]
    assert {where for one, where in nodes.items() if one != name} == {"node-one", "node-two"} - {node}
    assert [(one.steps, one.resumed_from_step > 0) for one in done] == [(LONG["maxSteps"], True)]
    assert ended["status"]["history"][0]["updates"] == "1/1"
