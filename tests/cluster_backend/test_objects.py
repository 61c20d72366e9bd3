"""A Job and a node as the watch brings them, reduced to what is kept."""

import pytest
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run

from fedpipe_operator.backend import JobResources, TaskKind
from fedpipe_operator.cluster.objects import KubeJob, kube_job, kube_node
from fedpipe_operator.manifests import trainer_job
from fedpipe_operator.rounds import job_of

RUN = a_run()
JOB = job_of(RUN, TaskKind.TRAIN, site="site-a", round_=2, attempt=1)


def a_body(status: dict[str, object] | None = None, **changes: object) -> dict[str, object]:
    body = trainer_job(RUN, JOB, RUN.sites[0], JobResources(), SETTINGS)
    body["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "uid": "1"} | changes
    return body | {"status": status or {}}


def test_what_the_operator_writes_into_a_job_it_reads_back() -> None:
    assert kube_job(a_body()) == KubeJob(namespace="default", run="toy", run_uid="uid-1", job=JOB, created_at=1767225600.0, uid="1")


def test_a_job_with_a_ready_pod_is_running() -> None:
    seen = kube_job(a_body({"active": 1, "ready": 1}))

    assert (seen.ready, seen.is_active) == (1, True)


@pytest.mark.parametrize(
    ("status", "has_ended"),
    [
        ({"active": 1}, False),
        ({"active": 1, "uncountedTerminatedPods": {}}, False),
        ({"uncountedTerminatedPods": {"succeeded": ["uid-of-pod"]}}, True),
        ({"uncountedTerminatedPods": {}, "succeeded": 1}, True),
    ],
)
def test_a_pod_has_ended_before_its_job_is_over(status: dict[str, object], has_ended: bool) -> None:
    seen = kube_job(a_body(status))

    assert (seen.has_pod_ended, seen.is_active) == (has_ended, True)


def test_a_job_is_over_when_the_controller_says_so_and_not_before() -> None:
    early = kube_job(a_body({"conditions": [{"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy"}]}))
    late = kube_job(a_body({"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}]}))

    assert early.is_active
    assert (late.ended, late.reason, late.message, late.is_active) == ("Failed", "DeadlineExceeded", "too long", False)


def test_a_job_that_the_operator_gave_up_says_why_by_its_annotations() -> None:
    seen = kube_job(a_body(annotations={"fedpipe.io/reason": "NoNode", "fedpipe.io/message": "no node"}))

    assert (seen.given_up, seen.reason, seen.message, seen.is_active) == (True, "NoNode", "no node", False)


@pytest.mark.parametrize(("text", "code"), [("0", 0), ("137", 137), ("", None), ("-1", None), ("1e3", None), ("9" * 40, None)])
def test_a_job_that_the_operator_ended_after_its_task_has_the_tasks_exit_code(text: str, code: int | None) -> None:
    seen = kube_job(a_body(annotations={"fedpipe.io/reason": "Killed", "fedpipe.io/message": "", "fedpipe.io/exit-code": text}))

    assert (seen.given_up, seen.exit_code) == (True, code)


def test_a_node_is_its_labels_what_pods_may_have_and_whether_it_takes_any() -> None:
    status = {"allocatable": {"cpu": "1900m", "memory": "2Gi", "nvidia.com/gpu": "0"}, "conditions": [{"type": "Ready", "status": "True"}]}
    node = kube_node({"metadata": {"name": "one", "labels": {"pool": "a"}}, "status": status})
    cordoned = kube_node({"metadata": {"name": "one"}, "spec": {"unschedulable": True}, "status": status})

    assert node.allocatable == {"cpu": 1.9, "memory": 2.0 * 2**30, "nvidia.com/gpu": 0.0}
    assert (node.schedulable, cordoned.schedulable) == (True, False)
