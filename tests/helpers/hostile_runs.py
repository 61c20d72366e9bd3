"""Whole runs of three sites with a quorum of two, of which one sends what a test says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from stand_in_runs import World, a_run

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation
from fedpipe_trainer.contract import parse_task

HOSTILE: Final = "site-b"
HONEST: Final = {"site-a", "site-c"}
ROUNDS: Final = 2

Tamper = Callable[[Any], None]
"""Changes what was written for this task of the hostile site."""


def run_with(folder: Path, tamper: Tamper) -> World:
    """The run at its end."""
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": ROUNDS, "attempts": 2}), folder)
    for _ in range(200):
        world.reconcile()
        for name in world.backend.active_jobs():
            world.backend.work(name)
            if world.backend.jobs[name].job.site == HOSTILE:
                tamper(parse_task(world.backend.tasks[name]))
        if world.conditions().keys() & {"Complete", "Failed"}:
            return world
    raise AssertionError(f"the run did not end: {world.conditions()}")


def require_unharmed(world: World, because: str = "") -> None:
    """The run ended Complete, no honest site was refused, and every record of its rounds can be read again."""
    assert world.conditions().get("Complete") == "RoundsCompleted", f"{because}: {world.message('Failed')}"
    for round_ in range(1, ROUNDS + 1):
        commit = read(world, names.round_commit(round_), RoundCommit)
        evaluation = read(world, names.round_evaluation(round_), RoundEvaluation)
        assert {one.site for one in commit.contributions} >= HONEST, f"{because}, round {round_}"
        assert {*commit.refused, *commit.absent} <= {HOSTILE}, f"{because}, round {round_}: {commit.refused} {commit.absent}"
        assert evaluation.sites.keys() >= HONEST, f"{because}, round {round_}: {evaluation.missing}"


def is_missing_somewhere(world: World) -> bool:
    """Whether what the hostile site sent cost it a round or an evaluation."""
    commits = [read(world, names.round_commit(round_), RoundCommit) for round_ in range(1, ROUNDS + 1)]
    evaluations = [read(world, names.round_evaluation(round_), RoundEvaluation) for round_ in range(ROUNDS + 1)]
    contributed = [HOSTILE in {one.site for one in commit.contributions} for commit in commits]
    return not all(contributed + [HOSTILE in evaluation.sites for evaluation in evaluations])


def read(world: World, key: str, kind: Any) -> Any:
    """A record of the run."""
    return kind.model_validate_json(world.store.read(key) or b"")
