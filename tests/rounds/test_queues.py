"""What a queue or an autoscaler takes is charged to `rounds.queueDeadline`: it makes no site late, and nothing waits for ever."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in_runs import World, a_run

from fedpipe_operator import names
from fedpipe_operator.backend import JobState, JobStatus, TaskKind
from fedpipe_operator.reconcile.tasks import TaskContext
from fedpipe_operator.rounds import Observed, Run, StartExport, StartProfile, StartTraining, job_of
from fedpipe_operator.rounds.deadlines import FIRST_RENEWAL_SECONDS, RENEWAL_SECONDS, stage_of
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import parse_task

DEADLINE, QUEUE_DEADLINE = 600.0, 7200.0
ROUNDS = {"count": 1, "deadline": "10m", "queueDeadline": "2h"}
QUEUE = "the queue to admit its Job"
SECONDS = st.floats(0, 20_000)
ROUNDING = 1e-6
"""Seconds: sums in another order differ in their last digits."""
RUN = a_run(rounds=ROUNDS)
NO_URLS: Any = None


def a_world(folder: Path, **rounds: Any) -> World:
    return World(a_run(rounds=ROUNDS | rounds, sites={"quorum": 0.6}), folder)


def a_job(run: Run, site: str, started_at: float, **changes: Any) -> JobStatus:
    return JobStatus(job_of(run, TaskKind.TRAIN, site=site, round_=1), JobState.RUNNING, started_at, **changes)


def hold(world: World, name: str) -> None:
    """A queue holds this job from now on."""
    changes = {"state": JobState.PENDING, "message": QUEUE, "in_queue_since": world.now, "admitted_at": None}
    world.backend.jobs[name] = replace(world.backend.jobs[name], **changes)


def admit(world: World, name: str) -> None:
    """It lets the job run."""
    changes = {"state": JobState.RUNNING, "message": "", "in_queue_since": None, "admitted_at": world.now}
    world.backend.jobs[name] = replace(world.backend.jobs[name], **changes)


def held_training(world: World) -> str:
    """A training that a queue holds while the others are done."""
    for name in world.work_until("train-r1"):
        if "site-c" not in name:
            world.backend.work(name)
    hold(world, "toy-train-r1-site-c-a0")
    world.reconcile()
    return "toy-train-r1-site-c-a0"


def left_out(world: World) -> dict[str, str]:
    return dict(world.run.resource.status.history[-1].left_out)


def restart(world: World) -> None:
    """A new operator of a run that was not resumed."""
    resumed_at = world.reconciler.resumed_at
    world.restart()
    world.reconciler.resumed_at = resumed_at


def test_a_site_that_a_queue_held_longer_than_the_deadline_is_waited_for_and_has_a_whole_deadline_then(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    name = held_training(world)

    world.now += 5 * DEADLINE
    restart(world)
    world.reconcile()
    assert world.message("Progressing").startswith("2 of 3 sites done; site-c waits for the queue to admit its Job")
    admit(world, name)
    world.now += DEADLINE - 1
    world.reconcile()
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.history[-1].updates == "3/3"
    assert world.backend.discarded == []


def test_its_own_time_ends_a_deadline_after_the_queue_let_it_run(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    name = held_training(world)

    world.now += 5 * DEADLINE
    admit(world, name)
    world.now += DEADLINE
    world.reconcile()

    assert name in world.backend.discarded
    assert world.run.resource.status.updates is not None
    assert world.run.resource.status.updates.late == 1


def test_a_site_that_the_queue_never_lets_run_is_dropped_for_its_own_reason_and_is_not_late(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    name = held_training(world)

    world.now += QUEUE_DEADLINE
    world.settle()

    why = "QueueDeadlineExceeded: not begun within 2h; it waited for the queue to admit its Job; "
    assert left_out(world) == {"site-c": f"{why}raise rounds.queueDeadline, or the quota of the queue or the pool"}
    assert name in world.backend.discarded
    status = world.run.resource.status
    assert (status.updates is not None, status.updates and status.updates.late) == (True, 0)
    assert any(event.reason == "RoundCompleted" and event.warning and why in event.message for event in world.events)


def test_other_sites_have_no_longer_because_one_waits(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.work_until("train-r1")
    hold(world, "toy-train-r1-site-c-a0")
    world.backend.work("toy-train-r1-site-a-a0")
    world.now += DEADLINE
    world.reconcile()

    assert world.message("Progressing").startswith("1 of 3 sites done; site-c waits for the queue")
    assert world.run.resource.status.updates is not None
    assert world.run.resource.status.updates.late == 1
    world.reconcile()
    admit(world, "toy-train-r1-site-c-a0")
    world.backend.work("toy-train-r1-site-c-a0")
    world.settle()
    assert left_out(world).keys() == {"site-b"}
    commit = required_object(world.store, names.round_commit(1), RoundCommit)
    assert commit.late == ("site-b",), "the planner is told"


def test_a_retry_after_a_long_wait_has_what_is_left_of_its_sites_own_time(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    name = held_training(world)
    world.now += 5 * DEADLINE
    admit(world, name)
    world.now += 100
    world.backend.kill(name)

    world.reconcile()

    assert "toy-train-r1-site-c-a1" in world.backend.started
    assert parse_task(world.backend.tasks["toy-train-r1-site-c-a1"]).deadline_seconds == DEADLINE - 100


def test_a_profile_that_no_queue_let_run_is_not_waited_for_again_until_its_queue_deadline_is_raised(tmp_path: Path) -> None:
    world = a_world(tmp_path, count=2)
    world.reconcile()
    hold(world, "toy-profile-site-c-a0")
    for name in ("toy-profile-site-a-a0", "toy-profile-site-b-a0"):
        world.backend.work(name)
    world.now += QUEUE_DEADLINE
    assert not any("site-c" in name for name in world.work_until("train-r2"))
    plan = required_object(world.store, names.round_plan(2), RoundPlan)

    assert plan.excluded["site-c"].startswith("QueueDeadlineExceeded: ")
    assert world.backend.started.count("toy-profile-site-c-a0") == 1


def renewals(world: World) -> list[Any]:
    return [one for one in world.reconcile().actions if isinstance(one, StartProfile | StartTraining | StartExport)]


def test_a_job_that_waits_gets_its_task_anew_before_its_urls_expire_and_keeps_its_place(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    name = held_training(world)
    world.now += FIRST_RENEWAL_SECONDS - 1
    assert renewals(world) == []

    world.now += 1
    (again,) = renewals(world)
    assert (again.site, again.attempt) == ("site-c", 0), "the same attempt: none is counted"
    assert name not in world.backend.discarded
    world.backend.jobs[name] = replace(world.backend.jobs[name], renewed_at=world.now)
    world.now += RENEWAL_SECONDS - 1
    assert renewals(world) == []

    world.now += 1
    assert renewals(world) == [again]
    admit(world, name)
    assert renewals(world) == [], "what runs has read its task"


def test_a_renewed_training_evaluates_where_the_first_did(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.work_until("train-r1")
    hold(world, "toy-train-r1-site-c-a0")
    world.now += FIRST_RENEWAL_SECONDS
    (again,) = (one for one in renewals(world) if one.site == "site-c")

    assert again.evaluates


def test_an_export_that_waits_is_renewed_as_well(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    (name,) = world.work_until("toy-export")
    hold(world, name)
    world.now += FIRST_RENEWAL_SECONDS

    assert renewals(world) == [StartExport(1, 0)]


def test_an_operator_is_not_woken_all_the_time_by_a_job_that_waits(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    held_training(world)
    world.now += 5 * DEADLINE

    requeue_at = world.reconcile().requeue_at

    assert requeue_at is not None
    assert requeue_at > world.now


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (500.0, 0.0)),
        ({"in_queue_since": 10.0}, (600.0, 900.0)),
        ({"admitted_at": 40.0}, (540.0, 0.0)),
    ],
    ids=["no queue", "in a queue", "admitted"],
)
def test_the_urls_of_a_job_in_a_queue_live_for_its_whole_deadline_after_any_moment_until_they_are_renewed(
    changes: dict[str, float], expected: tuple[float, float]
) -> None:
    job = a_job(RUN, "site-a", 0.0, **changes)
    context = TaskContext(RUN, NO_URLS, Observed(jobs={job.job.name: job}), now=100.0).in_stage(TaskKind.TRAIN, 1, site="site-a")

    assert (context.stage_seconds, context.spare_seconds) == expected


# --- for all histories


def stage_with(*jobs: JobStatus, resumed_at: float = 0.0) -> Any:
    stage = stage_of(RUN, Observed(resumed_at=resumed_at, jobs={one.job.name: one for one in jobs}), TaskKind.TRAIN, 1)
    assert stage is not None
    return stage


@given(starts=st.lists(SECONDS, min_size=1, max_size=3), resumed_at=SECONDS)
def test_without_a_queue_a_stage_ends_for_every_site_a_deadline_after_its_first_job(starts: list[float], resumed_at: float) -> None:
    jobs = [a_job(RUN, f"site-{letter}", at) for letter, at in zip("abc", starts, strict=False)]
    stage = stage_with(*jobs, resumed_at=resumed_at)

    assert {stage.of_site(site)[:2] for site in ("site-a", "site-b", "gone")} == {
        (max(resumed_at, min(starts)), max(resumed_at, min(starts)) + DEADLINE)
    }


@given(started_at=SECONDS, waited=st.none() | SECONDS, admitted=st.none() | SECONDS, resumed_at=SECONDS)
def test_every_wait_ends_with_both_deadlines(started_at: float, waited: float | None, admitted: float | None, resumed_at: float) -> None:
    job = a_job(RUN, "site-a", started_at, in_queue_since=waited, admitted_at=admitted)
    span = stage_with(job, resumed_at=resumed_at).of_site("site-a")

    assert span.ends_at <= max(started_at, resumed_at) + DEADLINE + QUEUE_DEADLINE + ROUNDING


@given(started_at=SECONDS, waited=st.floats(0, QUEUE_DEADLINE), own=st.floats(0, DEADLINE, exclude_max=True))
def test_time_in_a_queue_never_makes_a_site_late(started_at: float, waited: float, own: float) -> None:
    first = a_job(RUN, "site-b", started_at)
    held = a_job(RUN, "site-a", started_at, in_queue_since=started_at)
    admitted = a_job(RUN, "site-a", started_at, admitted_at=started_at + waited)

    if waited < QUEUE_DEADLINE:
        assert stage_with(first, held).expired("site-a", started_at + waited * 0.999) is None
    assert stage_with(first, admitted).of_site("site-a").ends_at == pytest.approx(started_at + waited + DEADLINE)
    assert stage_with(first, admitted).expired("site-a", started_at + waited + own * 0.999) is None


@given(waits=st.lists(st.tuples(st.floats(1, 5000), st.floats(1, 500)), min_size=1, max_size=40))
def test_a_queue_that_takes_back_what_it_gave_again_and_again_holds_up_no_run_for_ever(waits: list[tuple[float, float]]) -> None:
    now = 0.0
    for waited, ran in waits * 20:
        if stage_with(a_job(RUN, "site-a", 0.0, in_queue_since=now)).expired("site-a", now + waited):
            break
        now += waited
        if stage_with(a_job(RUN, "site-a", 0.0, admitted_at=now)).expired("site-a", now + ran):
            break
        now += ran
    else:
        assert now < DEADLINE + QUEUE_DEADLINE
    assert now <= DEADLINE + QUEUE_DEADLINE
