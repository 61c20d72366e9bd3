"""The progress that trainers write: read seldom, admitted as all that a site sends, shown once a minute, and never a run's problem."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import KubeWorld
from stand_in_runs import a_run, a_site
from trainer_results import path_of

from fedpipe_operator.errors import TransientError
from fedpipe_operator.reconcile.progress import MOST_READS
from fedpipe_operator.rounds import Observed, Run
from fedpipe_operator.store import DirectoryStore
from fedpipe_trainer.contract import MAX_PROGRESS_BYTES

TRAIN = "toy-train-r1-site-a-a0"
FAST, SLOW = 15, 60
"""Seconds: a job's progress is read so often, and the run's is written so often, at most."""


def a_world(folder: Path, run: Run | None = None) -> KubeWorld:
    """A run whose sites train the first round, their pods ready."""
    world = KubeWorld(folder, run or a_run(3, rounds={"count": 2, "deadline": "2h"}))
    world.work_until("train-r1")
    for job in world.active_jobs():
        world.api.merge_status_of_job(world.object_name(job), {"active": 1, "ready": 1})
    world.reconcile()
    return world


def write(world: KubeWorld, job: str, content: bytes | None = None, **fields: Any) -> None:
    """Write, as the trainer of this job, its progress or this."""
    task = world.task_of(job)
    document = {name: task[name] for name in ("run", "site", "round", "attempt")} | {"phase": "train", "step": 1, "steps": 100} | fields
    path = path_of(task["progress"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(document).encode() if content is None else content)


def observed_by(world: KubeWorld) -> list[Observed]:
    """What the reconciles from now on observe."""
    found: list[Observed] = []
    world.runs.on_reconciled = lambda _run, observed: found.append(observed)
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of progress that are read."""
    keys: list[str] = []
    read_start = DirectoryStore.read_start

    def counted(store: DirectoryStore, key: str, at_most: int) -> bytes | None:
        keys.extend([key] if key.endswith("progress.json") else [])
        return read_start(store, key, at_most)

    monkeypatch.setattr(DirectoryStore, "read_start", counted)
    return keys


def test_ten_minutes_of_progress_cost_a_status_write_a_minute_and_a_read_of_each_job_in_15_seconds(
    tmp_path: Path, reads: list[str]
) -> None:
    world = a_world(tmp_path)
    percentages, writes = [], []
    world.api.noted.clear()
    reads.clear()
    for step in range(120):
        world.now += 5
        for site in "abc":
            write(world, f"toy-train-r1-site-{site}-a0", step=step, steps=120)
        before = len(world.api.noted)
        world.reconcile()
        writes += [world.now] * (len(world.api.noted) - before)
        percentages.append(world.body()["status"]["progress"]["percentage"])

    assert {call.split()[0] for call in world.api.noted} == {"status"}
    assert len(writes) <= 10
    assert all(later - earlier >= SLOW for earlier, later in pairwise(writes))
    assert len(reads) <= 3 * (600 / FAST + 1)
    assert percentages == sorted(percentages)
    assert percentages[-1] > percentages[0] + 20, "the progress is seen"


