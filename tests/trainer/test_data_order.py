"""In which order training sees its data: unlike for every seed, round and site, the same for every attempt at one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_training import Q0, ROWS, V1, a_training_task, workplace

from fedpipe_trainer.contract import Hyperparameters, TrainTask
from fedpipe_trainer.data import batch_indices
from fedpipe_trainer.errors import Terminated
from fedpipe_trainer.recipes import train

ORDER_OF_WARD = ((29, 28, 5, 13), (19, 39, 23, 31))
"""The rows that the site ward sees in the first two steps of round 3 with seed 0."""


@pytest.fixture
def make_task(toy: Callable[[str], Path], tmp_path: Path) -> Callable[..., TrainTask]:
    return lambda ranks, **changed: a_training_task(toy("llama"), tmp_path, ranks, **changed)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows that each training step sees, as they come."""
    steps_seen: list[list[int]] = []

    def noted(n: int, batch_size: int, step: int, seed: int) -> list[int]:
        steps_seen.append(batch_indices(n, batch_size, step, seed))
        return steps_seen[-1]

    monkeypatch.setattr(train, "batch_indices", noted)
    return steps_seen


def order_of(task: TrainTask, folder: Path, shown: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    shown.clear()
    train.run(task, workplace(folder / "scratch"))
    return tuple(tuple(step) for step in shown)


def test_every_seed_round_and_site_sees_the_data_in_an_order_of_its_own(make_task: Any, tmp_path: Path, shown: list[list[int]]) -> None:
    places = [{}, {"round": 2}, {"site": "b"}, {"site": "b", "round": 2}, {"hyperparameters": Hyperparameters(learning_rate=0.01, seed=1)}]

    orders = [order_of(make_task({Q0: 4}, steps=10, **place), tmp_path, shown) for place in places]

    assert len(set(orders)) == len(places)
    assert all(sorted(row for step in order for row in step) == list(range(ROWS)) for order in orders), "an epoch is every row once"


def test_every_attempt_at_a_round_sees_the_data_in_the_same_order_whatever_the_plan(
    make_task: Any, tmp_path: Path, shown: list[list[int]]
) -> None:
    changes: list[dict[str, Any]] = [{}, {"attempt": 3}, {"deadline_seconds": 900.0}]

    orders = {order_of(make_task({Q0: 4}, **change), tmp_path, shown) for change in changes}
    other_plan = order_of(make_task({Q0: 2, V1: 8}, bits=16), tmp_path, shown)

    assert orders == {other_plan}


def test_the_order_is_the_one_that_every_machine_and_version_has(make_task: Any, tmp_path: Path, shown: list[list[int]]) -> None:
    assert order_of(make_task({Q0: 4}, steps=2, round=3, site="ward"), tmp_path, shown) == ORDER_OF_WARD


def test_an_attempt_that_goes_on_sees_what_the_stopped_one_would_have_seen(make_task: Any, tmp_path: Path, shown: list[list[int]]) -> None:
    whole = order_of(make_task({Q0: 4}, steps=7), tmp_path, shown)
    checkpoint = (tmp_path / "store" / "checkpoint").as_uri()
    task = make_task({Q0: 4}, steps=7, checkpoint_read=checkpoint, checkpoint_write=checkpoint)
    shown.clear()
    stopping = workplace(tmp_path / "stopped")
    stopping.stop_requested = lambda: len(shown) == 3  # type: ignore[method-assign]  # after three steps

    with pytest.raises(Terminated, match="after step 3 of 7"):
        train.run(task, stopping)
    before = tuple(tuple(step) for step in shown)
    after = order_of(task.model_copy(update={"attempt": 1}), tmp_path, shown)

    assert before + after == whole
