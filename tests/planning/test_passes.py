"""The steps into which a site's samples are divided: those that its trainer makes, in forecasts and in words."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_profiles import GIB, SMOLLM2, a_site, a_spec, point, speeds

from fedpipe_operator.planning import plan_round
from fedpipe_operator.planning.passes import batches_of_a_pass, largest_step, samples_of_a_step, step_text, steps_of_passes
from fedpipe_trainer.contract import Plan
from fedpipe_trainer.data import compose_batches

SMALL: Final = SMOLLM2.model_copy(update={"layers": 6, "weights": SMOLLM2.weights[:24]})
MANY: Final = 640


def the_plan(samples: int, spec: dict[str, Any] | None = None, **changes: Any) -> Plan:
    """Of a site of so many samples that has memory for all of them at once, in a run of one round."""
    site = a_site(**({"base": SMALL, "memory_bytes": 64 * GIB, "up": 1e12, "train_samples": samples} | changes))
    sections = {"rounds": {"count": 1, "deadline": "2h"}} | (spec or {})
    return plan_round(a_spec(**sections), {"ward": site}, {}).plans.plans["ward"]


@given(st.integers(1, 400), st.integers(1, 40))
def test_a_pass_has_the_steps_that_the_trainer_composes(samples: int, batch: int) -> None:
    sizes = [len(one) for one in compose_batches([8] * samples, batch, seed=0)]

    assert batches_of_a_pass(samples, batch) == len(sizes)
    assert samples_of_a_step(samples, batch) == pytest.approx(sum(sizes) / len(sizes))
    assert largest_step(samples, batch) == max(sizes)
    assert step_text(samples, batch).startswith(" or ".join(str(size) for size in sorted(set(sizes))))


@given(st.integers(1, 400), st.integers(1, 40))
def test_the_largest_step_as_a_batch_divides_the_samples_into_the_same_steps(samples: int, batch: int) -> None:
    lengths = [8 + index % 50 for index in range(samples)]

    assert compose_batches(lengths, largest_step(samples, batch), seed=1) == compose_batches(lengths, batch, seed=1)


def test_passes_have_all_their_steps_and_one_that_is_begun_counts() -> None:
    assert steps_of_passes(3, 17, 16) == 6
    assert steps_of_passes(0.5, 64, 16) == 2
    assert steps_of_passes(0.6, 64, 16) == 3
    assert steps_of_passes(0.01, 64, 16) == 1
    assert steps_of_passes(0.1, 480, 16) == 3, "of 30 steps a tenth"
    assert steps_of_passes(1.1, 160, 16) == 11, "1.1 times 10 is 11.000000000000002"


@pytest.mark.parametrize(("samples", "epochs"), [(17, 3), (18, 10), (33, 4), (5, 5), (60, 3)])
def test_the_passes_of_the_spec_are_reached_where_time_allows(samples: int, epochs: int) -> None:
    spec = {"training": {"epochs": epochs}, "planning": {"bits": [16], "batchSizes": [16]}}
    plan = the_plan(samples, spec, points=speeds(1e6))

    assert plan.steps == epochs * len(compose_batches([8] * samples, 16, seed=0))
    assert plan.why[0] == f"limited by the spec: training.epochs is {epochs}"


def test_a_run_of_one_round_makes_three_passes_also_at_small_sites() -> None:
    plan = the_plan(17, {"planning": {"bits": [16], "batchSizes": [16]}}, points=speeds(100.0))

    assert plan.steps == 6
    assert any(one.startswith("6 steps of 8 or 9 samples (3 passes over 17 samples): all that ") for one in plan.why)


@pytest.mark.parametrize("mode", ["Auto", "UniformWeakest", "Manual"])
@pytest.mark.parametrize(("samples", "largest"), [(2, 2), (17, 9), (MANY, 16)])
def test_a_plan_has_the_samples_of_the_largest_step_at_once_and_memory_for_no_more(samples: int, largest: int, mode: str) -> None:
    given_plans = [{"bits": 16, "rank": 8, "steps": 3}] if mode == "Manual" else []
    planning: dict[str, Any] = {"mode": mode, "bits": [16], "batchSizes": [16], "ranks": [8], "plans": given_plans, "depth": "Full"}

    def plan(samples: int) -> Plan:
        return the_plan(samples, {"planning": planning, "training": {"gradientCheckpointing": False}})

    assert (plan(samples).batch_size, plan(samples).micro_batch) == (largest, largest)
    assert (plan(samples).forecast.memory_bytes < plan(MANY).forecast.memory_bytes) is (samples < MANY)


def test_a_site_of_two_samples_makes_one_pass_of_both_a_step() -> None:
    """A whole batch of 16 would not fit into its memory."""
    plan = the_plan(2, {"planning": {"bits": [16]}}, base=SMOLLM2, memory_bytes=2 * GIB)

    assert any(one.startswith("all 2 samples of a step are computed at once") for one in plan.why)


def test_passes_that_do_not_divide_a_step_are_told_as_the_most() -> None:
    slow_when_large = tuple(point(bits=16, batch=batch, speed=speed) for batch, speed in ((1, 100.0), (4, 400.0), (9, 50.0)))
    plan = the_plan(17, {"planning": {"bits": [16], "batchSizes": [4, 16]}}, points=slow_when_large)

    assert (plan.batch_size, plan.micro_batch) == (9, 4)
    assert "a step is computed in micro-batches of at most 4 samples: these are faster at this site" in plan.why