def test_a_change_of_anything_else_is_written_at_once_with_the_newest_progress(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.now += 20
    write(world, "toy-train-r1-site-b-a0", step=90)
    world.work(TRAIN)
    world.reconcile()
    progress = world.body()["status"]["progress"]

    assert (progress["stage"], progress["sitesDone"], progress["sitesTotal"]) == ("Training", 1, 3)
    assert progress["percentage"] == int(100 * (1 + 0.9 * (1 + 0.95 * 0.9) / 3) / 3.5)


def test_a_run_whose_progress_stands_still_costs_no_call(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    write(world, TRAIN)
    world.now += 600
    world.reconcile()
    world.api.noted.clear()

    for _ in range(10):
        world.now += 60
        world.reconcile()

    assert world.api.noted == []


WRONG: dict[str, Callable[[KubeWorld], None]] = {
    "no JSON": lambda world: write(world, TRAIN, b"\xff{"),
    "nothing": lambda world: write(world, TRAIN, b""),
    "too large": lambda world: write(world, TRAIN, b" " * (MAX_PROGRESS_BYTES + 1)),
    "gigabytes of numbers": lambda world: write(world, TRAIN, b"[" + b"1," * 2000),
    "another site": lambda world: write(world, TRAIN, site="site-b"),
    "another round": lambda world: write(world, TRAIN, round=2),
    "another attempt": lambda world: write(world, TRAIN, attempt=1),
    "another run": lambda world: write(world, TRAIN, run={"namespace": "default", "name": "toy", "uid": "another"}),
    "more steps than there are": lambda world: write(world, TRAIN, step=101),
    "a step below 0": lambda world: write(world, TRAIN, step=-1),
    "a number without end": lambda world: write(world, TRAIN, steps=10**30),
    "an unknown phase": lambda world: write(world, TRAIN, phase="sleep"),
    "a loss that is NaN": lambda world: write(world, TRAIN, loss=float("nan")),
    "an unknown field": lambda world: write(world, TRAIN, rows=["a secret"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_progress_that_is_wrong_is_ignored_counted_and_told_once(tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    world = a_world(tmp_path)
    found = observed_by(world)
    for _ in range(3):
        world.now += 20
        WRONG[wrong](world)
        world.reconcile()

    assert list(found[2].refused_progress) == [TRAIN]
    assert found[2].jobs[TRAIN].progress is None
    assert [record.getMessage()[:19] for record in caplog.records if "ignored" in record.getMessage()] == ["progress is ignored"]
    assert "a secret" not in caplog.text


def test_a_run_goes_on_to_its_end_whatever_a_site_writes_as_its_progress(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    for write_wrong in WRONG.values():
        world.now += 20
        write_wrong(world)
        world.reconcile()
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.body()["status"]["history"][0]["updates"] == "3/3"


def test_a_store_that_does_not_answer_for_progress_is_asked_once_in_a_reconcile_and_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, asked = a_world(tmp_path), []
    read_start = DirectoryStore.read_start

    def fail(store: DirectoryStore, key: str, at_most: int) -> bytes | None:
        if key.endswith("progress.json"):
            asked.append(key)
            raise TransientError("StoreUnreachable", "it does not answer")
        return read_start(store, key, at_most)

    monkeypatch.setattr(DirectoryStore, "read_start", fail)
    world.now += 20
    world.reconcile()

    assert len(asked) == 1
    assert world.conditions()["Progressing"] == "Training"


def test_of_many_sites_a_bounded_number_is_read_in_a_reconcile_and_each_in_its_turn(tmp_path: Path, reads: list[str]) -> None:
    sites = [a_site(f"site-{number:03}") for number in range(MOST_READS + 10)]
    world = KubeWorld(tmp_path, a_run(sites))
    world.reconcile()
    for job in world.active_jobs():
        world.api.merge_status_of_job(world.object_name(job), {"active": 1, "ready": 1})

    counts = []
    for _ in range(2):
        world.now += 20
        before = len(reads)
        world.reconcile()
        counts.append(len(reads) - before)

    assert counts == [MOST_READS, MOST_READS]
    assert len(set(reads)) == len(sites)


@pytest.mark.parametrize(("policy", "loss"), [({"minSites": 1}, 1.5), ({"minSites": 1, "trainingLosses": "Mean"}, None)])
def test_the_loss_of_a_step_is_not_shown_where_the_policy_of_the_site_hides_it(
    tmp_path: Path, policy: dict[str, Any], loss: float | None
) -> None:
    world = a_world(tmp_path, a_run([a_site("site-a", policy=policy), a_site("site-b")], rounds={"count": 1, "deadline": "2h"}))
    found = observed_by(world)
    world.now += 20
    write(world, TRAIN, loss=1.5, tokensPerSecond=10.0)
    world.reconcile()
    progress = found[0].jobs[TRAIN].progress

    assert progress is not None
    assert (progress.step, progress.loss, progress.tokens_per_second) == (1, loss, 10.0)


def test_a_new_operator_reads_the_progress_again(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    write(world, TRAIN, step=50)
    world.restart()
    found = observed_by(world)
    world.reconcile()
    progress = found[0].jobs[TRAIN].progress

    assert progress is not None
    assert progress.step == 50
