"""Which changes of watched objects matter."""

from dataclasses import replace
from typing import Any

import pytest
from cached_objects import NODE, a_body, a_job

from fedpipe_operator.cluster.objects import NamespacedName
from fedpipe_operator.handlers.changes import JobChanges, NodeChanges, SiteChanges, job_matters


@pytest.mark.parametrize(
    ("changes", "is_gone", "matters"),
    [
        pytest.param({}, False, False, id="was created"),
        pytest.param({"ready": 1}, False, False, id="its pod is ready"),
        pytest.param({"ended": "Complete"}, False, True, id="ended"),
        pytest.param({"given_up": True}, False, True, id="was given up"),
        pytest.param({"is_suspended": True}, False, True, id="a queue suspended it"),
        pytest.param({"ready": 1, "is_deleting": True}, False, True, id="is deleted before its end"),
        pytest.param({"ready": 1}, True, True, id="was deleted before its end"),
        pytest.param({"ended": "Complete", "is_deleting": True}, False, False, id="is deleted after its end"),
        pytest.param({"ended": "Complete"}, True, False, id="was deleted after its end"),
    ],
)
def test_a_job_matters_if_a_reconcile_of_its_run_has_something_to_do(changes: dict[str, Any], is_gone: bool, matters: bool) -> None:
    assert job_matters(a_job("mine", "north", **changes), is_gone=is_gone) == matters


@pytest.mark.parametrize(
    ("changes", "is_gone", "expected"),
    [
        pytest.param({}, False, True, id="neither pod nor Job has ended"),
        pytest.param({"ready": 1}, False, False, id="its pod is ready"),
        pytest.param({"has_pod_ended": True}, False, False, id="its pod has ended"),
        pytest.param({"ended": "Complete"}, False, False, id="ended"),
        pytest.param({"given_up": True}, False, False, id="was given up"),
        pytest.param({"is_suspended": True}, False, False, id="a queue suspended it"),
        pytest.param({"is_deleting": True}, False, False, id="is deleted"),
        pytest.param({}, True, False, id="was deleted"),
    ],
)
def test_a_pod_that_was_ready_and_is_not_is_noticed_once(changes: dict[str, Any], is_gone: bool, expected: bool) -> None:
    seen = JobChanges()

    assert not seen.lost_readiness(a_job("mine", "north"), is_gone=False)
    assert not seen.lost_readiness(a_job("mine", "north", ready=1), is_gone=False)
    assert not seen.lost_readiness(a_job("mine", "south"), is_gone=False)
    assert seen.lost_readiness(a_job("mine", "north", **changes), is_gone=is_gone) == expected
    if changes != {"ready": 1}:
        assert not seen.lost_readiness(a_job("mine", "north"), is_gone=False)


@pytest.mark.parametrize(
    ("after", "matters"),
    [
        pytest.param(a_body("north", status={"activeRuns": 1}), False, id="its status"),
        pytest.param(a_body("north", resourceVersion="2"), False, id="its resource version"),
        pytest.param(a_body("north", generation=2), True, id="its spec"),
        pytest.param(a_body("north", labels={"study": "triage"}), True, id="its labels"),
        pytest.param(a_body("north", uid="uid-of-another"), True, id="another object of its name"),
    ],
)
def test_a_site_matters_if_its_spec_or_its_labels_changed(after: dict[str, Any], matters: bool) -> None:
    changes = SiteChanges()

    assert changes.matters(a_body("north"))
    assert changes.matters(after) == matters
    assert not changes.matters(after)


def test_a_site_that_was_deleted_and_created_again_matters() -> None:
    changes = SiteChanges()
    changes.matters(a_body("north"))
    changes.remove(NamespacedName("wards", "north"))

    assert changes.matters(a_body("north"))


def test_a_node_matters_if_anything_but_its_heartbeat_changed() -> None:
    changes = NodeChanges()

    assert changes.matters(NODE)
    assert not changes.matters(replace(NODE))
    assert changes.matters(replace(NODE, schedulable=False))
    changes.remove(NODE)
    assert changes.matters(replace(NODE, schedulable=False))
