"""Jobs that a queue suspends and pods that wait for an autoscaler: what the operator concludes from the cluster, also after a restart."""

from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import KubeWorld, stamp
from stand_in_runs import a_run, a_site

from fedpipe_operator.cluster.api import JOBS, SECRETS
from fedpipe_operator.cluster.pod_diagnostics import PodScheduling, scheduling_of
from fedpipe_operator.sites import Node

DEADLINE, QUEUE_DEADLINE = 600, 7200
ROUNDS = {"count": 1, "deadline": "10m", "queueDeadline": "2h"}
HELD = "toy-profile-site-c-a0"
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/0 nodes are available"}


def a_world(folder: Path, **site: Any) -> KubeWorld:
    fleet = [a_site("site-a"), a_site("site-b"), a_site("site-c", **site)]
    return KubeWorld(folder, a_run(fleet, rounds=ROUNDS, sites={"quorum": 0.6}), nodes=())


def suspension(world: KubeWorld, *, suspend: bool, condition: bool | None) -> None:
    """What a queue writes into the Job's spec, and what the Job controller makes of it; None: it has not seen it yet."""
    world.api.merge(JOBS, "default", world.object_name(HELD), {"spec": {"suspend": suspend}})
    if condition is not None:
        changed = {"type": "Suspended", "status": str(condition), "lastTransitionTime": stamp(world.now)}
        world.api.merge(JOBS, "default", world.object_name(HELD), {"status": {"conditions": [changed]}})


def finish_the_others(world: KubeWorld) -> None:
    for name in world.active_jobs():
        if name != HELD:
            world.work(name)


def restart_and_reconcile(world: KubeWorld) -> None:
    world.restart()
    world.reconcile()


