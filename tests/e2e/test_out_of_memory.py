"""The kernel kills a trainer that exceeds its container's memory limit: the run goes on, and the site's next plan is smaller."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cluster_user import Kubectl, Plain, condition
from fleet_namespace import FleetNamespace
from installed_operator import Operator
from job_history import name_in_run

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.rounds.replanning import REPLANNED
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import Plan

pytestmark = pytest.mark.e2e

LIMIT: Final = "900Mi"
"""Less than the site claims: enough for 8 samples of 512 tokens at once, and not for 16."""
PLANNING: Final = {"bits": [32], "batchSizes": [4, 16]}


@pytest.fixture
def namespace(disposable_cluster: None, operator: Operator, uneven_fleet: Path) -> Iterator[FleetNamespace]:
    """A namespace with the uneven fleet."""
    del disposable_cluster
    with FleetNamespace(Kubectl("e2e-out-of-memory"), operator, uneven_fleet).opened() as namespace:
        yield namespace


def limit_memory(namespace: FleetNamespace, pod: Plain) -> None:
    """Lower the memory limit of a pod that has just begun, and tell neither the trainer nor the planner."""
    resources = {"limits": {"memory": LIMIT}, "requests": {"memory": LIMIT}}
    change = json.dumps({"spec": {"containers": [{"name": "trainer", "resources": resources}]}})
    namespace.kubectl("patch", "pod", pod["metadata"]["name"], "--subresource=resize", "--type=strategic", "-p", change)


def ends_of_training(namespace: FleetNamespace, round_: int) -> dict[str, tuple[str, int]]:
    """Reason and exit code of each training's container, by Job."""
    label = f"fedpipe.io/task=train,fedpipe.io/round={round_}"
    pods = namespace.kubectl.list("pods", label)
    return {name_in_run(pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]): end_of(pod) for pod in pods}


def end_of(pod: Plain) -> tuple[str, int]:
    (container,) = pod["status"]["containerStatuses"]
    ended = container["state"]["terminated"]
    return ended["reason"], ended["exitCode"]


def test_a_site_whose_trainer_ran_out_of_memory_is_planned_smaller_in_the_next_round(namespace: FleetNamespace) -> None:
    task = {"type": "SequenceClassification", "maxLength": 512}
    short, no_export = {"learningRate": 5e-3, "maxSteps": 2}, {"adapter": False, "merged": False}
    namespace.start("south", task=task, planning=PLANNING, training=short, rounds={"count": 2}, export=no_export)
    limit_memory(namespace, namespace.wait_for_trainer("toy-train-r1-south-a0"))
    run = namespace.wait_until_complete()

    store = namespace.store_of(run)
    first, second = (required_object(store, names.round_plan(round_), RoundPlan).plans["south"] for round_ in (1, 2))
    (shown,) = run["status"]["plans"]
    reason = next(sentence for sentence in second.why if sentence.startswith(REPLANNED))

    assert ends_of_training(namespace, 1) == {"toy-train-r1-south-a0": ("OOMKilled", 137), "toy-train-r1-south-a1": ("Completed", 0)}
    assert ends_of_training(namespace, 2) == {"toy-train-r2-south-a0": ("Completed", 0)}
    assert first.micro_batch == 16
    assert second.forecast.memory_bytes <= 0.9 * first.forecast.memory_bytes
    assert size_of(second) < size_of(first)
    assert reason.startswith("re-planned: the last plan ran out of memory, so that the forecast of training must stay below ")
    assert reason in shown["why"]
    assert namespace.events("FederatedFineTune", "toy")["Replanned"] == f"round 2: south: {reason}"
    assert [entry["updates"] for entry in run["status"]["history"]] == ["1/1", "1/1"]
    assert condition(run, "Complete")["reason"] == "RoundsCompleted"


def size_of(plan: Plan) -> int:
    """Samples in memory at once, times the layers that keep their activations."""
    return plan.micro_batch * plan.trained_layers
