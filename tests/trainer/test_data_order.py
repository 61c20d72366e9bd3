"""The order of the training data: different for every seed, round and site, the same for every attempt."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_training import Q0, ROWS, V1, a_training_task, make_runtime

from fedpipe_trainer.contract import Hyperparameters, TrainTask
from fedpipe_trainer.data import Batch, batch_of_step
from fedpipe_trainer.errors import Terminated
from fedpipe_trainer.recipes import train

ORDER_OF_WARD = ((11, 9, 32, 34), (17, 33, 35, 0))
"""The rows in the first two steps of the site ward in round 3 with seed 0."""


@pytest.fixture
def make_task(toy: Callable[[str], Path], tmp_path: Path) -> Callable[..., TrainTask]:
    return lambda ranks, **changed: a_training_task(toy("llama"), tmp_path, ranks, **changed)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of each training step, appended as the steps run."""
    recorded: list[list[int]] = []

    def record(batches: Sequence[Batch], step: int, seed: int) -> Batch:
        batch = batch_of_step(batches, step, seed)
        recorded.append(list(batch))
        return batch

    monkeypatch.setattr(train, "batch_of_step", record)
    return recorded


def order_of(task: TrainTask, folder: Path, batches: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    batches.clear()
    train.run(task, make_runtime(folder / "scratch"))
    return tuple(tuple(step) for step in batches)


def test_every_seed_round_and_site_has_a_different_order(make_task: Any, tmp_path: Path, batches: list[list[int]]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"round": 2},
        {"site": "b"},
        {"site": "b", "round": 2},
        {"hyperparameters": Hyperparameters(learning_rate=0.01, seed=1)},
    ]

    orders = [order_of(make_task({Q0: 4}, steps=10, **change), tmp_path, batches) for change in changes]

    assert len(set(orders)) == len(changes)
    assert all(sorted(row for step in order for row in step) == list(range(ROWS)) for order in orders), "an epoch contains every row once"


def test_every_attempt_at_a_round_has_the_same_order_whatever_the_plan(make_task: Any, tmp_path: Path, batches: list[list[int]]) -> None:
    changes: list[dict[str, Any]] = [{}, {"attempt": 3}, {"deadline_seconds": 900.0}]

    orders = {order_of(make_task({Q0: 4}, **change), tmp_path, batches) for change in changes}
    other_plan = order_of(make_task({Q0: 2, V1: 8}, bits=16), tmp_path, batches)

    assert orders == {other_plan}


def test_the_order_is_the_same_on_every_machine_and_version(make_task: Any, tmp_path: Path, batches: list[list[int]]) -> None:
    assert order_of(make_task({Q0: 4}, steps=2, round=3, site="ward"), tmp_path, batches) == ORDER_OF_WARD


def test_a_resumed_attempt_continues_with_the_data_of_the_stopped_one(make_task: Any, tmp_path: Path, batches: list[list[int]]) -> None:
    whole = order_of(make_task({Q0: 4}, steps=7), tmp_path, batches)
    checkpoint = (tmp_path / "store" / "checkpoint").as_uri()
    task = make_task({Q0: 4}, steps=7, checkpoint_read=checkpoint, checkpoint_write=checkpoint)
    batches.clear()
    stopping = make_runtime(tmp_path / "stopped")
    stopping.stop_requested = lambda: len(batches) == 3  # type: ignore[method-assign]  # after three steps

    with pytest.raises(Terminated, match="after step 3 of 7"):
        train.run(task, stopping)
    before = tuple(tuple(step) for step in batches)
    after = order_of(task.model_copy(update={"attempt": 1}), tmp_path, batches)

    assert before + after == whole


@pytest.mark.parametrize(("at_the_stop", "asked"), [(None, 1), (1, None), (1, 2)], ids=["retry", "found before", "found smaller before"])
def test_an_attempt_that_resumes_has_the_smaller_of_the_passes_of_the_checkpoint_and_those_that_it_is_asked_for(
    make_task: Any, tmp_path: Path, batches: list[list[int]], at_the_stop: int | None, asked: int | None
) -> None:
    """A drained node left a checkpoint with the plan's passes, with which the kernel then killed the attempt that went on from it."""
    checkpoint = (tmp_path / "store" / "checkpoint").as_uri()
    task = make_task({Q0: 4}, steps=5, checkpoint_read=checkpoint, checkpoint_write=checkpoint)
    stopping = make_runtime(tmp_path / "stopped")
    stopping.stop_requested = lambda: len(batches) == 3  # type: ignore[method-assign]
    with pytest.raises(Terminated):
        train.run(task.model_copy(update={"micro_batch": at_the_stop}), stopping)

    result = train.run(task.model_copy(update={"attempt": 1, "micro_batch": asked}), make_runtime(tmp_path / "again"))

    assert (result.resumed_from_step, result.micro_batch_size) == (3, 1)
