"""A node is drained while a trainer runs on it."""

from typing import Final

import pytest
from fleet_namespace import FleetNamespace
from local_runs import MANUAL
from testcluster import outages
from testcluster.layout import default_layout

from fedpipe_operator import names
from fedpipe_operator.store.objects import read_object
from fedpipe_trainer.contract import Outcome, TrainResult

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive, pytest.mark.nightly]

STEPS: Final = 2000
LONG: Final = MANUAL | {"plans": [{"bits": 32, "rank": 4, "steps": STEPS}]}
"""Steps take milliseconds; so many of them that the drain interrupts the training."""


def update_results(namespace: FleetNamespace) -> list[TrainResult]:
    """The results of the site's attempts at round 1."""
    store = namespace.store_of(namespace.get_run())
    found = (read_object(store, names.update_result(1, "north", attempt), TrainResult) for attempt in range(3))
    return [one for one in found if one is not None]


def training_pod(namespace: FleetNamespace) -> tuple[str, str]:
    """Wait until the trainer has trained steps; return its pod's name and node."""
    pod = namespace.wait_for_trainer("toy-train-r1-north-a0")
    name = pod["metadata"]["name"]
    namespace.wait("steps are trained", lambda: '"phase":"train"' in namespace.kubectl("logs", name, "--tail=1"))
    return name, pod["spec"]["nodeName"]


def test_a_pod_on_another_node_resumes_from_the_checkpoint(namespace: FleetNamespace) -> None:
    once, no_export = {"count": 1, "attempts": 1}, {"adapter": False, "merged": False}
    manifest = namespace.run(rounds=once, planning=LONG, training={"learningRate": 1e-3}, export=no_export)
    namespace.kubectl.apply(namespace.site("north", nodeSelector={}), manifest)

    name, node = training_pod(namespace)
    try:
        outages.drain(default_layout(), node)
        run = namespace.wait_until_complete()
    finally:
        outages.uncordon(default_layout(), node)

    nodes = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in namespace.kubectl.list("pods", "fedpipe.io/task=train")}
    done = [one for one in update_results(namespace) if one.outcome is Outcome.COMPLETED]
    assert {where for one, where in nodes.items() if one != name} == {"node-one", "node-two"} - {node}
    assert [(one.steps, one.resumed_from_step > 0) for one in done] == [(STEPS, True)]
    assert run["status"]["history"][0]["updates"] == "1/1"
