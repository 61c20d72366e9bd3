"""What an `EdgeSite` tells of its pool: claimed, discovered, measured."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from cluster_user import SITE, Kubectl, Plain, condition, until
from smallest_documents import SITE_DOCUMENT
from wards import Ward

pytestmark = pytest.mark.e2e

LABEL: Final = "fedpipe-test/pool"
POOL: Final = {LABEL: "sites"}
GPU: Final = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034", "nvidia.com/gpu.count": "2"}
MIB: Final = 2**20


def site(**spec: Any) -> Plain:
    return SITE_DOCUMENT | {"spec": SITE_DOCUMENT["spec"] | {"nodeSelector": POOL} | spec}


def seen(kubectl: Kubectl, reason: str, status: str, *, seconds: float = 30) -> Plain:
    """The site, once its condition Ready says this of its newest spec."""

    def look() -> Plain | None:
        body = kubectl.get(SITE, "ward")
        ready, generation = condition(body, "Ready"), body["metadata"]["generation"]
        is_so = (ready.get("reason"), ready.get("status"), ready.get("observedGeneration")) == (reason, status, generation)
        return body if is_so else None

    return until(look, f"the site is {reason}", seconds=seconds, explain=lambda: kubectl("get", SITE, "-o", "yaml"))


@pytest.fixture
def node(quarters: Kubectl) -> Iterator[Plain]:
    """A node that a test may label, without those labels at first and in the end."""
    found = next(one for one in quarters.list("nodes") if condition(one, "Ready")["status"] == "True")
    yield found
    unlabel(quarters, found)


def label(kubectl: Kubectl, node: Plain, labels: dict[str, str]) -> None:
    kubectl.patch("node", node["metadata"]["name"], {"metadata": {"labels": labels}})


def unlabel(kubectl: Kubectl, node: Plain) -> None:
    """As it was."""
    before = node["metadata"]["labels"]
    kubectl.patch("node", node["metadata"]["name"], {"metadata": {"labels": {name: before.get(name) for name in (LABEL, *GPU)}}})


def test_a_pool_whose_nodes_come_and_go_is_seen_within_seconds(quarters: Kubectl, node: Plain) -> None:
    quarters.apply(site(capacity={"memory": "1Gi"}))
    lost = seen(quarters, "NoNode", "False")
    label(quarters, node, POOL | GPU)
    found = seen(quarters, "NodesFound", "True")
    unlabel(quarters, node)
    seen(quarters, "NoNode", "False")

    assert f"{LABEL}=sites" in condition(lost, "CapacityMet")["message"]
    assert lost["status"]["capacity"]["discovered"]["nodes"] == 0
    capacity = found["status"]["capacity"]
    assert capacity["claimed"]["memory"] == 1024 * MIB
    assert (capacity["discovered"]["nodes"], capacity["discovered"]["ready"]) == (1, 1)
    assert capacity["discovered"]["acceleratorProduct"] == GPU["nvidia.com/gpu.product"]
    assert capacity["discovered"]["acceleratorMemory"] == int(GPU["nvidia.com/gpu.memory"]) * MIB
    assert capacity["discovered"]["cpu"] == float(node["status"]["allocatable"]["cpu"])


def test_a_claim_that_no_node_can_meet_is_told_and_so_is_its_correction(quarters: Kubectl, node: Plain) -> None:
    label(quarters, node, POOL | GPU)
    quarters.apply(site(capacity={"memory": "900Gi", "accelerator": {"memory": "40Gi"}}))
    told = condition(seen(quarters, "CapacityTooLarge", "False"), "Ready")["message"]
    quarters.apply(site(capacity={"memory": "1Gi"}))
    seen(quarters, "NodesFound", "True")

    assert node["metadata"]["name"] in told
    assert "memory" in told
    events = quarters.list("events", fields="involvedObject.kind=EdgeSite,involvedObject.name=ward")
    assert {"CapacityTooLarge", "NodesFound"} <= {event["reason"] for event in events}


def test_an_edit_that_makes_no_sense_is_refused_and_changes_nothing(quarters: Kubectl, node: Plain) -> None:
    label(quarters, node, POOL)
    quarters.apply(site())
    before = seen(quarters, "NodesFound", "True")
    change = json.dumps({"spec": {"capacity": {"memory": "plenty"}}})

    assert "spec.capacity.memory" in quarters.refused("patch", SITE, "ward", "--type=merge", "-p", change)
    assert quarters.get(SITE, "ward")["spec"] == before["spec"]


def test_what_a_run_measured_is_kept(undisturbed: Ward) -> None:
    undisturbed.wait("no run is active", lambda: undisturbed.of_site("north")["status"]["activeRuns"] == 0, seconds=30)
    body = undisturbed.of_site("north")
    measured = body["status"]["capacity"]["measured"]

    assert (measured["run"], measured["device"]) == ("toy", "cpu")
    assert (measured["trainSamples"], measured["validationSamples"]) == (24, 6)
    assert 0 < measured["memory"] <= body["status"]["capacity"]["claimed"]["memory"]
