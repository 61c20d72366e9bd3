"""Tests that need a GPU: running out of its memory, measuring it, and dividing steps between two (`make gpu`)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_training import Q0, V1, a_training_task, make_runtime

from fedpipe_trainer import device
from fedpipe_trainer.contract import TrainResult, TrainTask
from fedpipe_trainer.model import clear_cache
from fedpipe_trainer.recipes import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible: use `make gpu`")

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs are visible")

MB = 10**6
MANY = 2048


@pytest.fixture
def make_task(toy: Callable[[str], Path], tmp_path: Path) -> Callable[..., TrainTask]:
    return lambda **changed: a_training_task(toy("llama"), tmp_path, {Q0: 4, V1: 4}, **changed)


@pytest.fixture
def limit_memory() -> Iterator[Callable[[int], None]]:
    """A function that limits this process to a number of bytes of GPU memory until the test ends."""
    total = torch.cuda.get_device_properties(0).total_memory
    yield lambda allowed: torch.cuda.set_per_process_memory_fraction(allowed / total)
    torch.cuda.set_per_process_memory_fraction(1.0)
    clear_cache()


def run_training(task: TrainTask, folder: Path) -> TrainResult:
    return train.run(task, make_runtime(folder / "scratch"))


def with_batch(task: TrainTask, size: int) -> TrainTask:
    return task.model_copy(update={"plan": task.plan.model_copy(update={"batch_size": size})})


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_batch_that_does_not_fit_in_memory_is_halved_and_trains_the_same(
    make_task: Any, tmp_path: Path, limit_memory: Any, bits: int
) -> None:
    task = with_batch(make_task(bits=bits, steps=3), MANY)
    unlimited = run_training(task, tmp_path)

    limit_memory(unlimited.measured.peak_memory_bytes * 6 // 10)
    result = run_training(task, tmp_path)

    assert unlimited.micro_batch_size == MANY
    assert result.micro_batch_size < MANY
    assert result.measured.peak_memory_bytes < unlimited.measured.peak_memory_bytes
    assert result.losses == pytest.approx(unlimited.losses, rel=0.01)


def test_a_peak_belongs_to_its_task_only(make_task: Any, tmp_path: Path) -> None:
    before = run_training(make_task(), tmp_path)
    large = run_training(with_batch(make_task(), MANY), tmp_path)
    after = run_training(make_task(), tmp_path)

    assert large.measured.peak_memory_bytes > 100 * MB + before.measured.peak_memory_bytes
    assert after.measured.peak_memory_bytes < 20 * MB + before.measured.peak_memory_bytes


def test_the_memory_of_a_task_is_that_of_the_device_without_the_context(make_task: Any, tmp_path: Path) -> None:
    result = run_training(make_task(), tmp_path)

    properties = torch.cuda.get_device_properties(0)
    assert result.measured.device == properties.name
    assert 0 < device.memory_bytes(device.choose(), limit=1) < properties.total_memory


@two_gpus
@pytest.mark.parametrize("bits", [4, 32])
def test_two_gpus_give_the_update_of_one(make_task: Any, tmp_path: Path, bits: int) -> None:
    updates = []
    for processes in (1, 2):
        result = run_training(make_task(bits=bits, steps=4, micro_batch=2, processes=processes), tmp_path)
        updates.append(load_file(tmp_path / "store" / "adapter.safetensors"))

    one, two = updates
    assert result.energy_joules is None or result.energy_joules > 0
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


@two_gpus
def test_a_gpu_that_runs_out_of_memory_makes_both_compute_fewer_samples_at_once(make_task: Any, tmp_path: Path, limit_memory: Any) -> None:
    task = with_batch(make_task(steps=3, processes=2), 2 * MANY)
    unlimited = run_training(task, tmp_path)

    limit_memory(unlimited.measured.peak_memory_bytes * 6 // 10)
    result = run_training(task, tmp_path)

    assert result.micro_batch_size < unlimited.micro_batch_size
    assert result.losses == pytest.approx(unlimited.losses, rel=0.01)
