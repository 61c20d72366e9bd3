"""A run with a server optimizer: its state is in the store alone, and the plain one reads no more than before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from stand_in_runs import World, a_run

from fedpipe_operator import names
from fedpipe_operator.aggregation.worker import AggregationTask, aggregate
from fedpipe_operator.rounds.records import RoundCommit
from fedpipe_operator.store import DirectoryStore
from fedpipe_operator.store.objects import required_object

ROUNDS: Final = {"count": 4, "deadline": "10m"}


def a_run_with(optimizer: dict[str, Any]) -> Any:
    return a_run(rounds=ROUNDS, aggregation={"optimizer": optimizer})


def commits(world: World) -> list[RoundCommit]:
    return [required_object(world.store, names.round_commit(round_), RoundCommit) for round_ in range(1, 5)]


@pytest.mark.parametrize("optimizer", [{"type": "FedAvgM"}, {"type": "FedAdamW", "learningRate": 0.1}, {"type": "FedYogi", "tau": 0.1}])
def test_an_operator_restarted_at_every_reconcile_ends_with_the_same_bytes(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    undisturbed, disturbed = World(a_run_with(optimizer), tmp_path / "one"), World(a_run_with(optimizer), tmp_path / "two")
    undisturbed.settle()

    disturbed.settle_with_restarts()

    assert disturbed.final_adapter() == undisturbed.final_adapter()
    assert [one.optimizer for one in commits(disturbed)] == [one.optimizer for one in commits(undisturbed)]


def test_momentum_moves_the_adapter_further_than_the_increments_alone(tmp_path: Path) -> None:
    plain, moving = World(a_run_with({}), tmp_path / "one"), World(a_run_with({"type": "FedAvgM", "learningRate": 1}), tmp_path / "two")
    plain.settle()
    moving.settle()

    assert commits(plain)[0].adapter.sha256 == commits(moving)[0].adapter.sha256
    assert commits(plain)[3].adapter.sha256 != commits(moving)[3].adapter.sha256


@pytest.mark.parametrize(("optimizer", "read"), [({}, ["r3"]), ({"type": "FedAvgM"}, ["r2", "r3"])])
def test_only_an_optimizer_with_momentum_reads_the_adapter_before_the_last(
    tmp_path: Path, optimizer: dict[str, Any], read: list[str]
) -> None:
    world = World(a_run_with(optimizer), tmp_path)
    world.work_until("aggregate-r4")
    opened: list[str] = []

    class RecordingStore(DirectoryStore):
        def open_reader(self, key: str) -> Any:
            opened.append(key)
            return super().open_reader(key)

    task = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r4-a0"])
    clock: Callable[[], float] = lambda: world.now  # noqa: E731
    aggregate(task, RecordingStore(tmp_path / "store"), clock)

    assert sorted(f"r{int(key.split('/')[1])}" for key in opened if "/global/" in key) == read
