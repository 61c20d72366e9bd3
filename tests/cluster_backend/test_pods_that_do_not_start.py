"""Pods that wait, cannot start or are killed: what a reconcile makes of them."""

from pathlib import Path

from stand_in_cluster import KubeWorld
from stand_in_runs import a_run, a_site

from fedpipe_operator.cluster.api import EVENTS, JOBS
from fedpipe_operator.sites import Node

GIB = 2**30
IDLE = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}]}


def a_node(name: str, **labels: str) -> Node:
    return Node(name, labels, {"cpu": 4.0, "memory": 16.0 * GIB}, schedulable=True)


def test_a_pod_that_no_node_of_its_pool_can_take_costs_its_site_the_run_with_the_schedulers_words(tmp_path: Path) -> None:
    fleet = [a_site("site-a"), a_site("site-b"), a_site("site-c", nodeSelector={"pool": "gone"})]
    world = KubeWorld(tmp_path, a_run(fleet, sites={"quorum": 0.6}), nodes=(a_node("one"),))
    world.reconcile()
    world.pod("toy-profile-site-c-a0", IDLE)
    world.now += 40
    world.reconcile()

    assert "toy-profile-site-c-a0" not in world.active_jobs()
    world.settle()

    left_out = world.body()["status"]["excluded"]["site-c"]
    assert left_out.startswith("NoNode: no node carries the labels pool=gone")
    assert "0/2 nodes are available" in left_out
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_pod_that_waits_for_room_waits_and_is_reported(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, nodes=(a_node("one"),))
    world.reconcile()
    world.pod("toy-profile-site-a-a0", IDLE)
    world.now += 40
    world.reconcile()

    assert "toy-profile-site-a-a0" in world.active_jobs()
    assert "site-a waits for Unschedulable: 0/2 nodes are available" in world.condition("Progressing")["message"]


def test_an_image_that_does_not_exist_fails_its_attempt_within_a_minute(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(sites={"quorum": 0.6}, rounds={"count": 1, "attempts": 1}))
    world.reconcile()
    why_waiting = {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}
    world.pod("toy-profile-site-b-a0", why_waiting)
    world.now += 45
    world.reconcile()

    world.settle()

    assert world.body()["status"]["excluded"] == {"site-b": "ImageUnavailable: ImagePullBackOff: no such image"}


def test_a_pod_has_its_whole_grace_however_long_a_queue_held_its_job(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(sites={"quorum": 0.6}, rounds={"count": 1, "attempts": 1}))
    world.reconcile()
    world.now += 300
    why_waiting = {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "the registry restarts"}}}]}
    world.pod("toy-profile-site-b-a0", why_waiting)
    world.now += 20
    world.reconcile()
    assert "toy-profile-site-b-a0" in world.active_jobs()
    world.now += 20
    world.reconcile()

    assert "toy-profile-site-b-a0" not in world.active_jobs()


def test_a_pod_that_the_kernel_killed_for_its_memory_takes_half_as_much_at_once_the_next_time(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.work_until("train-r1")
    killed = {"containerStatuses": [{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}
    world.pod("toy-train-r1-site-a-a0", killed)
    world.end("toy-train-r1-site-a-a0", "Failed", "BackoffLimitExceeded")
    world.reconcile()

    assert world.task_of("toy-train-r1-site-a-a1")["microBatch"] == 1


def test_a_job_that_a_queue_holds_back_waits_and_goes_on(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    world.api.merge(JOBS, "default", world.object_name("toy-profile-site-a-a0"), {"spec": {"suspend": True}})
    world.now += 300
    world.reconcile()

    assert "site-a waits for the queue to admit its Job" in world.condition("Progressing")["message"]
    world.api.merge(JOBS, "default", world.object_name("toy-profile-site-a-a0"), {"spec": {"suspend": False}})
    world.settle()
    assert world.body()["status"]["updates"]["summary"] == "3/3"


def test_a_volume_that_cannot_be_mounted_is_given_twice_the_time_before_its_attempt_fails(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(sites={"quorum": 0.6}, rounds={"count": 1, "attempts": 1}))
    world.reconcile()
    name = "toy-profile-site-b-a0"
    world.pod(name, {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]})
    event = {"metadata": {"name": "one"}, "reason": "FailedMount", "message": "no such device"}
    world.api.create(EVENTS, "default", event)

    world.now += 45
    world.reconcile()
    assert name in world.active_jobs()

    world.now += 20
    world.reconcile()
    assert name not in world.active_jobs()
    world.settle()
    assert world.body()["status"]["excluded"] == {"site-b": "MountFailed: no such device"}


def test_a_pod_that_has_ended_is_not_asked_why_it_does_not_start(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    for name in world.active_jobs():
        world.api.replace_status(JOBS, "default", world.object_name(name), {"succeeded": 1})
    world.now += 40
    world.api.noted.clear()
    world.reconcile()

    assert "list pods" not in world.api.noted
