"""Whatever one of three sites sends, the run of the other two ends as if it had sent nothing: nothing stops it, nothing changes it.

Some runs here, thousands with `FUZZ_RUNS=3000 pytest tests/admission/test_hostile_site.py` (each run has seven or more faulty objects).
"""

import os
import random
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from hostile_site import corrupt
from stand_in_runs import World, a_run

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation
from fedpipe_trainer.contract import parse_task

RUNS: Final = int(os.environ.get("FUZZ_RUNS", "60"))
HOSTILE: Final = "site-b"
MEMORY: Final = 1.2
"""Of the operator's memory with honest sites, at most."""


def run_with(folder: Path, seed: int | None) -> World:
    """A whole run of three sites with a quorum of two, of which one, where there is a seed, corrupts what it writes."""
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 2, "attempts": 2}), folder)
    chance = random.Random(seed)  # noqa: S311 -- faults, no secrets
    for _ in range(200):
        world.reconcile()
        for name in world.backend.active_jobs():
            world.backend.work(name)
            site = world.backend.jobs[name].job.site
            if seed is not None and site == HOSTILE:
                corrupt(parse_task(world.backend.tasks[name]), chance)
        if world.conditions().keys() & {"Complete", "Failed"}:
            return world
    raise AssertionError(f"the run did not end: {world.conditions()}")


def read(world: World, key: str, kind: Any) -> Any:
    return kind.model_validate_json(world.store.read(key) or b"")


@pytest.mark.parametrize("batch", range(4))
def test_whatever_one_site_sends_the_run_ends_complete_and_no_honest_site_is_refused(tmp_path: Path, batch: int) -> None:
    for seed in range(batch, RUNS, 4):
        world = run_with(tmp_path / str(seed), seed)

        assert world.conditions().get("Complete") == "RoundsCompleted", f"seed {seed}: {world.message('Failed')}"
        for round_ in (1, 2):
            commit = read(world, names.round_commit(round_), RoundCommit)
            evaluation = read(world, names.round_evaluation(round_), RoundEvaluation)
            assert {"site-a", "site-c"} <= {one.site for one in commit.contributions}, f"seed {seed}, round {round_}"
            assert {*commit.refused, *commit.absent} <= {HOSTILE}, f"seed {seed}, round {round_}: {commit.refused} {commit.absent}"
            assert {"site-a", "site-c"} <= evaluation.sites.keys(), f"seed {seed}, round {round_}: {evaluation.missing}"


def test_what_a_hostile_site_sends_costs_no_memory(tmp_path: Path) -> None:
    run_with(tmp_path / "first", None)
    honest = psutil.Process().memory_info().rss

    for seed in range(20):
        run_with(tmp_path / str(seed), 1000 + seed)

    assert psutil.Process().memory_info().rss <= MEMORY * honest
