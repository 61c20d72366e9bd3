"""Pods in which a container goes on that never ends."""

from pathlib import Path

import pytest
from meshed_cluster import MeshedWorld
from stand_in_runs import a_run


@pytest.fixture
def world(tmp_path: Path) -> MeshedWorld:
    """Three sites whose profiles are under way."""
    world = MeshedWorld(tmp_path, a_run(rounds={"count": 1, "deadline": "20m"}))
    world.reconcile()
    world.run_all()
    world.now += 60
    return world


def test_a_sidecar_that_never_ends_holds_no_site(world: MeshedWorld) -> None:
    for name in world.active_jobs():
        world.finish(name)
    world.pass_seconds(30)

    assert [name for name in world.active_jobs() if "profile" in name] == []
    assert world.condition("Profiled")["status"] == "True"


def test_a_trainer_that_was_killed_for_its_memory_beside_a_sidecar_is_seen_as_such(world: MeshedWorld) -> None:
    world.stop("toy-profile-site-a-a0", 137, "OOMKilled")
    world.pass_seconds(30)

    assert world.job("toy-profile-site-a-a0").reason == "OutOfMemory"
    assert "toy-profile-site-a-a1" in world.active_jobs()
