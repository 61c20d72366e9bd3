"""The status of an `EdgeSite`: claimed, discovered and measured capacity of its pool."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from cluster_user import SITE, Kubectl, Plain, condition, wait_until
from smallest_documents import SITE_DOCUMENT

pytestmark = pytest.mark.e2e

LABEL: Final = "fedpipe-test/pool"
POOL: Final = {LABEL: "sites"}
GPU: Final = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034", "nvidia.com/gpu.count": "2"}
MIB: Final = 2**20


def site(**spec: Any) -> Plain:
    return SITE_DOCUMENT | {"spec": SITE_DOCUMENT["spec"] | {"nodeSelector": POOL} | spec}


def wait_for_ready(kubectl: Kubectl, reason: str, status: str, *, seconds: float = 30) -> Plain:
    """Wait until the site's condition Ready has this reason and status for the current generation; return the site."""

    def poll() -> Plain | None:
        body = kubectl.get(SITE, "ward")
        ready, generation = condition(body, "Ready"), body["metadata"]["generation"]
        matches = (ready.get("reason"), ready.get("status"), ready.get("observedGeneration")) == (reason, status, generation)
        return body if matches else None

    return wait_until(poll, f"the site is {reason}", seconds=seconds, explain=lambda: kubectl("get", SITE, "-o", "yaml"))


@pytest.fixture
def node(empty_namespace: Kubectl) -> Iterator[Plain]:
    """A ready node, whose labels are restored after the test."""
    found = next(one for one in empty_namespace.list("nodes") if condition(one, "Ready")["status"] == "True")
    yield found
    restore_labels(empty_namespace, found)


def label(kubectl: Kubectl, node: Plain, labels: dict[str, str]) -> None:
    kubectl.patch("node", node["metadata"]["name"], {"metadata": {"labels": labels}})


def restore_labels(kubectl: Kubectl, node: Plain) -> None:
    """Restore the node's labels."""
    before = node["metadata"]["labels"]
    kubectl.patch("node", node["metadata"]["name"], {"metadata": {"labels": {name: before.get(name) for name in (LABEL, *GPU)}}})


def test_nodes_that_join_and_leave_a_pool_are_discovered_within_seconds(empty_namespace: Kubectl, node: Plain) -> None:
    empty_namespace.apply(site(capacity={"memory": "1Gi"}))
    lost = wait_for_ready(empty_namespace, "NoNode", "False")
    label(empty_namespace, node, POOL | GPU)
    found = wait_for_ready(empty_namespace, "NodesFound", "True")
    restore_labels(empty_namespace, node)
    wait_for_ready(empty_namespace, "NoNode", "False")

    assert f"{LABEL}=sites" in condition(lost, "CapacityMet")["message"]
    assert lost["status"]["capacity"]["discovered"]["nodes"] == 0
    capacity = found["status"]["capacity"]
    assert capacity["claimed"]["memory"] == 1024 * MIB
    assert (capacity["discovered"]["nodes"], capacity["discovered"]["ready"]) == (1, 1)
    assert capacity["discovered"]["acceleratorProduct"] == GPU["nvidia.com/gpu.product"]
    assert capacity["discovered"]["acceleratorMemory"] == int(GPU["nvidia.com/gpu.memory"]) * MIB
    assert capacity["discovered"]["cpu"] == float(node["status"]["allocatable"]["cpu"])


def test_a_claim_that_no_node_can_meet_is_reported_and_so_is_its_correction(empty_namespace: Kubectl, node: Plain) -> None:
    label(empty_namespace, node, POOL | GPU)
    empty_namespace.apply(site(capacity={"memory": "900Gi", "accelerator": {"memory": "40Gi"}}))
    message = condition(wait_for_ready(empty_namespace, "CapacityTooLarge", "False"), "Ready")["message"]
    empty_namespace.apply(site(capacity={"memory": "1Gi"}))
    wait_for_ready(empty_namespace, "NodesFound", "True")

    assert node["metadata"]["name"] in message
    assert "memory" in message
    events = empty_namespace.list("events", fields="involvedObject.kind=EdgeSite,involvedObject.name=ward")
    assert {"CapacityTooLarge", "NodesFound"} <= {event["reason"] for event in events}


def test_an_invalid_edit_is_rejected_and_changes_nothing(empty_namespace: Kubectl, node: Plain) -> None:
    label(empty_namespace, node, POOL)
    empty_namespace.apply(site())
    before = wait_for_ready(empty_namespace, "NodesFound", "True")
    change = json.dumps({"spec": {"capacity": {"memory": "plenty"}}})

    assert "spec.capacity.memory" in empty_namespace.rejection("patch", SITE, "ward", "--type=merge", "-p", change)
    assert empty_namespace.get(SITE, "ward")["spec"] == before["spec"]
