"""Whole runs of three sites with a quorum of two, or of another kind, of which one site, or an export's pod, sends what a test says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kinds_of_runs import CLASSIFICATION, KindOfRun
from stand_in_runs import World
from trainer_results import path_of

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation
from fedpipe_trainer.contract import PROGRESS_SECONDS, TaskProgress, parse_task

HOSTILE: Final = "site-b"
EXPORT: Final = ""
"""In place of a site: what the pods of the export and of its trial send."""
ROUNDS: Final = 2
_END_OF_EXPORT: Final = {"ExportImpossible", "ExportFailed"}
_MOST_OF_A_MESSAGE: Final = 10_000
_RECONCILES: Final = 200

Tamper = Callable[[Any], None]
"""Changes what was written for this task of the hostile site."""


def run_with(folder: Path, tamper: Tamper, kind: KindOfRun = CLASSIFICATION, *, sender: str = HOSTILE) -> World:
    """The run at its end."""
    world = kind.world(folder)
    for _ in range(_RECONCILES):
        world.reconcile()
        for name in world.backend.active_jobs():
            world.backend.work(name)
            if _is_trainers(world, name, sender):
                tamper(parse_task(world.backend.tasks[name]))
        if world.conditions().keys() & {"Complete", "Failed"}:
            return world
    raise AssertionError(f"the run did not end: {world.conditions()}")


def run_with_progress(folder: Path, progress: Callable[[bytes], bytes], senders: set[str]) -> World:
    """The run at its end, every trainer of these senders having written, while it worked, what this makes of its honest progress."""
    world = CLASSIFICATION.world(folder, reads_progress=True)
    for _ in range(_RECONCILES):
        world.reconcile()
        working = world.backend.active_jobs()
        for name in working:
            if any(_is_trainers(world, name, sender) for sender in senders):
                task = parse_task(world.backend.tasks[name])
                assert task.progress is not None
                path_of(task.progress).parent.mkdir(parents=True, exist_ok=True)
                path_of(task.progress).write_bytes(progress(_honest_progress(task)))
        world.now += PROGRESS_SECONDS + 1
        world.reconcile()
        for name in working:
            world.backend.work(name)
        if world.conditions().keys() & {"Complete", "Failed"}:
            return world
    raise AssertionError(f"the run did not end: {world.conditions()}")


def _is_trainers(world: World, name: str, sender: str) -> bool:
    job = world.backend.jobs[name].job
    return not job.kind.is_operators and job.site == sender


def _honest_progress(task: Any) -> bytes:
    header = {"run": task.run, "site": task.site, "round": task.round, "attempt": task.attempt}
    return TaskProgress(**header, phase="train", step=10, steps=100, loss=1.5, tokens_per_second=100.0).to_json().encode()


def require_unharmed(world: World, because: str = "", *, sender: str = HOSTILE) -> None:
    """The run ended Complete, no honest site was refused, and every record of its rounds can be read again."""
    assert world.conditions().get("Complete") == "RoundsCompleted", f"{because}: {world.message('Failed')}"
    honest = {site.name for site in world.run.sites} - {sender}
    for round_ in range(1, ROUNDS + 1):
        commit = read(world, names.round_commit(round_), RoundCommit)
        evaluation = read(world, names.round_evaluation(round_), RoundEvaluation)
        assert {one.site for one in commit.contributions} >= honest, f"{because}, round {round_}"
        assert {*commit.refused, *commit.absent} <= {sender}, f"{because}, round {round_}: {commit.refused} {commit.absent}"
        assert evaluation.sites.keys() >= honest, f"{because}, round {round_}: {evaluation.missing}"


def require_clear_end(world: World, because: str) -> None:
    """The run ended Complete and unharmed, or Failed by its export with a sentence that shows nothing but itself."""
    if "Complete" in world.conditions():
        require_unharmed(world, because, sender=EXPORT)
        return
    message = world.message("Failed")
    assert world.conditions()["Failed"] in _END_OF_EXPORT, f"{because}: {message}"
    assert message.isprintable(), f"{because}: {message}"
    assert 0 < len(message) < _MOST_OF_A_MESSAGE, f"{because}: {message}"


def is_missing_somewhere(world: World) -> bool:
    """Whether what the hostile site sent cost it a round or an evaluation."""
    commits = [read(world, names.round_commit(round_), RoundCommit) for round_ in range(1, ROUNDS + 1)]
    evaluations = [read(world, names.round_evaluation(round_), RoundEvaluation) for round_ in range(ROUNDS + 1)]
    contributed = [HOSTILE in {one.site for one in commit.contributions} for commit in commits]
    return not all(contributed + [HOSTILE in evaluation.sites for evaluation in evaluations])


def read(world: World, key: str, kind: Any) -> Any:
    """A record of the run."""
    return kind.model_validate_json(world.store.read(key) or b"")
