"""Profiles with figures that the contract allows and no honest machine has: they are their own site's problem, and no other's."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from site_profiles import GIB, MPNET, a_site, a_spec, point

from fedpipe_operator.api import PlanningMode
from fedpipe_operator.planning import History, Step, plan_round
from fedpipe_operator.planning.calibration import Observation, calibrate
from fedpipe_operator.planning.memory_model import activation_bytes
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits, GenerationSpeed, Throughput

BITS: Final[tuple[Bits, ...]] = (4, 8, 16, 32)
BASE: Final = MPNET.model_copy(update={"layers": 4, "weights": MPNET.weights[:16], "head": {}})
HONEST: Final = a_site("honest", base=BASE, train_samples=1000, memory_bytes=16 * GIB)
IMPOSSIBLE: Final = (point(bits=16, batch=1, length=40, peak=1),)
"""A peak of one byte, so precise that squares of other terms vanish beside it."""


def one_of(*figures: float) -> st.SearchStrategy[Any]:
    return st.sampled_from(figures)


rates = one_of(1e-9, 1.0, 1e30)
sizes = one_of(0, 1, 10**9, 10**18)
seconds = one_of(0.0, 1e7)
points = st.builds(
    Throughput,
    bits=st.sampled_from(BITS),
    batchSize=one_of(1, 4, 4096),
    length=one_of(1, 40, 128, 10**9),
    tokensPerSecond=rates,
    evaluateTokensPerSecond=rates,
    peakMemoryBytes=sizes,
    lowestLayer=one_of(0, 0, 2, 10_000),
    gradientCheckpointing=st.booleans(),
)
extreme_sites = st.builds(
    a_site,
    st.just("extreme"),
    device=st.sampled_from(("cpu", "NVIDIA A10")),
    base=st.just(BASE),
    points=st.lists(points, min_size=1, max_size=4).map(tuple),
    up=rates,
    down=rates,
    memory_bytes=one_of(1, 10**9, 10**18),
    train_samples=one_of(1, 10**6, 10**12),
    validation_samples=one_of(0, 10**12),
    mean_tokens=one_of(0.0, 64.0, 1e9),
    longest_tokens=one_of(0, 64, 10**9),
    setup_seconds=seconds,
    runtime_bytes=sizes,
    load_seconds=seconds.map(lambda value: {16: value}),
    first_step_seconds=seconds.map(lambda value: {16: value}),
    base_bytes=sizes.map(lambda value: {16: value}),
    load_peak_bytes=sizes.map(lambda value: {16: value}),
    out_of_memory=sizes.map(lambda value: {16: value}),
    rank=one_of(0, 8, 1024),
    has_cache=st.booleans(),
    generation=st.sampled_from(({}, {16: GenerationSpeed(prompt_seconds=1e7, token_seconds=1e7, sequence_token_seconds=1e7)})),
)
specs = st.builds(
    lambda mode, deadline, count, epochs: a_spec(
        planning={"mode": mode, "bits": BITS, "plans": [{"bits": 16, "rank": 8, "steps": 10**6}] if mode is PlanningMode.MANUAL else []},
        rounds={"deadline": deadline, "count": count},
        training={"epochs": epochs},
    ),
    st.sampled_from(PlanningMode),
    st.sampled_from(("10m", "99999999h")),
    st.sampled_from((1, 1000)),
    st.sampled_from((None, 1e-9, 1000.0)),
)
histories = st.builds(History, round=one_of(1, 5), adapter_bytes=st.sampled_from((None, 0, 10**9)))


def sites(*some: SiteProfile) -> dict[str, SiteProfile]:
    return {site.name: site for site in some}


@settings(deadline=None, max_examples=150, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@example(a_spec(planning={"bits": [16]}), replace(HONEST, name="extreme", runtime_bytes=0, points=IMPOSSIBLE), History())
@given(specs, extreme_sites, histories)
def test_a_site_of_extreme_figures_has_a_plan_or_a_reason_and_others_are_planned_beside_it(
    spec: Any, extreme: SiteProfile, history: History
) -> None:
    made = plan_round(spec, sites(HONEST, extreme), {}, history).plans

    assert made.plans.keys() | made.excluded.keys() == {"honest", "extreme"}
    if spec.planning.mode in (PlanningMode.AUTO, PlanningMode.MANUAL):
        assert "honest" in made.plans, made.excluded
    for plan in made.plans.values():
        assert math.isfinite(plan.forecast.seconds)


@pytest.mark.parametrize("mode", [mode for mode in PlanningMode if mode is not PlanningMode.MANUAL])
@pytest.mark.parametrize("figures", [{"setup_seconds": math.nan}, {"setup_seconds": math.inf}, {"up": 0.0}, {"up": math.nan}])
def test_a_site_whose_forecast_is_no_number_is_excluded_with_what_to_do_and_changes_no_other_plan(
    mode: PlanningMode, figures: Mapping[str, float]
) -> None:
    spec = a_spec(planning={"mode": mode, "bits": [16]})

    made = plan_round(spec, sites(HONEST, replace(HONEST, name="extreme", **figures)), {}).plans

    assert made.plans == plan_round(spec, sites(HONEST), {}).plans.plans
    assert made.excluded.keys() == {"extreme"}
    assert made.excluded["extreme"].startswith("no forecast can be made with the figures of its profile (")
    assert "change its EdgeSite's nodeSelector, capacity.cpu or data, after which it is profiled again" in made.excluded["extreme"]


@pytest.mark.parametrize("length", range(1, 600, 7))
def test_the_most_precise_peaks_are_met_by_the_fit(length: int) -> None:
    """Where their squares swallow those of the prior, too."""
    activations = 1e7 * length

    fit = calibrate(Observation(peak=1.0, known=1e9, activations=activations) for _ in range(1000))

    assert 1e9 + fit.offset + fit.factor * activations == pytest.approx(1.0, abs=1e-3)


def test_no_peak_is_less_than_what_the_runtime_takes_alone() -> None:
    def plan(peak: int) -> object:
        site = a_site(base=BASE, points=(point(bits=16, batch=1, speed=400.0, peak=peak),), runtime_bytes=GIB)
        return plan_round(a_spec(planning={"bits": [16]}), sites(site), {}).plans.plans

    assert plan(1) == plan(GIB)


def test_the_activations_of_the_longest_batch_that_a_profile_may_have_are_a_number_of_bytes() -> None:
    longest = {
        name: max(bound.le for bound in Throughput.model_fields[name].metadata if hasattr(bound, "le")) for name in ("batch_size", "length")
    }
    many, few = (activation_bytes(MPNET, element=4, step=Step(batch, longest["length"])) for batch in (longest["batch_size"], 1))

    assert many == pytest.approx(longest["batch_size"] * few)
    assert many > 1e19
