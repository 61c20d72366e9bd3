"""How well a site used what it has: from a training's result, and absent where nothing was measured."""

import math
from typing import Any

import pytest

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.sites import Efficiency, efficiency_of
from fedpipe_trainer.contract import EnergySource, Measured, Outcome, RunRef, TrainResult

RUN = RunRef(namespace="n", name="r", uid="u")
USED = Measured(seconds={"load": 9.0, "train": 60.0, "transfer": 1.5}, uploaded_bytes=10_000, downloaded_bytes=20_000)


def a_training(used: Measured = USED, **changes: Any) -> AdmittedUpdate:
    """Ten steps with a fifth of padding."""
    fields: dict[str, Any] = {"steps": 10, "tokens": 8000, "padded_tokens": 2000, "tokens_per_second": 400.0, "mfu": 0.25}
    result = TrainResult(run=RUN, site="a", round=1, attempt=0, outcome=Outcome.COMPLETED, measured=used, **(fields | changes))
    return AdmittedUpdate(result)


def test_a_training_says_how_well_its_site_used_what_it_has() -> None:
    found = efficiency_of(a_training(energy_joules=4000.0, energy_source=EnergySource.RAPL))

    assert found == Efficiency(
        tokens_per_second=400.0,
        padded_tokens_per_second=500.0,
        mfu=0.25,
        tokens_per_joule=2.0,
        energy_source=EnergySource.RAPL,
        granularity=40.0,
        bits_per_second=160_000.0,
    )


def test_what_was_not_measured_is_absent_and_not_zero() -> None:
    assert efficiency_of(a_training(Measured(), tokens=0, padded_tokens=0, tokens_per_second=None, mfu=None)) == Efficiency()


def test_energy_without_a_source_is_of_an_earlier_trainer_and_a_source_without_energy_says_nothing() -> None:
    unnamed, without = efficiency_of(a_training(energy_joules=4000.0)), efficiency_of(a_training(energy_source=EnergySource.NVML))

    assert (unnamed.tokens_per_joule, unnamed.energy_source) == (2.0, None)
    assert (without.tokens_per_joule, without.energy_source) == (None, None)


def test_an_attempt_that_went_on_at_a_checkpoint_is_measured_by_its_own_steps() -> None:
    found = efficiency_of(a_training(resumed_from_step=5, energy_joules=1000.0))

    assert found.tokens_per_joule == 4.0, "half of the tokens"
    assert found.granularity is None, "it made half of the steps, and all transfers"


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e300])
def test_what_is_no_plausible_number_is_absent(value: float) -> None:
    """It decides nothing, so it is no reason to refuse an update."""
    used = USED.model_copy(update={"seconds": {"train": 60.0, "transfer": 1e-300}})
    update = AdmittedUpdate(a_training(used).model_copy(update={"tokens_per_second": value, "mfu": value, "energy_joules": 1e-300}))

    assert efficiency_of(update) == Efficiency()


def test_twice_the_steps_are_twice_the_granularity() -> None:
    twice = USED.model_copy(update={"seconds": USED.seconds | {"train": 120.0}})
    once, doubled = efficiency_of(a_training()).granularity, efficiency_of(a_training(twice)).granularity

    assert once is not None
    assert doubled == 2 * once
