"""A profile that has a whole deadline and misses it is waited for once: later rounds go on without its site until something changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run, a_site
from trainer_results import good_trainer, perform

from fedpipe_operator import names
from fedpipe_operator.backend import JobState
from fedpipe_operator.rounds import stages
from fedpipe_operator.rounds.records import RoundEvaluation, RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import parse_task

LATE = "DeadlineExceeded: not done within 30m; raise rounds.deadline"
ROUNDS = {"count": 5, "deadline": "30m"}


def a_world(folder: Path, fleet: int = 4, **rounds: Any) -> World:
    return World(a_run(fleet, rounds=ROUNDS | rounds, sites={"quorum": 0.5}), folder)


def drive(world: World, *, until: Callable[[], bool] = lambda: False, hangs: str = "profile-site-d") -> list[tuple[int, str]]:
    """Drive the run to its end, or until then, while jobs with this word in their names hang.

    Returns:
        The round and the message of each five minutes in which nothing could be done but to wait.
    """
    waits = []
    for _ in range(500):
        decision = world.reconcile()
        if until() or {"Complete", "Failed"} & world.conditions().keys():
            return waits
        if active := [name for name in world.backend.active_jobs() if hangs not in name]:
            world.backend.work(active[0])
        elif not decision.actions:
            waits.append((world.run.resource.status.round, world.message("Progressing")))
            world.now += 300
    raise AssertionError(world.conditions())


def profiles_of_d(world: World) -> list[str]:
    return [name.partition("site-d-")[2] for name in world.backend.started if "profile-site-d" in name]


def excluded_by_round(world: World) -> list[dict[str, str]]:
    return [required_object(world.store, names.round_plan(round_), RoundPlan).excluded for round_ in range(1, 6)]


def change(world: World, **spec: Any) -> None:
    """Edit the EdgeSite of site-d."""
    world.run = replace(world.run, sites=(*world.run.sites[:3], a_site("site-d", **spec)))


def set_deadline(world: World, deadline: str) -> None:
    rounds = world.run.spec.rounds.model_copy(update={"deadline": deadline})
    spec = world.run.spec.model_copy(update={"rounds": rounds})
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": spec}))


def restart(world: World) -> bool:
    """A new operator, as on a cluster, where that is no resumption. False: the run goes on."""
    resumed_at = world.reconciler.resumed_at
    world.restart()
    world.reconciler.resumed_at = resumed_at
    return False


def test_a_profile_that_never_ends_costs_the_run_one_deadline_and_the_status_names_its_site(tmp_path: Path) -> None:
    world = a_world(tmp_path)

    waits = drive(world)

    assert waits == [(0, "3 of 4 sites done; site-d at work")] * 6
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert profiles_of_d(world) == ["a0"]
    assert excluded_by_round(world) == [{"site-d": LATE}] * 5


def test_so_does_that_of_a_site_that_joins_in_mid_run(tmp_path: Path) -> None:
    world = a_world(tmp_path, 3)
    world.work_until("train-r2")
    world.run = replace(world.run, sites=(*world.run.sites, a_site("site-d")))

    waits = drive(world)

    assert waits == [(2, "3 of 4 sites done; site-d at work")] * 6
    assert profiles_of_d(world) == ["a0"]
    assert excluded_by_round(world) == [{}, {}, *[{"site-d": LATE}] * 3]


@pytest.mark.parametrize(
    "correct",
    [
        lambda world: change(world, nodeSelector={"pool": "other"}),
        lambda world: set_deadline(world, "45m"),
        lambda world: setattr(world.reconciler, "resumed_at", world.now + 1),
    ],
    ids=["its EdgeSite", "the deadline", "a suspension"],
)
def test_the_profile_is_tried_again_once_something_has_changed(tmp_path: Path, correct: Callable[[World], None]) -> None:
    world = a_world(tmp_path)
    drive(world, until=lambda: world.run.resource.status.round == 2)
    correct(world)
    world.now += 2

    assert drive(world, hangs="nothing") == []

    assert profiles_of_d(world) == ["a0", "a0"], "the first left no result, so that it is the same attempt"
    assert excluded_by_round(world) == [*[{"site-d": LATE}] * 2, {}, {}, {}]


def test_a_profile_that_was_sent_at_the_last_moment_counts_in_the_next_round(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    drive(world, until=lambda: world.run.resource.status.round == 1)
    perform(good_trainer, parse_task(world.backend.tasks["toy-profile-site-d-a0"]), tmp_path)
    restart(world)

    drive(world)

    assert profiles_of_d(world) == ["a0"]
    assert excluded_by_round(world) == [{"site-d": LATE}, {}, {}, {}, {}]


def test_a_site_whose_slots_others_held_all_the_time_was_not_tried_and_is_waited_for_again(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconciler.busy = {"site-d": "its turn: another is at work there"}
    drive(world, until=lambda: world.run.resource.status.round == 1)
    world.reconciler.busy = {}

    drive(world, hangs="nothing")

    never = "DeadlineExceeded: not started by the end of the stage's 30m; raise rounds.deadline"
    assert excluded_by_round(world) == [{"site-d": never}, {}, {}, {}, {}]


def test_a_site_that_joins_in_the_last_seconds_is_tried_again_with_a_whole_deadline(tmp_path: Path) -> None:
    world = a_world(tmp_path, 3)
    world.reconcile()
    world.backend.work("toy-profile-site-a-a0")
    world.backend.work("toy-profile-site-b-a0")
    world.now += 1795
    world.run = replace(world.run, sites=(*world.run.sites, a_site("site-d")))
    world.reconcile()
    world.now += 5
    drive(world, hangs="profile", until=lambda: world.run.resource.status.round == 1)

    drive(world, hangs="profile-site-c")

    late = "DeadlineExceeded: not done in the 5.0 s that were left of the stage's 30m; raise rounds.deadline"
    assert excluded_by_round(world) == [{"site-c": LATE, "site-d": late}, *[{"site-c": LATE}] * 4]


def test_a_job_that_waited_for_a_process_for_most_of_the_time_is_tried_again(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    world.backend.jobs["toy-profile-site-d-a0"] = replace(world.backend.jobs["toy-profile-site-d-a0"], running_since=1000.0 + 1200)
    drive(world, until=lambda: world.run.resource.status.round == 1)

    drive(world, hangs="nothing")

    late = "DeadlineExceeded: not done in the 10 min that were left of the stage's 30m; raise rounds.deadline"
    assert excluded_by_round(world) == [{"site-d": late}, {}, {}, {}, {}]


def test_a_site_without_a_node_for_a_whole_deadline_costs_no_later_round_another_one(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    job = replace(world.backend.jobs["toy-profile-site-d-a0"], state=JobState.PENDING, message="a node")
    world.backend.jobs["toy-profile-site-d-a0"] = job

    drive(world)

    late = "DeadlineExceeded: not done within 30m; it waited for a node; raise rounds.deadline"
    assert excluded_by_round(world) == [{"site-d": late}] * 5
    assert profiles_of_d(world) == ["a0"]


def test_a_retry_that_hangs_after_a_crash_is_tried_again_and_then_has_its_whole_time(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    world.now += 900
    world.backend.kill("toy-profile-site-d-a0")

    waits = drive(world)

    late = "DeadlineExceeded: not done in the 15 min that were left of the stage's 30m; raise rounds.deadline"
    assert excluded_by_round(world) == [{"site-d": late}, *[{"site-d": LATE}] * 4]
    assert [round_ for round_, _ in waits] == [0] * 3 + [1] * 6
    assert profiles_of_d(world) == ["a0", "a1", "a1"]


def test_an_operator_that_is_restarted_at_every_reconcile_waits_no_longer(tmp_path: Path) -> None:
    world = a_world(tmp_path)

    assert len(drive(world, until=lambda: restart(world))) == 6
    assert profiles_of_d(world) == ["a0"]


def test_a_worker_that_plans_without_a_profile_records_it_though_its_first_attempt_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "INLINE_SITES", 2)
    world = a_world(tmp_path, 3)
    world.work_until("train-r2")
    world.run = replace(world.run, sites=(*world.run.sites, a_site("site-d")))
    for name in [name for name in world.backend.jobs if "profile" in name]:
        del world.backend.jobs[name]  # Kubernetes removes Jobs that ended long ago
    waits = drive(world, until=lambda: "toy-plan-r3-a0" in world.backend.started)
    world.backend.jobs["toy-plan-r3-a0"] = replace(world.backend.jobs["toy-plan-r3-a0"], state=JobState.FAILED, reason="Killed")

    assert drive(world) == []
    assert len(waits) == 6
    assert profiles_of_d(world) == ["a0"]
    assert excluded_by_round(world) == [{}, {}, *[{"site-d": LATE}] * 3]


def a_hung_world(folder: Path, *, accuracy: float = 0.9) -> World:
    """Round 2 is committed, and the profile of site-c, which was edited, hangs; no job begins at a site where another is at work."""
    rounds = {"count": 4, "deadline": "30m", "target": {"metric": "accuracy", "value": accuracy}}
    world = World(a_run(3, rounds=rounds, sites={"quorum": 1.0}), folder)
    world.work_until("aggregate-r2")
    world.backend.work("toy-aggregate-r2-a0")
    world.run = replace(world.run, sites=(*world.run.sites[:2], a_site("site-c", nodeSelector={"pool": "other"})))
    return world


def drive_with_one_slot_a_site(world: World, until: Callable[[], bool] = lambda: False) -> float:
    """Drive the run to its end, or until then, while profiles hang. Returns the seconds."""
    began = world.now
    for _ in range(100):
        at_work = {status.job.site for status in world.backend.jobs.values() if status.state is JobState.RUNNING}
        world.reconciler.busy = {site: "its last Job to end" for site in at_work if site}
        decision = world.reconcile()
        if until() or {"Complete", "Failed"} & world.conditions().keys():
            return world.now - began
        if active := [name for name in world.backend.active_jobs() if "profile" not in name]:
            world.backend.work(active[0])
        elif not decision.actions:
            world.now += 300
    raise AssertionError(world.conditions())


@pytest.mark.parametrize("inline_sites", [50, 2], ids=["in the reconcile", "in a worker"])
@pytest.mark.parametrize(("accuracy", "end"), [(0.2, {"Complete": "TargetReached"}), (0.9, {"Failed": "QuorumOutOfReach"})])
def test_a_profile_that_missed_its_deadline_makes_room_for_the_last_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accuracy: float, end: dict[str, str], inline_sites: int
) -> None:
    monkeypatch.setattr(stages, "INLINE_SITES", inline_sites)
    world = a_hung_world(tmp_path, accuracy=accuracy)

    seconds = drive_with_one_slot_a_site(world, until=lambda: restart(world))

    assert seconds == 1800
    assert end.items() <= world.conditions().items()
    assert required_object(world.store, names.round_evaluation(2), RoundEvaluation).missing == {}
    assert [name for name in world.backend.started if "profile-site-c" in name] == ["toy-profile-site-c-a0", "toy-profile-site-c-a1"]
    if "Failed" in end:
        assert f"site-c: {LATE}" in world.message("Failed")


def test_a_run_that_can_go_on_after_all_still_leaves_out_the_profile_that_made_room(tmp_path: Path) -> None:
    world = a_hung_world(tmp_path)
    drive_with_one_slot_a_site(world, until=lambda: "toy-evaluate-r2-site-c-a0" in world.backend.started)
    sites = world.run.spec.sites.model_copy(update={"quorum": 0.5})
    spec = world.run.spec.model_copy(update={"sites": sites})
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": spec}))

    drive_with_one_slot_a_site(world)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    plans = [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in (3, 4)]
    assert [(plan.excluded, list(plan.given_up)) for plan in plans] == [({"site-c": LATE}, ["site-c"])] * 2
