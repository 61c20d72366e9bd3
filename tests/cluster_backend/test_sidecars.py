"""Pods in which another container goes on after the task: a service mesh's proxy, an agent of secrets, a shipper of logs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from meshed_cluster import MeshedWorld
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run
from trainer_results import perform

from fedpipe_operator.backend import JobState
from fedpipe_operator.cluster.api import JOBS, PODS
from fedpipe_operator.errors import TransientError
from fedpipe_operator.rounds import Observed
from fedpipe_trainer.contract import parse_task

TRAINING = "toy-train-r1-site-a-a0"


@pytest.fixture
def training(tmp_path: Path) -> MeshedWorld:
    """Three sites that train, for a minute already."""
    world = MeshedWorld(
        tmp_path, a_run(rounds={"count": 1, "attempts": 2}, sites={"quorum": 0.6}, planning={"bits": [16], "ranks": [4], "batchSizes": [4]})
    )
    world.work_until("train-r1")
    world.run_all()
    world.now += 60
    world.api.noted.clear()
    return world


def test_a_whole_run_among_sidecars_that_never_end_takes_no_deadline(tmp_path: Path) -> None:
    world = MeshedWorld(tmp_path, a_run(rounds={"count": 2, "deadline": "20m"}))
    began_at = world.now
    while "Complete" not in world.conditions():
        requeue_at = world.reconcile()
        for name in world.active_jobs():
            world.finish(name)
        world.await_workers()
        world.now = max(world.now + 1, min(requeue_at or world.now, world.now + 60))
        assert world.now < began_at + 600, world.body()["status"]

    assert world.body()["status"]["updates"]["summary"] == "3/3"
    assert world.body()["status"].get("excluded", {}) == {}


def test_a_job_that_has_reported_its_result_is_ended_within_seconds_and_its_site_is_free(training: MeshedWorld) -> None:
    training.finish(TRAINING)
    training.pass_seconds(15)

    job = training.job(TRAINING)
    assert (job.is_active, job.reason, job.exit_code) == (False, "Completed", 0)
    assert training.api.objects[JOBS.plural, "default", job.name]["spec"]["activeDeadlineSeconds"] == 1
    assert [name for name in training.active_jobs() if "site-a" in name] == []
    assert "toy-train-r1-site-a-a1" not in [one.job.name for one in training.jobs()]


def test_a_trainer_that_was_killed_for_its_memory_takes_half_as_much_at_once_the_next_time(training: MeshedWorld) -> None:
    training.stop(TRAINING, 137, "OOMKilled")
    training.pass_seconds(20)

    assert training.task_of("toy-train-r1-site-a-a1")["microBatch"] == 2


@pytest.mark.parametrize(
    ("code", "reason", "attempts"),
    [
        pytest.param(1, "Unexpected", 2, id="it is tried again"),
        pytest.param(3, "BadData", 1, id="its data cannot be read, so that it is not tried again"),
        pytest.param(0, "NoResult", 2, id="it says that it is done, and left no result"),
    ],
)
def test_a_trainer_that_left_no_result_counts_by_its_exit_code(training: MeshedWorld, code: int, reason: str, attempts: int) -> None:
    tried = []
    for attempt in range(2):
        name = f"toy-train-r1-site-a-a{attempt}"
        if name in training.active_jobs():
            tried.append(name)
            training.now += 30
            training.stop(name, code)
            training.pass_seconds(20)
    for name in [one for one in training.active_jobs() if "train" in one]:
        training.work(name)
    training.settle()

    assert len(tried) == attempts
    (entry,) = training.body()["status"]["history"]
    assert entry["leftOut"]["site-a"].startswith(f"{reason}: ")


def test_a_trainer_that_was_asked_to_end_goes_on_in_another_attempt_that_does_not_count(training: MeshedWorld) -> None:
    for attempt in range(4):
        training.now += 30
        training.stop(f"toy-train-r1-site-a-a{attempt}", 143)
        training.pass_seconds(20)

    assert "toy-train-r1-site-a-a4" in training.active_jobs()


@pytest.mark.parametrize("again", [0, 1, 2, 3])
def test_an_operator_that_is_killed_anywhere_comes_to_the_same_end(training: MeshedWorld, again: int) -> None:
    training.stop(TRAINING, 137, "OOMKilled")
    for reconcile in range(4):
        if reconcile == again:
            training.restart()
        training.reconcile()
        training.now += 10

    assert training.job(TRAINING).reason == "OutOfMemory"
    assert training.task_of("toy-train-r1-site-a-a1")["microBatch"] == 2


def test_an_end_that_could_not_be_written_is_found_again(training: MeshedWorld) -> None:
    training.stop(TRAINING, 137, "OOMKilled")
    training.api.trouble["merge jobs"] = TransientError("ApiUnavailable", "the API server restarts")
    training.reconcile()
    training.now += 10
    with pytest.raises(TransientError):
        training.reconcile()
    assert training.job(TRAINING).is_active

    training.restart()
    training.api.trouble.clear()
    training.pass_seconds(15)
    assert training.job(TRAINING).exit_code == 137


def test_after_the_operator_ended_the_job_nothing_depends_on_its_pod(training: MeshedWorld) -> None:
    training.stop(TRAINING, 3)
    training.reconcile()
    training.now += 10
    training.reconcile()
    training.end(TRAINING, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    del training.api.objects[PODS.plural, "default", f"{TRAINING}-pod"]
    training.restart()
    for name in [one for one in training.active_jobs() if "train" in one]:
        training.work(name)
    training.settle()

    (entry,) = training.body()["status"]["history"]
    assert entry["leftOut"]["site-a"] == "BadData: exit code 3; its log went with the pod, which another container kept alive"


def test_a_pod_that_is_about_to_end_is_let_end(training: MeshedWorld) -> None:
    training.stop(TRAINING, 0, "Completed")
    training.reconcile()
    training.now += 2
    training.end(TRAINING, "Complete")
    training.pass_seconds(20)

    assert training.job(TRAINING).ended == "Complete"
    assert not training.job(TRAINING).given_up


def test_a_drained_pod_is_left_to_its_job_which_replaces_it(training: MeshedWorld) -> None:
    training.stop(TRAINING, 143, conditions=[{"type": "DisruptionTarget", "status": "True"}])
    training.pass_seconds(60)

    assert TRAINING in training.active_jobs()


def test_of_a_pod_that_replaced_another_the_end_is_seen_twice_too(training: MeshedWorld) -> None:
    training.stop(TRAINING, 143)
    training.reconcile()
    old = training.api.objects.pop((PODS.plural, "default", f"{TRAINING}-pod"))
    training.api._put(PODS, "default", "another", {"metadata": {"labels": old["metadata"]["labels"]}, "status": old["status"]})
    for is_active in (True, False):
        training.now += 10
        training.reconcile()
        assert (TRAINING in training.active_jobs()) == is_active


def test_a_proxy_that_fails_after_the_trainer_is_no_failure_of_the_trainer(training: MeshedWorld) -> None:
    training.finish(TRAINING)
    own = {"name": "trainer", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    proxy = {"name": "istio-proxy", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
    training.pod(TRAINING, {"phase": "Failed", "containerStatuses": [proxy, own]})
    training.end(TRAINING, "Failed", "BackoffLimitExceeded")

    seen: list[Observed] = []
    training.runs.on_reconciled = lambda _run, observed: seen.append(observed)
    training.reconcile()
    status = seen[0].jobs[TRAINING]
    assert (status.state, status.exit_code, status.reason) == (JobState.SUCCEEDED, 0, "")


def test_the_end_of_an_aggregation_counts_likewise(tmp_path: Path) -> None:
    settings = replace(SETTINGS, aggregation_job_threshold=1)
    world = MeshedWorld(tmp_path, a_run(rounds={"count": 1, "attempts": 1}), settings=settings)
    world.work_until("aggregate-r1")
    world.now += 30
    world.stop("toy-aggregate-r1-a0", 2, container="worker")
    world.pass_seconds(20)

    assert world.conditions()["Failed"] == "AggregationFailed"


def count_pod_lists(world: MeshedWorld, seconds: int) -> int:
    world.api.noted.clear()
    world.pass_seconds(seconds)
    return world.api.noted.count("list pods")


def count_with_a_sidecar(world: MeshedWorld) -> int:
    world.finish(TRAINING)
    return count_pod_lists(world, 60)


def count_of_a_long_training(world: MeshedWorld) -> int:
    return count_pod_lists(world, 600)


def count_of_ends_without_sidecars(world: MeshedWorld) -> int:
    for name in world.active_jobs():
        perform(world.trainer, parse_task(json.dumps(world.task_of(name))), world.folder)
        world.api.merge_status_of_job(world.object_name(name), {"active": 0, "ready": 0, "uncountedTerminatedPods": {"succeeded": ["one"]}})
    world.reconcile()
    for name in world.active_jobs():
        if "train" in name:
            world.end(name, "Complete")
    world.reconcile()
    return world.api.noted.count("list pods")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(count_of_a_long_training, 0, id="none while pods are ready"),
        pytest.param(count_of_ends_without_sidecars, 0, id="none where pods end by themselves"),
        pytest.param(count_with_a_sidecar, 2, id="two for each pod that a sidecar keeps alive"),
    ],
)
def test_pods_are_asked_for_only_where_a_sidecar_keeps_them_alive(
    training: MeshedWorld, count: Callable[[MeshedWorld], int], expected: int
) -> None:
    assert count(training) == expected
