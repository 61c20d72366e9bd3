"""Pods as the API shows them, and what the operator makes of them."""

from dataclasses import replace
from typing import Any

import pytest

from fedpipe_operator.cluster.pod_diagnostics import (
    MOST_OF_A_MESSAGE,
    PodEnd,
    PodWaiting,
    mount_failure,
    pod_end,
    task_end,
    why_not_created,
    why_waiting,
)


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
        pytest.param(unscheduled("0/2 nodes"), PodWaiting("Unschedulable", "0/2 nodes", is_hopeless=False), id="no room yet"),
        pytest.param(
            unscheduled('persistentvolumeclaim "ward" not found. preemption: none'),
            PodWaiting("VolumeMissing", 'persistentvolumeclaim "ward" not found. preemption: none', is_hopeless=True),
            id="no such claim",
        ),
        pytest.param(held("ErrImagePull", "nope"), PodWaiting("ImageUnavailable", "ErrImagePull: nope", is_hopeless=True), id="no image"),
        pytest.param(
            held("CreateContainerConfigError", 'secret "x" not found'),
            PodWaiting("CannotStart", 'CreateContainerConfigError: secret "x" not found', is_hopeless=True),
            id="bad configuration",
        ),
        pytest.param(held("ContainerCreating"), PodWaiting("Starting", "its container is being created", is_hopeless=False), id="starting"),
        pytest.param(a_pod(containerStatuses=[{"state": {"running": {}}}]), None, id="running"),
    ],
)
def test_a_pod_that_does_not_run_says_why(pod: dict[str, Any], expected: PodWaiting | None) -> None:
    assert why_waiting([pod]) == (expected and replace(expected, since=1767225600.0))


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(
            ended(137, "OOMKilled"), PodEnd(137, "OutOfMemory", "the kernel killed it at its memory limit (exit code 137)"), id="memory"
        ),
        pytest.param(ended(3, message="no rows"), PodEnd(3, "BadData", "no rows"), id="its own words"),
        pytest.param(ended(99), PodEnd(99, "Died", "exit code 99; see `kubectl logs` while the Job is kept"), id="nobody knows why"),
        pytest.param(ended(137), PodEnd(137, "Killed", "exit code 137; see `kubectl logs` while the Job is kept"), id="killed"),
        pytest.param(a_pod(reason="Evicted", message="low on disk"), PodEnd(None, "Evicted", "low on disk"), id="evicted"),
        pytest.param(a_pod(), None, id="not ended"),
    ],
)
def test_a_pod_that_ended_says_how(pod: dict[str, Any], expected: PodEnd | None) -> None:
    assert pod_end([pod]) == expected


def test_what_a_container_said_at_its_end_is_shown_without_what_a_terminal_would_obey() -> None:
    end = pod_end([ended(99, message="\u001b[2Jdone\u202e\nnext line\u0000")])

    assert end is not None
    assert end.message == "\N{REPLACEMENT CHARACTER}[2Jdone\N{REPLACEMENT CHARACTER}\nnext line\N{REPLACEMENT CHARACTER}"


HOSTILE = "\u001b[2J" + "x" * 1_400_000


@pytest.mark.parametrize("pod", [held("ErrImagePull", HOSTILE), held("StartError", HOSTILE), unscheduled(HOSTILE)])
def test_what_a_node_says_of_a_pod_that_waits_is_short_and_harmless(pod: dict[str, Any]) -> None:
    """A site may own its nodes, whose kubelets write the states of pods. All annotations of a Job have 256 KiB at most."""
    waiting = why_waiting([pod])

    assert waiting is not None
    assert len(waiting.message) <= MOST_OF_A_MESSAGE + 100
    assert "\u001b" not in waiting.message


@pytest.mark.parametrize("pod", [a_pod(reason="Evicted" * 1000, message=HOSTILE), ended(99, message=HOSTILE)])
def test_what_a_node_says_of_a_pod_that_ended_is_short_and_harmless(pod: dict[str, Any]) -> None:
    end = pod_end([pod])

    assert end is not None
    assert len(end.reason) <= 100
    assert len(end.message) <= MOST_OF_A_MESSAGE
    assert "\u001b" not in end.message


def test_what_events_say_is_short_and_harmless() -> None:
    mounts, creates = ({"reason": reason, "message": HOSTILE} for reason in ("FailedMount", "FailedCreate"))
    refused = why_not_created([creates])

    assert refused is not None
    for message in (mount_failure([mounts]), refused.message):
        assert len(message) <= MOST_OF_A_MESSAGE
        assert "\u001b" not in message