def test_a_job_that_kueue_held_beyond_the_deadline_has_its_whole_time_then_whatever_restarts(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    suspension(world, suspend=True, condition=None)
    restart_and_reconcile(world)
    suspension(world, suspend=True, condition=True)
    finish_the_others(world)

    for _ in range(5):
        world.now += DEADLINE
        restart_and_reconcile(world)
        assert HELD in world.active_jobs()
    suspension(world, suspend=False, condition=None)
    restart_and_reconcile(world)
    assert HELD in world.active_jobs(), "the Job controller has not seen yet that the queue admitted it"
    suspension(world, suspend=False, condition=False)
    world.now += DEADLINE - 1
    restart_and_reconcile(world)
    assert HELD in world.active_jobs()

    world.now += 1
    restart_and_reconcile(world)
    world.reconcile()
    world.await_workers()
    assert HELD not in world.active_jobs()
    assert world.body()["status"]["excluded"]["site-c"].startswith("DeadlineExceeded: not done within 10m")


def test_a_job_that_kueue_never_admits_costs_its_site_the_stage_after_the_queue_deadline(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    suspension(world, suspend=True, condition=True)
    finish_the_others(world)
    world.now += QUEUE_DEADLINE
    restart_and_reconcile(world)
    world.settle()

    excluded = world.body()["status"]["excluded"]["site-c"]
    assert excluded.startswith("QueueDeadlineExceeded: not begun within 2h; it waited for the queue to admit its Job")
    assert ("SitesLeftOut", f"round 1: site-c: {excluded}") in world.events()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_the_task_of_a_job_that_waits_is_made_anew_and_the_job_stays(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    suspension(world, suspend=True, condition=True)
    finish_the_others(world)
    job = world.api.objects[JOBS.plural, "default", world.object_name(HELD)]["metadata"]
    made: list[float] = []
    for waited in range(150, QUEUE_DEADLINE, 150):
        before = secret(world)
        world.now = 1_000_000 + waited
        world.reconcile()
        if secret(world) != before:
            made.append(waited)

    assert made == list(range(450, QUEUE_DEADLINE, 900))
    assert [call for call in world.api.noted if call.endswith(f"jobs {job['name']}") and not call.startswith(("merge", "status"))] == [
        f"create jobs {job['name']}"
    ]


def secret(world: KubeWorld) -> Any:
    found = world.api.objects.get((SECRETS.plural, "default", world.object_name(HELD)))
    return found and found["metadata"]["resourceVersion"]


def test_a_new_operator_makes_the_task_of_a_job_that_waits_anew_once(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    suspension(world, suspend=True, condition=True)
    world.now += 450
    restart_and_reconcile(world)
    before = secret(world)

    restart_and_reconcile(world)
    assert secret(world) != before
    before = secret(world)
    world.reconcile()
    assert secret(world) == before


def test_a_pool_without_nodes_waits_for_one_where_the_site_says_so(tmp_path: Path) -> None:
    world = a_world(tmp_path, autoscaled=True, nodeSelector={"pool": "from-zero"})
    world.reconcile()
    world.pod(HELD, {"conditions": [UNSCHEDULABLE]})
    finish_the_others(world)
    world.now += 5 * DEADLINE
    restart_and_reconcile(world)

    assert HELD in world.active_jobs()
    assert "site-c waits for Unschedulable: 0/0 nodes are available" in world.condition("Progressing")["message"]
    world.pod(HELD, {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(world.now)}]})
    world.now += DEADLINE - 1
    restart_and_reconcile(world)
    assert HELD in world.active_jobs()

    world.work(HELD)
    world.settle()
    assert world.body()["status"].get("excluded", {}) == {}


def test_without_that_a_pod_that_waits_for_room_has_the_stage_s_deadline(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.nodes = (Node("one", {}, {"cpu": 4.0, "memory": 2.0**34}, schedulable=True),)
    world.reconcile()
    world.pod(HELD, {"conditions": [UNSCHEDULABLE]})
    finish_the_others(world)
    world.now += DEADLINE
    world.reconcile()
    world.settle()

    assert world.body()["status"]["excluded"]["site-c"].startswith("DeadlineExceeded: not done within 10m; it waited for Unschedulable")


@pytest.mark.parametrize(("autoscaled", "seconds"), [(False, DEADLINE + 300), (True, DEADLINE + QUEUE_DEADLINE + 300)])
def test_kubernetes_ends_no_job_whose_pod_still_waits_for_a_node(tmp_path: Path, *, autoscaled: bool, seconds: int) -> None:
    world = a_world(tmp_path, autoscaled=autoscaled)
    world.reconcile()

    assert world.api.objects[JOBS.plural, "default", world.object_name(HELD)]["spec"]["activeDeadlineSeconds"] == seconds


def test_a_pod_is_asked_for_once_after_it_has_its_node(tmp_path: Path) -> None:
    world = a_world(tmp_path, autoscaled=True)
    world.reconcile()
    world.pod(HELD, {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(world.now)}]})
    world.api.merge(JOBS, "default", world.object_name(HELD), {"status": {"ready": 1}})
    finish_the_others(world)
    world.now += 20
    world.reconcile()
    world.api.noted.clear()
    for _ in range(3):
        world.now += 20
        world.reconcile()

    assert "list pods" not in world.api.noted


def test_the_newest_pod_says_when_it_got_its_node() -> None:
    def a_pod(created: float, *conditions: dict[str, str]) -> dict[str, Any]:
        return {"metadata": {"creationTimestamp": stamp(created)}, "status": {"conditions": list(conditions)}}

    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(150.0)}
    assert scheduling_of([]) == PodScheduling()
    assert scheduling_of([a_pod(100.0)]) == PodScheduling(100.0)
    assert scheduling_of([a_pod(100.0, scheduled)]) == PodScheduling(100.0, 150.0)
    assert scheduling_of([a_pod(100.0, scheduled), a_pod(200.0, UNSCHEDULABLE)]) == PodScheduling(200.0)


def test_every_label_of_kueue_is_copied_to_every_job_its_priority_class_too(tmp_path: Path) -> None:
    labels = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "research", "team": "a"}
    run = a_run(rounds=ROUNDS)
    meta = run.resource.metadata.model_copy(update={"labels": labels})
    run = type(run)(run.resource.model_copy(update={"metadata": meta}), run.sites)
    world = KubeWorld(tmp_path, run)
    world.settle()

    jobs = world.api.all(JOBS)
    assert {one["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") for one in jobs} == {"team-a"}
    assert {one["metadata"]["labels"].get("kueue.x-k8s.io/priority-class") for one in jobs} == {"research"}
    assert {one["metadata"]["labels"].get("team") for one in jobs} == {None}


@pytest.mark.parametrize(("managed_by", "is_ours"), [(None, True), ("fedpipe.io/operator", True), ("kueue.x-k8s.io/multikueue", False)])
def test_a_run_that_names_another_controller_is_left_alone(tmp_path: Path, managed_by: str | None, *, is_ours: bool) -> None:
    fields = {"managedBy": managed_by} if managed_by else {}
    world = KubeWorld(tmp_path, a_run(**fields, deletionPolicy="Delete"))
    before = world.body()

    requeue_at = world.reconcile()

    assert (world.body() != before, bool(world.api.noted), requeue_at is not None) == (is_ours, is_ours, is_ours)
