"""Whatever one of three sites sends, the aggregation's worker commits a round of the other two, and needs no more memory.

Some hundred updates here, thousands with `FUZZ_RUNS=3000 pytest tests/aggregation/test_hostile_updates.py` (five for each run).
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hostile_site import corrupt_update
from peak_memory import peak_memory
from safetensors.numpy import load
from stand_in_runs import World, a_run

from fedpipe_operator import names, worker
from fedpipe_operator.aggregation.worker import AggregationTask
from fedpipe_operator.rounds.records import RoundCommit, UpdateRef

UPDATES: Final = 5 * int(os.environ.get("FUZZ_RUNS", "60"))
HOSTILE: Final = "site-b"
HONEST: Final = {"site-a", "site-c"}
RESULT, ADAPTER = names.update_result(2, HOSTILE, 0), names.update_adapter(2, HOSTILE, 0)
CODECS: Final[dict[str, dict[str, Any]]] = {
    "Identity": {},
    "Int8": {"type": "Int8"},
    "TopK": {"type": "TopK", "fraction": 0.3, "minCosine": 0, "maxRelativeError": 1},
    "LowRank": {"type": "LowRank", "rank": 1, "minCosine": 0, "maxRelativeError": 1},
}
"""`spec.codec` of the rounds that are attacked, with bounds that let the codec be used. They share the updates."""
MEMORY: Final = 1.2
"""Of the worker's memory with honest sites, at most."""


class Round:
    """A round whose updates are there, aggregated again and again with other bytes of one site."""

    def __init__(self, folder: Path, codec: dict[str, Any]) -> None:
        self.world = World(a_run(sites={"quorum": 0.6}, codec=codec), folder)
        self.world.work_until("aggregate-r2")
        self.store = self.world.store
        self.honest = self.store.read(RESULT) or b"", self.store.read(ADAPTER) or b""
        task = AggregationTask.model_validate_json(self.world.backend.tasks["toy-aggregate-r2-a0"])
        # No hash of first sight, so that the worker looks at everything itself.
        updates = tuple(UpdateRef(site=one.site, attempt=one.attempt) for one in task.updates)
        self.task = folder / "task.json"
        self.task.write_text(task.model_copy(update={"updates": updates}).to_json())

    def aggregate(self, result: bytes, adapter: bytes) -> RoundCommit:
        """The round's commit with this update of the hostile site."""
        self.store.delete(names.round_commit(2))
        self.store.write(RESULT, result)
        self.store.write(ADAPTER, adapter)
        worker.main([str(self.task)])
        return RoundCommit.model_validate_json(self.store.read(names.round_commit(2)) or b"")

    def global_adapter(self, commit: RoundCommit) -> dict[str, np.ndarray]:
        """The tensors that this commit names."""
        return load(self.store.read(commit.adapter.name) or b"")


@pytest.fixture(params=CODECS)
def round_(request: pytest.FixtureRequest, tmp_path: Path) -> Round:
    """A round of three sites that needs two updates."""
    return Round(tmp_path, CODECS[request.param])


def seeds(start: int, count: int) -> range:
    """Those of one of the rounds, so that all together have so many."""
    return range(start, start + count // len(CODECS))


def updates(round_: Round, seeds: range) -> list[tuple[int, bytes, bytes]]:
    return [(seed, *corrupt_update(*round_.honest, random.Random(seed))) for seed in seeds]  # noqa: S311 -- faults, no secrets


def test_whatever_one_site_sends_the_round_is_committed_with_the_updates_of_the_others(round_: Round) -> None:
    refused = 0
    for seed, result, adapter in updates(round_, seeds(0, UPDATES)):
        commit = round_.aggregate(result, adapter)

        assert {one.site for one in commit.contributions} >= HONEST, f"seed {seed}: {commit.refused}"
        assert commit.refused.keys() <= {HOSTILE}, f"seed {seed}: {commit.refused}"
        assert all(np.isfinite(tensor).all() for tensor in round_.global_adapter(commit).values()), f"seed {seed}"
        refused += len(commit.refused)
    assert refused > UPDATES / len(CODECS) / 2, "most of the faults are ones that can be seen"


def test_a_refused_update_changes_nothing(round_: Round) -> None:
    without = round_.aggregate(b"", b"")

    for seed, result, adapter in updates(round_, seeds(5000, UPDATES // 5)):
        commit = round_.aggregate(result, adapter)
        assert HOSTILE not in commit.refused or commit.adapter.sha256 == without.adapter.sha256, f"seed {seed}"


def test_what_a_hostile_site_sends_costs_the_worker_no_memory(round_: Round) -> None:
    hostile = updates(round_, seeds(10_000, UPDATES // 5))

    def aggregate_all(sent: Sequence[tuple[bytes, bytes]]) -> None:
        for result, adapter in sent:
            round_.aggregate(result, adapter)

    honest = peak_memory(lambda: aggregate_all([round_.honest] * 3))

    assert peak_memory(lambda: aggregate_all([(result, adapter) for _, result, adapter in hostile])) <= MEMORY * honest
