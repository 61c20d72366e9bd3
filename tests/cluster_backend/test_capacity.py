"""What a pool's nodes can carry, held against what a site claims."""

from typing import Any

import pytest
from stand_in_runs import a_site

from fedpipe_operator.sites import Node, claimed_capacity, discovered_capacity, find_pool_problem

GIB = 2**30
GPU = {"nvidia.com/gpu.product": "NVIDIA-A10", "nvidia.com/gpu.memory": "24576"}


def a_node(name: str = "one", *, schedulable: bool = True, labels: dict[str, str] | None = None, **have: float) -> Node:
    allocatable = {"cpu": 8.0, "memory": 32.0 * GIB} | have
    return Node(name, {"pool": "a"} | (labels or {}), allocatable, schedulable)


def claiming(**capacity: Any) -> Any:
    return a_site("ward", nodeSelector={"pool": "a"}, capacity=capacity)


def test_a_pool_is_the_most_that_any_one_of_its_nodes_offers() -> None:
    nodes = [
        a_node("one", cpu=4.0),
        a_node("two", schedulable=False, labels=GPU, **{"nvidia.com/gpu": 2.0}),
        Node("other", {"pool": "b"}, {"cpu": 96.0}, schedulable=True),
    ]

    found = discovered_capacity(claiming(memory="8Gi"), nodes)

    assert found.model_dump() == {
        "nodes": 2,
        "ready": 1,
        "cpu": 8.0,
        "memory": 32 * GIB,
        "accelerators": 2,
        "accelerator_product": "NVIDIA-A10",
        "accelerator_memory": 24 * GIB,
    }


def test_a_claim_is_converted_to_plain_numbers() -> None:
    found = claimed_capacity(claiming(cpu="500m", memory="8Gi", accelerator={"memory": "24Gi"}))

    assert (found.cpu, found.memory, found.accelerator_memory) == (0.5, 8 * GIB, 24 * GIB)


@pytest.mark.parametrize(
    ("capacity", "node", "shortage"),
    [
        pytest.param({"cpu": 16}, a_node(), "8 of 16 cores", id="too few cores"),
        pytest.param({"memory": "64Gi"}, a_node(), "of memory", id="too little memory"),
        pytest.param({"accelerator": {"memory": "1Gi"}}, a_node(), "0 of 1 nvidia.com/gpu", id="no device"),
        pytest.param(
            {"accelerator": {"memory": "80Gi"}},
            a_node(labels=GPU, **{"nvidia.com/gpu": 1.0}),
            "of device memory",
            id="a device too small",
        ),
    ],
)
def test_a_claim_that_no_node_can_ever_meet_is_reported_with_the_shortage(capacity: dict[str, Any], node: Node, shortage: str) -> None:
    wrong = find_pool_problem(claiming(**capacity), [node])

    assert wrong is not None
    assert wrong.reason == "CapacityTooLarge"
    assert shortage in wrong.message
    assert "one comes closest" in wrong.message


def test_one_node_that_fits_is_enough() -> None:
    assert find_pool_problem(claiming(cpu=8, memory="32Gi"), [a_node("small", cpu=1.0), a_node("large")]) is None


def test_an_unschedulable_node_may_become_schedulable() -> None:
    assert find_pool_problem(claiming(cpu=8), [a_node(schedulable=False)]) is None


def test_a_device_without_a_memory_label_is_assumed_to_be_large_enough() -> None:
    assert find_pool_problem(claiming(accelerator={"memory": "80Gi"}), [a_node(**{"nvidia.com/gpu": 1.0})]) is None


def test_a_pool_without_nodes_is_reported_with_its_labels() -> None:
    wrong = find_pool_problem(claiming(), [Node("other", {"pool": "b"}, {}, schedulable=True)])

    assert wrong is not None
    assert (wrong.reason, wrong.message) == ("NoNode", "no node carries the labels pool=a: correct nodeSelector, or label the pool's nodes")
