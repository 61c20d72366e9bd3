"""What only a GPU shows: its memory runs out and is counted (`make gpu`)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import Q0, V1, a_training_task, workplace

from fedpipe_trainer import device
from fedpipe_trainer.contract import TrainResult, TrainTask
from fedpipe_trainer.model import release
from fedpipe_trainer.recipes import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, or it is hidden: `make gpu` shows it")

MB = 10**6
MANY = 2048


@pytest.fixture
def make_task(toy: Callable[[str], Path], tmp_path: Path) -> Callable[..., TrainTask]:
    return lambda **changed: a_training_task(toy("llama"), tmp_path, {Q0: 4, V1: 4}, **changed)


@pytest.fixture
def narrow() -> Iterator[Callable[[int], None]]:
    """A function that leaves this process so many bytes of the GPU until the test ends."""
    whole = torch.cuda.get_device_properties(0).total_memory
    yield lambda allowed: torch.cuda.set_per_process_memory_fraction(allowed / whole)
    torch.cuda.set_per_process_memory_fraction(1.0)
    release()


def trained(task: TrainTask, folder: Path) -> TrainResult:
    return train.run(task, workplace(folder / "scratch"))


def with_batch(task: TrainTask, size: int) -> TrainTask:
    return task.model_copy(update={"plan": task.plan.model_copy(update={"batch_size": size})})


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_batch_that_its_memory_cannot_hold_is_halved_and_trains_the_same(make_task: Any, tmp_path: Path, narrow: Any, bits: int) -> None:
    task = with_batch(make_task(bits=bits, steps=3), MANY)
    wide = trained(task, tmp_path)

    narrow(wide.measured.peak_memory_bytes * 6 // 10)
    result = trained(task, tmp_path)

    assert wide.micro_batch_size == MANY
    assert result.micro_batch_size < MANY
    assert result.measured.peak_memory_bytes < wide.measured.peak_memory_bytes
    assert result.losses == pytest.approx(wide.losses, rel=0.01)


def test_a_peak_is_of_its_own_task_alone(make_task: Any, tmp_path: Path) -> None:
    alone = trained(make_task(), tmp_path)
    large = trained(with_batch(make_task(), MANY), tmp_path)
    after = trained(make_task(), tmp_path)

    assert large.measured.peak_memory_bytes > 100 * MB + alone.measured.peak_memory_bytes
    assert after.measured.peak_memory_bytes < 20 * MB + alone.measured.peak_memory_bytes


def test_a_task_may_use_what_the_device_has_without_the_context(make_task: Any, tmp_path: Path) -> None:
    result = trained(make_task(), tmp_path)

    whole = torch.cuda.get_device_properties(0)
    assert result.measured.device == whole.name
    assert 0 < device.memory_bytes(device.choose(), limit=1) < whole.total_memory
