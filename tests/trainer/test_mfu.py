"""Model FLOPs utilisation: FLOP per second over the device's measured peak."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_training import CAUSAL

from fedpipe_trainer.mfu import model_flops_utilisation
from fedpipe_trainer.model import Base, load

PEAK = 1e12


@pytest.fixture
def base(toy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Base:
    """A toy on a device of a known peak."""
    monkeypatch.setattr("fedpipe_trainer.device.peak_flops", lambda _device, dtype: PEAK if dtype is torch.float32 else 0.0)
    return load(toy("llama"), 32, CAUSAL)


def test_half_of_the_peak_is_a_half(base: Base) -> None:
    assert model_flops_utilisation(base, 2e12, 4.0) == 0.5


@pytest.mark.parametrize(("flop", "seconds"), [(None, 1.0), (1e12, 0.0)])
def test_without_a_count_or_a_time_nothing_is_told(base: Base, flop: float | None, seconds: float) -> None:
    assert model_flops_utilisation(base, flop, seconds) is None
