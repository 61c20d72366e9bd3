"""What a site sent once counts as it was first seen: a later version costs that site, also after a restart of the operator."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in_runs import World, a_run

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan


def a_world(folder: Path) -> World:
    return World(a_run(sites={"quorum": 0.6}, rounds={"count": 3}), folder)


def change(world: World, key: str, changes: Callable[[dict[str, object]], None]) -> None:
    value = json.loads(world.store.read(key) or b"")
    changes(value)
    world.store.write(key, json.dumps(value).encode())


def plan_of(world: World, round_: int) -> RoundPlan:
    return RoundPlan.model_validate_json(world.store.read(names.round_plan(round_)) or b"")


def test_a_profile_that_was_overwritten_after_a_plan_was_made_with_it_costs_its_site_all_later_rounds(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.work_until("aggregate-r1")
    change(world, names.profile_result("site-b", 0), lambda profile: profile.update(trainSamples=10**12))
    world.restart()
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert set(plan_of(world, 1).plans) == {"site-a", "site-b", "site-c"}
    for round_ in (2, 3):
        plan = plan_of(world, round_)
        assert set(plan.plans) == {"site-a", "site-c"}
        assert plan.excluded["site-b"].startswith("Overwritten: its profile is another one than the rounds before were planned with")


@pytest.mark.parametrize("restarts", [True, False])
def test_an_update_that_was_overwritten_after_it_was_seen_is_refused_or_was_never_seen(tmp_path: Path, restarts: bool) -> None:
    world = a_world(tmp_path)
    world.work_until("aggregate-r1")
    change(world, names.update_result(1, "site-b", 0), lambda update: update.update(tokens=7))
    if restarts:
        world.restart()
    world.settle()

    commit = RoundCommit.model_validate_json(world.store.read(names.round_commit(1)) or b"")
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert {site: verdict.reason for site, verdict in commit.refused.items()} == {"site-b": "Overwritten"}


@pytest.mark.parametrize("restarts", [True, False])
def test_a_presigned_upload_that_outlives_the_commit_changes_nothing(tmp_path: Path, restarts: bool) -> None:
    undisturbed, world = a_world(tmp_path / "undisturbed"), a_world(tmp_path / "disturbed")
    undisturbed.settle()
    world.work_until("train-r2")
    commit = world.store.read(names.round_commit(1))
    change(world, names.update_result(1, "site-b", 0), lambda update: update.update(tokens=7, samples=10**12))
    world.store.write(names.update_adapter(1, "site-b", 0), b"another adapter")
    if restarts:
        world.restart()
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.store.read(names.round_commit(1)) == commit
    assert world.final_adapter() == undisturbed.final_adapter()
    assert [entry.left_out for entry in world.run.resource.status.history] == [{}, {}, {}]
