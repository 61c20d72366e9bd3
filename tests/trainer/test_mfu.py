"""Model FLOPs utilisation: the FLOP of a token by depth and cache, relative to a step of the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import CAUSAL

from fedpipe_trainer.contract import Objective, Seq2SeqLM
from fedpipe_trainer.mfu import model_flops_utilisation
from fedpipe_trainer.model import Base, load, lower_parameters, matrix_parameters

Toy = Callable[[str], Path]
PEAK = 1e12


@pytest.fixture
def base(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A toy of two layers on a device of a known peak."""
    monkeypatch.setattr("fedpipe_trainer.device.peak_flops", lambda _device, dtype: PEAK if dtype is torch.float32 else 0.0)
    return load(toy("llama"), 32, CAUSAL)


def utilisation(base: Base, objective: Objective = CAUSAL, **changes: Any) -> float | None:
    return model_flops_utilisation(base, objective, 1000.0, **changes)


def test_a_step_of_the_whole_model_has_four_flop_a_parameter_and_token(base: Base) -> None:
    assert utilisation(base) == pytest.approx(4 * matrix_parameters(base.model) * 1000 / PEAK)


@pytest.mark.parametrize(("computed", "flop"), [(1.0, 2.0), (0.5, 1.0), (0.0, 0.0)])
def test_below_the_lowest_trained_layer_only_the_forward_passes_count_that_were_computed(base: Base, computed: float, flop: float) -> None:
    lower = lower_parameters(base.model, 1)

    expected = (4 * (matrix_parameters(base.model) - lower) + flop * lower) * 1000 / PEAK

    assert lower > 0
    assert utilisation(base, lowest_layer=1, computed=computed) == pytest.approx(expected)


def test_of_two_stacks_a_token_passes_through_one_so_nothing_is_told(base: Base) -> None:
    assert utilisation(base, Seq2SeqLM(prompt="{a}", response="{b}")) is None
