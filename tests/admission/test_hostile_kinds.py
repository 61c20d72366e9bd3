"""Whatever one site sends in runs of other tasks, rules and ranks, and whatever the pods of an export or any trainer's progress say.

Some hundred runs here, thousands with `FUZZ_RUNS=3000 pytest tests/admission/test_hostile_kinds.py`.
"""

import os
import random
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hostile_runs import EXPORT, HOSTILE, require_clear_end, require_unharmed, run_with, run_with_progress
from hostile_site import corrupt, faulty_result
from kinds_of_runs import AGGREGATIONS, TASKS
from peak_memory import peak_memory
from stand_in_runs import World

RUNS: Final = int(os.environ.get("FUZZ_RUNS", "60"))
MEMORY: Final = 1.2
"""Of the operator's memory with honest senders, at most."""
KINDS: Final = TASKS | AGGREGATIONS


def with_faulty_export(folder: Path, seed: int) -> World:
    """A run whose export's pods corrupt the results of the trial, of the export, or of both."""
    chance = random.Random(seed)  # noqa: S311 -- faults, no secrets
    kinds = chance.choice((("dry-export",), ("export",), ("dry-export", "export")))
    return run_with(folder, lambda task: corrupt(task, chance) if task.kind in kinds else None, sender=EXPORT)


def with_faulty_progress(folder: Path, seed: int) -> World:
    """A run in which one site and the export's pods write faulty progress."""
    chance = random.Random(seed)  # noqa: S311 -- as above
    return run_with_progress(folder, lambda honest: faulty_result(honest, chance), {HOSTILE, EXPORT})


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_run_of_each_kind_ends_complete(tmp_path: Path, kind: str) -> None:
    require_unharmed(run_with(tmp_path, lambda _task: None, KINDS[kind]), kind, sender="")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_one_site_sends_a_run_of_any_kind_ends_complete_and_no_honest_site_is_refused(tmp_path: Path, kind: str) -> None:
    for seed in range(RUNS // 10):
        chance = random.Random(f"{kind}/{seed}")  # noqa: S311 -- as above
        world = run_with(tmp_path / str(seed), partial(corrupt, chance=chance), KINDS[kind])
        require_unharmed(world, f"{kind}, seed {seed}")


@pytest.mark.parametrize("batch", range(4))
def test_whatever_an_exports_pods_say_the_run_ends_complete_or_says_that_the_export_failed(tmp_path: Path, batch: int) -> None:
    for seed in range(batch, RUNS // 2, 4):
        require_clear_end(with_faulty_export(tmp_path / str(seed), seed), f"seed {seed}")


@pytest.mark.parametrize("batch", range(2))
def test_whatever_trainers_say_of_their_progress_the_run_is_unharmed(tmp_path: Path, batch: int) -> None:
    for seed in range(batch, RUNS // 4, 2):
        require_unharmed(with_faulty_progress(tmp_path / str(seed), seed), f"seed {seed}", sender="")


def test_what_exports_and_progress_say_costs_no_memory(tmp_path: Path) -> None:
    def attack() -> None:
        for seed in range(5):
            with_faulty_export(tmp_path / f"export-{seed}", 1000 + seed)
            with_faulty_progress(tmp_path / f"progress-{seed}", 1000 + seed)

    def be_honest() -> None:
        run_with(tmp_path / "honest", lambda _task: None)
        run_with_progress(tmp_path / "with progress", lambda honest: honest, {HOSTILE, EXPORT})

    honest = peak_memory(be_honest)

    assert peak_memory(attack) <= MEMORY * honest