def test_of_several_pods_of_a_job_the_newest_counts() -> None:
    older, newer = held("ErrImagePull"), a_pod("2026-01-02T00:00:00Z", containerStatuses=[{"state": {"running": {}}}])

    assert why_waiting([newer, older]) is None


def test_without_a_pod_nothing_is_said() -> None:
    assert why_waiting([]) is None
    assert pod_end([]) is None


def test_a_volume_that_cannot_be_mounted_is_reported_in_the_kubelets_newest_message() -> None:
    events = [{"reason": "FailedMount", "message": "first"}, {"reason": "Scheduled"}, {"reason": "FailedMount", "message": "second"}]

    assert mount_failure(events) == "second"
    assert mount_failure([{"reason": "Scheduled"}]) == ""


def test_a_volume_that_was_mounted_in_the_end_is_no_failure_while_the_image_is_pulled() -> None:
    assert mount_failure([{"reason": "FailedAttachVolume", "message": "still attached elsewhere"}, {"reason": "Pulling"}]) == ""


def test_of_several_containers_our_own_says_how_the_pod_ended() -> None:
    proxy = {"name": "proxy", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    trainer = {"name": "trainer", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    found = pod_end([a_pod(initContainerStatuses=[proxy], containerStatuses=[proxy, trainer])])

    assert found is not None
    assert found.reason == "OutOfMemory"


def test_a_container_that_failed_before_ours_began_says_how_the_pod_ended() -> None:
    first = {"name": "first", "state": {"terminated": {"exitCode": 9, "reason": "Error"}}}
    trainer = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
    found = pod_end([a_pod(initContainerStatuses=[first], containerStatuses=[trainer])])

    assert found is not None
    assert found.exit_code == 9


def with_sidecar(code: int, reason: str = "Error", *, name: str = "trainer", **more: Any) -> dict[str, Any]:
    """A pod in which a proxy goes on after our container."""
    own = {"name": name, "state": {"terminated": {"exitCode": code, "reason": reason}}}
    proxy = {"name": "istio-proxy", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    return a_pod(**{"phase": "Running", "containerStatuses": [proxy, own]} | more)


NO_LOG = "its log went with the pod, which another container kept alive"


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(with_sidecar(0, "Completed"), PodEnd(0, "Completed", f"exit code 0; {NO_LOG}"), id="done"),
        pytest.param(with_sidecar(3), PodEnd(3, "BadData", f"exit code 3; {NO_LOG}"), id="failed"),
        pytest.param(with_sidecar(139, name="worker"), PodEnd(139, "Died", f"exit code 139; {NO_LOG}"), id="an aggregation"),
        pytest.param(
            with_sidecar(137, "OOMKilled"),
            PodEnd(137, "OutOfMemory", "the kernel killed it at its memory limit (exit code 137)"),
            id="out of memory",
        ),
        pytest.param(with_sidecar(0, name="vault-agent"), None, id="only another container has ended"),
        pytest.param(with_sidecar(0, phase="Succeeded"), None, id="the pod has ended"),
        pytest.param(with_sidecar(143, phase="Failed", reason="Evicted"), None, id="the pod was evicted"),
        pytest.param(with_sidecar(143, conditions=[{"type": "DisruptionTarget", "status": "True"}]), None, id="the pod is drained"),
        pytest.param(a_pod(phase="Pending"), None, id="no container yet"),
    ],
)
def test_a_task_has_ended_though_its_pod_goes_on(pod: dict[str, Any], expected: PodEnd | None) -> None:
    assert task_end([pod]) == expected


def test_a_pod_that_is_being_deleted_ends_anyway() -> None:
    pod = with_sidecar(143)
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:10Z"

    assert task_end([pod]) is None


def test_a_task_goes_on_in_the_pod_that_replaced_another() -> None:
    newer = a_pod("2026-01-02T00:00:00Z", phase="Running", containerStatuses=[{"name": "trainer", "state": {"running": {}}}])

    assert task_end([newer, with_sidecar(143)]) is None
    assert task_end([]) is None


@pytest.mark.parametrize(("message", "hopeless"), [("violates PodSecurity", True), ("exceeded quota: pods", False)])
def test_a_pod_that_cannot_be_created_says_why(message: str, *, hopeless: bool) -> None:
    expected = PodWaiting("PodRefused", message, is_hopeless=hopeless)

    assert why_not_created([{"reason": "FailedCreate", "message": message}]) == expected
    assert why_not_created([{"reason": "SuccessfulCreate"}]) is None
