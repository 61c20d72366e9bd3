"""Properties of every fleet: plans fit, deadlines are met, more memory never makes a plan worse, order does not matter."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from site_profiles import GIB, MPNET, SMOLLM2, a_site, a_spec, point

from fedpipe_operator.api import FineTuneSpec, PlanningMode, parse_duration
from fedpipe_operator.planning import Plans, plan_round, predict_peak
from fedpipe_operator.planning.candidates import requested_steps
from fedpipe_operator.planning.sizes import uniform_ranks
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Bits, Plan

BITS: tuple[Bits, ...] = (4, 8, 16, 32)
# Fewer layers than the real ones: the shape is the same and planning takes less time.
BASES = tuple(base.model_copy(update={"layers": 4, "weights": base.weights[:16]}) for base in (SMOLLM2, MPNET))

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
    base=st.sampled_from(BASES),
    labels=st.just(("a", "b")),
    train_samples=st.integers(1, 5000),
    mean_tokens=st.floats(1, 128),
    longest_tokens=st.integers(0, 512),
    load_peak_bytes=st.dictionaries(st.sampled_from(BITS), st.integers(10**8, 4 * 10**9)),
    base_bytes=st.dictionaries(st.sampled_from(BITS), st.integers(10**7, 10**9)),
    points=st.lists(points, min_size=1, max_size=6).map(tuple),
    unsupported=st.dictionaries(st.sampled_from(BITS), st.just("no kernel"), max_size=2),
)
fleets = st.lists(sites, min_size=1, max_size=4).map(
    lambda drawn: {f"site-{index}": replace(site, name=f"site-{index}") for index, site in enumerate(drawn)}
)
deadlines = st.sampled_from(("30s", "5m", "1h"))
specs = st.builds(
    lambda deadline, max_steps, epochs: a_spec(
        rounds={"deadline": deadline},
        training={"epochs": epochs, "maxSteps": max_steps},
        planning={"bits": BITS, "batchSizes": (1, 4, 16), "ranks": (0, 4, 32)},
    ),
    deadlines,
    st.sampled_from((None, 1, 40)),
    st.floats(0.1, 3),
)


def in_mode(spec: FineTuneSpec, mode: PlanningMode) -> FineTuneSpec:
    return spec.model_copy(update={"planning": spec.planning.model_copy(update={"mode": mode})})


def score(spec: FineTuneSpec, site: SiteProfile, plan: Plan | None) -> tuple[int, int, int, int]:
    """The lexicographic order by which plans are chosen; no plan is the worst."""
    if plan is None:
        return (-1, 0, 0, 0)
    fraction = plan.steps / requested_steps(spec, site.train_samples, plan.batch_size)
    return (int(20 * fraction), plan.bits, plan.batch_size, max(plan.ranks.values()))


def plans_of(spec: FineTuneSpec, fleet: Mapping[str, SiteProfile]) -> Plans:
    return plan_round(spec, fleet, {})


@settings(max_examples=60, deadline=None)
@given(specs, fleets, st.sampled_from(PlanningMode))
def test_every_site_has_either_a_plan_that_fits_or_a_reason(
    spec: FineTuneSpec, fleet: Mapping[str, SiteProfile], mode: PlanningMode
) -> None:
    plans = plans_of(in_mode(spec, mode), fleet)

    assert set(plans.plans) | set(plans.excluded) == set(fleet)
    assert not set(plans.plans) & set(plans.excluded)
    assert all(plans.excluded.values())
    for name, plan in plans.plans.items():
        assert plan.forecast.memory_bytes <= fleet[name].memory_bytes
        assert plan.forecast.seconds <= parse_duration(spec.rounds.deadline)
        assert 1 <= plan.steps <= requested_steps(spec, fleet[name].train_samples, plan.batch_size)
        assert plan.bits in spec.planning.bits
        assert plan.bits not in fleet[name].unsupported
        assert any(plan.ranks.values())
        assert plan.why


@settings(max_examples=40, deadline=None)
@given(specs, sites, st.integers(0, 8 * GIB))
def test_more_memory_never_makes_a_plan_worse(spec: FineTuneSpec, site: SiteProfile, more: int) -> None:
    less_plan = plans_of(spec, {"ward": site}).plans.get("ward")
    more_plan = plans_of(spec, {"ward": replace(site, memory_bytes=site.memory_bytes + more)}).plans.get("ward")

    assert score(spec, site, less_plan) <= score(spec, site, more_plan)


@settings(max_examples=30, deadline=None)
@given(specs, fleets)
def test_uniform_is_nowhere_better_than_auto(spec: FineTuneSpec, fleet: Mapping[str, SiteProfile]) -> None:
    uniform = plans_of(in_mode(spec, PlanningMode.UNIFORM), fleet).plans
    auto = plans_of(spec, fleet).plans

    assert set(uniform) <= set(auto)
    for name, plan in uniform.items():
        assert score(spec, fleet[name], plan) <= score(spec, fleet[name], auto[name])
    assert len({(plan.bits, plan.batch_size, *set(plan.ranks.values())) for plan in uniform.values()}) <= 1


@settings(max_examples=30, deadline=None)
@given(specs, fleets, st.randoms(use_true_random=False), st.sampled_from(PlanningMode))
def test_the_order_of_the_sites_does_not_matter(
    spec: FineTuneSpec, fleet: dict[str, SiteProfile], random: Random, mode: PlanningMode
) -> None:
    names = list(fleet)
    random.shuffle(names)

    assert plans_of(in_mode(spec, mode), {name: fleet[name] for name in names}) == plans_of(in_mode(spec, mode), fleet)


@settings(max_examples=100, deadline=None)
@given(sites, st.sampled_from(BITS), st.integers(1, 16), st.integers(8, 512), st.integers(0, 32))
def test_a_larger_batch_length_or_rank_never_needs_less_memory(site: SiteProfile, bits: Bits, batch: int, length: int, rank: int) -> None:
    def peak(batch: int, length: int, rank: int) -> int:
        return predict_peak(site, bits=bits, batch=batch, length=length, ranks=uniform_ranks(site.base.weights, rank))

    usual = peak(batch, length, rank)

    assert usual <= peak(batch + 1, length, rank)
    assert usual <= peak(batch, length + 1, rank)
    assert usual <= peak(batch, length, rank + 1)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from((SMOLLM2, MPNET)), st.integers(1, 16), st.integers(8, 512), st.integers(0, 32))
def test_on_a_gpu_without_measured_peaks_more_bits_never_need_less(base: BaseModelFacts, batch: int, length: int, rank: int) -> None:
    site = a_site(device="NVIDIA A10", base=base, labels=("a", "b"))
    peaks = [predict_peak(site, bits=bits, batch=batch, length=length, ranks=uniform_ranks(base.weights, rank)) for bits in BITS]

    assert peaks == sorted(peaks)
