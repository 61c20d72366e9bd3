"""A run whose cluster was lost goes on in another: the same YAML, and `continueFrom` with the UID that it had."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run

from fedpipe_operator import names
from fedpipe_operator.errors import UserError
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store.objects import required_object


def recreated(uid: str = "uid-2", **spec: Any) -> Run:
    """The run of `a_run()` as another object that continues it: nothing of the first one's status is known."""
    run = a_run(**{"continueFrom": "uid-1"} | spec)
    metadata = run.resource.metadata.model_copy(update={"uid": uid})
    return replace(run, resource=run.resource.model_copy(update={"metadata": metadata}))


def lost_cluster(folder: Path, *, jobs: int) -> World:
    """The world of a run whose cluster is lost after so many jobs have ended."""
    world = World(a_run(), folder)
    while len(world.backend.started) < jobs or world.backend.active_jobs():
        world.reconcile()
        for name in world.backend.active_jobs()[:1]:
            world.backend.work(name)
    return world


def in_another_cluster(lost: World, run: Run, folder: Path) -> World:
    """The run in a cluster that has nothing of the lost one but its bucket."""
    shutil.copytree(lost.folder / "store", folder / "store")
    return World(run, folder)


@pytest.mark.parametrize("jobs", [6, 8, 9, 12])
def test_a_run_whose_cluster_is_lost_ends_in_another_with_the_same_bytes(tmp_path: Path, jobs: int) -> None:
    undisturbed, lost = World(a_run(), tmp_path / "one"), lost_cluster(tmp_path / "two", jobs=jobs)
    undisturbed.settle()

    world = in_another_cluster(lost, recreated(), tmp_path / "three")
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.final_adapter() == undisturbed.final_adapter()
    assert not any("profile" in name for name in world.backend.started)
    assert {*lost.backend.started, *world.backend.started} == {*undisturbed.backend.started}


def test_an_object_that_continues_another_is_in_that_ones_folder_of_the_bucket() -> None:
    assert recreated().prefix == a_run().prefix == "fedpipe/default/toy/uid-1"
    assert a_run().ref == recreated().ref


def test_a_complete_run_goes_on_with_more_rounds_and_exports_the_best_of_all(tmp_path: Path) -> None:
    first = World(a_run(), tmp_path / "one")
    first.settle()

    world = in_another_cluster(first, recreated(rounds={"count": 3, "deadline": "10m"}), tmp_path / "two")
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.round == 3
    assert [name for name in world.backend.started if name.startswith("toy-train")] == [f"toy-train-r3-site-{site}-a0" for site in "abc"]
    assert world.backend.started[-1] == "toy-export-a1"


def test_a_complete_run_that_is_continued_as_it_was_trains_and_exports_nothing(tmp_path: Path) -> None:
    first = World(a_run(), tmp_path / "one")
    first.settle()

    world = in_another_cluster(first, recreated(), tmp_path / "two")
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.backend.started == []


def test_a_uid_without_a_folder_is_refused_instead_of_beginning_anew(tmp_path: Path) -> None:
    world = World(recreated(), tmp_path)

    with pytest.raises(UserError, match=r"NothingToContinue: spec\.continueFrom: the store has no rounds of uid-1") as refusal:
        world.reconcile()

    assert "create the run without the field" in refusal.value.message
    assert world.backend.started == []


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"source": "pvc://models/another"}},
        {"task": {"type": "SequenceClassification", "labels": ["a", "b", "d"], "maxLength": 16}},
        {"planning": {"bits": [16], "ranks": [8], "batchSizes": [2]}},
        {"aggregation": {"method": "ZeroPad"}},
    ],
)
def test_a_run_that_would_learn_something_else_continues_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    world = in_another_cluster(lost_cluster(tmp_path / "one", jobs=8), recreated(**other), tmp_path / "two")

    with pytest.raises(UserError, match=r"SpecChanged: one of spec\.model, spec\.task"):
        world.reconcile()


def test_the_bucket_may_have_moved_with_the_run(tmp_path: Path) -> None:
    lost = lost_cluster(tmp_path / "one", jobs=8)

    world = in_another_cluster(lost, recreated(store={"bucket": "restored", "endpoint": "http://elsewhere:9000"}), tmp_path / "two")
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_run_that_an_earlier_version_of_the_operator_planned_is_continued_as_well(tmp_path: Path) -> None:
    lost = lost_cluster(tmp_path / "one", jobs=8)
    plan = required_object(lost.store, names.round_plan(1), RoundPlan)
    assert plan.revision
    (lost.folder / "store" / names.round_plan(1)).write_text(plan.model_copy(update={"revision": ""}).to_json())

    world = in_another_cluster(lost, recreated(), tmp_path / "two")
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
