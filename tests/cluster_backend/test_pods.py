"""Pods as the API shows them, and what the operator makes of them."""

from dataclasses import replace
from typing import Any

import pytest

from fedpipe_operator.cluster.pods import Ending, Waiting, ending, mount_failure, not_created, waiting


def a_pod(created: str = "2026-01-01T00:00:00Z", **status: Any) -> dict[str, Any]:
    return {"metadata": {"creationTimestamp": created}, "status": status}


def held(reason: str, message: str = "") -> dict[str, Any]:
    return a_pod(containerStatuses=[{"state": {"waiting": {"reason": reason, "message": message}}}])


def ended(code: int, reason: str = "Error", **more: str) -> dict[str, Any]:
    return a_pod(containerStatuses=[{"state": {"terminated": {"exitCode": code, "reason": reason, **more}}}])


def unscheduled(message: str) -> dict[str, Any]:
    return a_pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}])


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(unscheduled("0/2 nodes"), Waiting("Unschedulable", "0/2 nodes", is_hopeless=False), id="no room yet"),
        pytest.param(
            unscheduled('persistentvolumeclaim "ward" not found. preemption: none'),
            Waiting("VolumeMissing", 'persistentvolumeclaim "ward" not found. preemption: none', is_hopeless=True),
            id="no such claim",
        ),
        pytest.param(held("ErrImagePull", "nope"), Waiting("ImageUnavailable", "ErrImagePull: nope", is_hopeless=True), id="no image"),
        pytest.param(
            held("CreateContainerConfigError", 'secret "x" not found'),
            Waiting("CannotStart", 'CreateContainerConfigError: secret "x" not found', is_hopeless=True),
            id="bad configuration",
        ),
        pytest.param(held("ContainerCreating"), Waiting("Starting", "its container is being made", is_hopeless=False), id="starting"),
        pytest.param(a_pod(containerStatuses=[{"state": {"running": {}}}]), None, id="running"),
    ],
)
def test_a_pod_that_is_not_at_work_says_why(pod: dict[str, Any], expected: Waiting | None) -> None:
    assert waiting([pod]) == (expected and replace(expected, since=1767225600.0))


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(
            ended(137, "OOMKilled"), Ending(137, "OutOfMemory", "the kernel ended it at its memory limit (exit code 137)"), id="memory"
        ),
        pytest.param(ended(3, message="no rows"), Ending(3, "BadData", "no rows"), id="its own words"),
        pytest.param(
            ended(99), Ending(99, "Died", "exit code 99; kubectl logs has its own words, while the Job is kept"), id="nobody knows why"
        ),
        pytest.param(
            ended(137), Ending(137, "Killed", "exit code 137; kubectl logs has its own words, while the Job is kept"), id="killed"
        ),
        pytest.param(a_pod(reason="Evicted", message="low on disk"), Ending(None, "Evicted", "low on disk"), id="evicted"),
        pytest.param(a_pod(), None, id="not ended"),
    ],
)
def test_a_pod_that_ended_says_how(pod: dict[str, Any], expected: Ending | None) -> None:
    assert ending([pod]) == expected


def test_of_several_pods_of_a_job_the_newest_counts() -> None:
    older, newer = held("ErrImagePull"), a_pod("2026-01-02T00:00:00Z", containerStatuses=[{"state": {"running": {}}}])

    assert waiting([newer, older]) is None


def test_without_a_pod_nothing_is_said() -> None:
    assert waiting([]) is None
    assert ending([]) is None


def test_a_volume_that_cannot_be_mounted_is_told_in_the_kubelets_newest_words() -> None:
    events = [{"reason": "FailedMount", "message": "first"}, {"reason": "Scheduled"}, {"reason": "FailedMount", "message": "second"}]

    assert mount_failure(events) == "second"
    assert mount_failure([{"reason": "Scheduled"}]) == ""


def test_a_volume_that_was_mounted_in_the_end_is_no_failure_while_the_image_is_pulled() -> None:
    assert mount_failure([{"reason": "FailedAttachVolume", "message": "still attached elsewhere"}, {"reason": "Pulling"}]) == ""


def test_of_several_containers_our_own_tells_how_the_pod_ended() -> None:
    proxy = {"name": "proxy", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    trainer = {"name": "trainer", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    found = ending([a_pod(initContainerStatuses=[proxy], containerStatuses=[proxy, trainer])])

    assert found is not None
    assert found.reason == "OutOfMemory"


def test_a_container_that_failed_before_ours_began_tells_how_the_pod_ended() -> None:
    first = {"name": "first", "state": {"terminated": {"exitCode": 9, "reason": "Error"}}}
    trainer = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
    found = ending([a_pod(initContainerStatuses=[first], containerStatuses=[trainer])])

    assert found is not None
    assert found.exit_code == 9


@pytest.mark.parametrize(("diagnostics", "hopeless"), [("violates PodSecurity", True), ("exceeded quota: pods", False)])
def test_a_pod_that_may_not_be_made_says_why(diagnostics: str, *, hopeless: bool) -> None:
    assert not_created([{"reason": "FailedCreate", "message": diagnostics}]) == Waiting("PodRefused", diagnostics, is_hopeless=hopeless)
    assert not_created([{"reason": "SuccessfulCreate"}]) is None
