"""What every mode must keep for every fleet: plans fit, each site has a plan or a reason, the order of the sites changes nothing."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from site_profiles import GIB, MPNET, SMOLLM2, a_site, a_spec, point

from fedpipe_operator.api import FineTuneSpec, PlanningMode, parse_duration
from fedpipe_operator.planning import Plans, Step, plan_round, training_peak
from fedpipe_operator.planning.passes import largest_step
from fedpipe_operator.planning.sizes import uniform_ranks
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Bits

BITS: Final[tuple[Bits, ...]] = (4, 8, 16, 32)
GENERATED: Final = settings(deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
"""Fleets are not shrunk: that takes minutes."""
# Fewer layers than the real ones: the shape is the same and planning takes less time.
BASE: Final = MPNET.model_copy(update={"layers": 4, "weights": MPNET.weights[:16]})

points = st.builds(
    point,
    bits=st.sampled_from(BITS),
    batch=st.sampled_from((1, 4, 8)),
    length=st.sampled_from((64, 128)),
    speed=st.floats(10, 5000),
    peak=st.floats(5e8, 8e9),
)
sites = st.builds(
    a_site,
    device=st.sampled_from(("cpu", "NVIDIA A10")),
    memory_bytes=st.integers(GIB // 2, 16 * GIB),
    up=st.floats(1e5, 1e9),
    down=st.floats(1e5, 1e9),
    base=st.just(BASE),
    labels=st.just(("a", "b")),
    train_samples=st.integers(0, 5000),
    mean_tokens=st.floats(1, 128),
    longest_tokens=st.integers(0, 512),
    load_peak_bytes=st.dictionaries(st.sampled_from(BITS), st.integers(10**8, 4 * 10**9)),
    base_bytes=st.dictionaries(st.sampled_from(BITS), st.integers(10**7, 10**9)),
    points=st.lists(points, max_size=6).map(tuple),
    unsupported=st.dictionaries(st.sampled_from(BITS), st.just("no kernel"), max_size=2),
    out_of_memory=st.dictionaries(st.sampled_from(BITS), st.integers(GIB // 2, 16 * GIB), max_size=2),
    has_cache=st.booleans(),
)
fleets = st.lists(sites, min_size=1, max_size=4).map(
    lambda drawn: {f"site-{index}": replace(site, name=f"site-{index}") for index, site in enumerate(drawn)}
)
specs = st.builds(
    lambda deadline, max_steps, epochs: a_spec(
        rounds={"deadline": deadline},
        training={"epochs": epochs, "maxSteps": max_steps},
        planning={"bits": BITS, "batchSizes": (1, 4, 16), "ranks": (0, 4, 32)},
    ),
    st.sampled_from(("30s", "5m", "1h")),
    st.sampled_from((None, 1, 40)),
    st.sampled_from((None, 0.1, 3.0)),
)
computed = st.sampled_from([mode for mode in PlanningMode if mode is not PlanningMode.MANUAL])


def in_mode(spec: FineTuneSpec, mode: PlanningMode, **changes: Any) -> FineTuneSpec:
    return spec.model_copy(update={"planning": spec.planning.model_copy(update={"mode": mode} | changes)})


def plans_of(spec: FineTuneSpec, fleet: Mapping[str, SiteProfile]) -> Plans:
    return plan_round(spec, fleet, {}).plans


@settings(GENERATED, max_examples=60)
@given(specs, fleets, computed)
def test_every_site_has_either_a_plan_that_fits_or_a_reason(
    spec: FineTuneSpec, fleet: Mapping[str, SiteProfile], mode: PlanningMode
) -> None:
    plans = plans_of(in_mode(spec, mode), fleet)

    assert set(plans.plans) | set(plans.excluded) == set(fleet)
    assert not set(plans.plans) & set(plans.excluded)
    assert all(plans.excluded.values())
    for name, plan in plans.plans.items():
        assert plan.forecast.memory_bytes <= 0.85 * fleet[name].memory_bytes + 1
        assert plan.forecast.seconds <= 0.8 * parse_duration(spec.rounds.deadline) * (1 + 1e-6)
        assert plan.forecast.step_seconds <= plan.forecast.seconds
        assert plan.steps <= (spec.training.max_steps or plan.steps)
        batches = (4, 16) if mode is PlanningMode.AUTO else (16,)
        assert plan.batch_size in {largest_step(fleet[name].train_samples, batch) for batch in batches}
        assert plan.bits in spec.planning.bits
        assert plan.bits not in fleet[name].unsupported
        assert fleet[name].out_of_memory.get(plan.bits, 0) <= 0.85 * fleet[name].memory_bytes + 1
        assert set(plan.ranks.values()) <= set(spec.planning.ranks)
        assert any(plan.ranks.values())
        assert all(weight.layer >= plan.lowest_layer for weight in BASE.weights if plan.ranks[weight.name])
        assert all(plan.why)


@settings(GENERATED, max_examples=40)
@given(specs, fleets, computed, st.randoms(use_true_random=False))
def test_the_order_of_the_sites_changes_no_plan(
    spec: FineTuneSpec, fleet: dict[str, SiteProfile], mode: PlanningMode, random: Random
) -> None:
    shuffled = list(fleet.items())
    random.shuffle(shuffled)

    assert plans_of(in_mode(spec, mode), dict(shuffled)) == plans_of(in_mode(spec, mode), fleet)


@settings(GENERATED, max_examples=40)
@given(specs, sites, computed)
def test_a_site_with_equal_figures_gets_an_equal_plan(spec: FineTuneSpec, site: SiteProfile, mode: PlanningMode) -> None:
    plans = plans_of(in_mode(spec, mode), {name: replace(site, name=name) for name in ("a", "b")})

    assert (plans.plans.get("a"), plans.excluded.get("a")) == (plans.plans.get("b"), plans.excluded.get("b"))


@settings(GENERATED, max_examples=50)
@given(sites, st.sampled_from(BITS), st.integers(1, 16), st.integers(8, 512), st.integers(0, 32))
def test_more_tokens_and_higher_ranks_never_need_less_memory(site: SiteProfile, bits: Bits, batch: int, length: int, rank: int) -> None:
    def peak(batch: int, length: int, rank: int) -> float:
        return training_peak(site, bits=bits, step=Step(batch, length), ranks=uniform_ranks(site.base.weights, rank))

    usual = peak(batch, length, rank)

    assert usual <= peak(batch + 1, length, rank)
    assert usual <= peak(batch, length + 1, rank)
    assert usual <= peak(batch, length, rank + 1)


@settings(GENERATED, max_examples=50)
@given(st.sampled_from((SMOLLM2, MPNET)), st.integers(1, 16), st.integers(8, 512), st.integers(0, 32))
def test_on_a_gpu_without_measured_peaks_more_bits_never_need_less(base: BaseModelFacts, batch: int, length: int, rank: int) -> None:
    site = a_site(device="NVIDIA A10", base=base, labels=("a", "b"))
    peaks = [training_peak(site, bits=bits, step=Step(batch, length), ranks=uniform_ranks(base.weights, rank)) for bits in BITS]

    assert peaks == sorted(peaks)
