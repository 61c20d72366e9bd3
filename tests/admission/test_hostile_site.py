"""Whatever one of three sites sends, the run of the other two ends as if it had sent nothing: nothing stops it, nothing changes it.

Some runs here, thousands with `FUZZ_RUNS=3000 pytest tests/admission/test_hostile_site.py` (each run has seven or more faulty objects).
"""

import os
import random
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hostile_runs import require_unharmed, run_with
from hostile_site import corrupt
from peak_memory import peak_memory

RUNS: Final = int(os.environ.get("FUZZ_RUNS", "60"))
MEMORY: Final = 1.2
"""Of the operator's memory with honest sites, at most."""


def with_faults(folder: Path, seed: int) -> None:
    """A run in which one site corrupts all that it writes."""
    world = run_with(folder, partial(corrupt, chance=random.Random(seed)))  # noqa: S311 -- faults, no secrets
    require_unharmed(world, f"seed {seed}")


@pytest.mark.parametrize("batch", range(4))
def test_whatever_one_site_sends_the_run_ends_complete_and_no_honest_site_is_refused(tmp_path: Path, batch: int) -> None:
    for seed in range(batch, RUNS, 4):
        with_faults(tmp_path / str(seed), seed)


def test_what_a_hostile_site_sends_costs_no_memory(tmp_path: Path) -> None:
    def attack() -> None:
        for seed in range(20):
            with_faults(tmp_path / str(seed), 1000 + seed)

    honest = peak_memory(lambda: run_with(tmp_path / "first", lambda _task: None))

    assert peak_memory(attack) <= MEMORY * honest
