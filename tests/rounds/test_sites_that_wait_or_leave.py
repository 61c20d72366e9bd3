"""Sites that are busy, whose jobs wait, that run out of memory, or that go: what becomes of the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run
from trainer_results import a_failure, good_trainer

from fedpipe_operator.backend import JobState, JobStatus, TaskKind
from fedpipe_operator.rounds import Decision, Observed, StartTraining, decide, job_of
from fedpipe_operator.rounds.policies import is_out_of_retries, retry_micro_batch
from fedpipe_trainer.contract import FailureReason, ProfileResult, ProfileTask, Progress, TrainResult, TrainTask


def test_a_site_that_others_use_up_gets_no_job_and_is_waited_for(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.reconciler.busy = {"site-b": "its turn: another is at work there"}

    world.reconcile()

    assert world.backend.active_jobs() == ["toy-profile-site-a-a0", "toy-profile-site-c-a0"]
    assert world.message("Progressing") == "0 of 3 sites done; site-b waits for its turn: another is at work there"

    world.reconciler.busy = {}
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_job_that_waits_says_for_what_and_so_does_the_end_of_its_time(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 1, "deadline": "10m"}), tmp_path)
    world.reconcile()
    name = "toy-profile-site-c-a0"
    world.backend.jobs[name] = replace(world.backend.jobs[name], state=JobState.PENDING, message="Unschedulable: 0/2 nodes are available")

    world.reconcile()
    assert world.message("Progressing") == "0 of 3 sites done; site-c waits for Unschedulable: 0/2 nodes are available"

    world.backend.work("toy-profile-site-a-a0")
    world.backend.work("toy-profile-site-b-a0")
    world.now += 601
    world.settle()
    excluded = world.run.resource.status.excluded["site-c"]
    waited = "it waited for Unschedulable: 0/2 nodes are available"
    assert excluded == f"DeadlineExceeded: not done within 10m; {waited}; raise rounds.deadline"


def test_a_deadline_below_the_load_time_says_so(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 1, "deadline": "10s"}), tmp_path)
    world.reconcile()
    name = "toy-profile-site-c-a0"
    world.backend.jobs[name] = replace(world.backend.jobs[name], state=JobState.RUNNING, progress=Progress(phase="load"))
    world.backend.work("toy-profile-site-a-a0")
    world.backend.work("toy-profile-site-b-a0")
    world.now += 11
    world.settle()

    excluded = world.run.resource.status.excluded["site-c"]
    assert excluded == "DeadlineExceeded: not done within 10s; it was in its phase load; raise rounds.deadline"


def test_a_site_that_goes_in_the_middle_of_a_round_costs_the_round_its_update_and_no_more(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 1}), tmp_path)
    world.work_until("train-r1")
    world.run = replace(world.run, sites=world.run.sites[:2])

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert "toy-train-r1-site-c-a0" in world.backend.discarded
    assert world.run.resource.status.history[0].left_out["site-c"].startswith("SiteGone")


def test_a_job_whose_pod_is_replaced_goes_on_as_the_same_attempt(tmp_path: Path) -> None:
    is_drained = True

    def trainer(task: Any, folder: Path) -> Any:
        if is_drained and isinstance(task, TrainTask) and task.site == "site-a":
            return a_failure(TrainResult, task, FailureReason.TERMINATED, "SIGTERM")
        return good_trainer(task, folder)

    world = World(a_run(rounds={"count": 1}), tmp_path, trainer)
    name = "toy-train-r1-site-a-a0"
    world.work_until("train-r1")
    world.backend.work(name)
    world.backend.jobs[name] = replace(world.backend.jobs[name], state=JobState.RUNNING, exit_code=None)
    world.reconcile()
    is_drained = False
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert "toy-train-r1-site-a-a1" not in world.backend.started
    assert name not in world.backend.discarded


def test_a_job_that_has_left_its_result_is_not_ended() -> None:
    run = a_run()
    job = job_of(run, TaskKind.TRAIN, site="site-a", round_=1)
    observed = Observed(jobs={job.name: JobStatus(job, JobState.RUNNING, 0.0)}, reported=frozenset({job.name}))
    suspended = replace(run, resource=run.resource.model_copy(update={"spec": run.spec.model_copy(update={"suspend": True})}))

    assert decide(suspended, observed, 0.0).actions == ()
    assert len(decide(suspended, replace(observed, reported=frozenset()), 0.0).actions) == 1


def training_after(world: World, *, reason: str, times: int) -> StartTraining:
    """What is asked for at site-a after so many attempts that ended like this."""
    for attempt in range(times):
        name = f"toy-train-r1-site-a-a{attempt}"
        world.backend.jobs[name] = replace(world.backend.jobs[name], state=JobState.FAILED, exit_code=137, reason=reason, message="")
        decision: Decision = world.reconcile()
    return next(action for action in decision.actions if isinstance(action, StartTraining))


@pytest.mark.parametrize(("reason", "times", "expected"), [("OutOfMemory", 1, 4), ("OutOfMemory", 2, 2), ("Killed", 1, None)])
def test_after_running_out_of_memory_a_site_takes_half_as_much_at_once(tmp_path: Path, reason: str, times: int, expected: int) -> None:
    planning = {"bits": [16], "ranks": [4], "batchSizes": [8]}
    world = World(a_run(planning=planning, rounds={"count": 1, "attempts": 5}), tmp_path)
    world.work_until("train-r1")

    assert training_after(world, reason=reason, times=times).micro_batch == expected


@pytest.mark.parametrize(
    ("batch", "times", "expected"), [(8, 0, None), (8, 1, 4), (8, 3, 1), (8, 9, 1), (1, 1, 1), (6, 1, 3), (5, 1, 3), (5, 2, 2)]
)
def test_a_micro_batch_is_never_below_one_sample(batch: int, times: int, expected: int | None) -> None:
    assert retry_micro_batch(batch, times) == expected


@pytest.mark.parametrize(
    ("batch", "times", "expected"), [(1, 0, False), (1, 1, True), (8, 3, False), (8, 4, True), (6, 3, False), (6, 4, True)]
)
def test_there_is_nothing_smaller_than_one_sample(batch: int, times: int, *, expected: bool) -> None:
    assert is_out_of_retries(batch, times) is expected


def test_a_site_that_ran_out_of_memory_with_one_sample_is_not_asked_for_the_same_again(tmp_path: Path) -> None:
    planning = {"bits": [16], "ranks": [4], "batchSizes": [2]}
    world = World(a_run(planning=planning, rounds={"count": 1, "attempts": 5}, sites={"quorum": 0.6}), tmp_path)
    world.work_until("train-r1")
    for attempt in (0, 1):
        name = f"toy-train-r1-site-a-a{attempt}"
        world.backend.jobs[name] = replace(world.backend.jobs[name], state=JobState.FAILED, exit_code=137, reason="OutOfMemory", message="")
        world.reconcile()
    world.settle()

    assert "toy-train-r1-site-a-a2" not in world.backend.started
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.history[-1].left_out == {
        "site-a": "OutOfMemory: the kernel ended the trainer at its memory limit with a micro-batch of one sample, the smallest: give the "
        "site more memory in spec.capacity.memory, or the run a smaller base model or a lower task.maxLength"
    }


def test_an_attempt_that_failed_for_good_is_not_tried_again(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.6}), tmp_path)
    world.reconcile()
    name = "toy-profile-site-a-a0"
    world.backend.jobs[name] = replace(world.backend.jobs[name], state=JobState.FAILED, reason="NoNode", message="no node", is_final=True)

    world.settle()

    assert "toy-profile-site-a-a1" not in world.backend.started
    assert world.run.resource.status.excluded == {"site-a": "NoNode: no node"}
    assert world.message("Profiled") == "site-a is left out: NoNode: no node"


def test_a_site_that_joins_late_has_its_own_time_to_be_profiled(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 1.0}, rounds={"count": 2, "deadline": "10m"}), tmp_path)
    late = world.run.sites[2]
    world.run = replace(world.run, sites=world.run.sites[:2])
    world.work_until("train-r1")
    world.now += 599  # the profiles of the others are old when the next plan is made
    world.run = replace(world.run, sites=(*world.run.sites, late))

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [entry.updates for entry in world.run.resource.status.history] == ["2/2", "3/3"]


def test_an_export_needs_no_site(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 1, "deadline": "10m"}), tmp_path)
    for stage in ("train-r1", "export"):
        world.work_until(stage)
        world.now += 599  # together more than the deadline
    world.run = replace(world.run, sites=())

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_sites_that_are_replaced_between_two_rounds_are_waited_for(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 2, "deadline": "10m"}), tmp_path)
    sites = world.run.sites
    for stage in ("train-r1", "aggregate-r1"):
        world.work_until(stage)
        world.now += 599  # together more than the deadline
    world.backend.work("toy-aggregate-r1-a0")
    world.run = replace(world.run, sites=())
    world.reconcile()
    assert world.conditions()["Progressing"] == "NoSites"
    world.run = replace(world.run, sites=sites)

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_long_story_of_a_site_is_cut_in_the_status_and_whole_in_the_store(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-a":
            return a_failure(ProfileResult, task, FailureReason.BAD_MODEL, "x" * 4000)
        return good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    assert len(world.run.resource.status.excluded["site-a"]) == 1024
    assert world.conditions()["Complete"] == "RoundsCompleted"
