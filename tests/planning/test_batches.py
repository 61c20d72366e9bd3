"""The batch of each site: slow sites take smaller ones, within what the spec, the learning rate and the device allow."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.site_profiles import a_site, a_spec, point, speeds

from fedpipe_operator.api import parse_duration
from fedpipe_operator.planning import plan_round
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Plan

LONG = {"deadline": "8h"}


def plans_of(*sites: SiteProfile, batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)) -> dict[str, Plan]:
    spec = a_spec(planning={"bits": [16], "batchSizes": batch_sizes}, rounds=LONG)
    return plan_round(spec, {site.name: site for site in sites}, {}).plans.plans


def a_tier(slower: float) -> SiteProfile:
    return a_site(f"slower-{slower:g}", points=speeds(4000.0 / slower), train_samples=50_000)


def test_a_site_that_is_slower_takes_a_smaller_batch_down_to_a_quarter() -> None:
    plans = plans_of(*(a_tier(slower) for slower in (1, 2, 4, 8)))

    assert {name: plan.batch_size for name, plan in plans.items()} == {"slower-1": 16, "slower-2": 8, "slower-4": 4, "slower-8": 4}


def test_so_slow_sites_take_nearly_as_many_steps_as_the_fastest() -> None:
    plans = plans_of(*(a_tier(slower) for slower in (1, 2, 4)))
    steps = {name: plan.steps for name, plan in plans.items()}

    assert min(steps.values()) > 0.7 * max(steps.values())


def test_equal_sites_keep_the_batch_of_the_spec() -> None:
    assert {plan.batch_size for plan in plans_of(a_tier(1), replace(a_tier(1), name="twin")).values()} == {16}


def test_a_single_batch_size_in_the_spec_is_obeyed() -> None:
    assert {plan.batch_size for plan in plans_of(a_tier(1), a_tier(4), batch_sizes=(16,)).values()} == {16}


def test_a_device_that_is_no_faster_with_small_batches_keeps_the_large_one() -> None:
    """A step of 4 samples takes as long as one of 16."""
    flat = tuple(point(bits=16, batch=batch, speed=30.0 * batch) for batch in (1, 4, 16))
    plans = plans_of(a_tier(1), a_site("flat", points=flat, train_samples=50_000))

    assert plans["flat"].batch_size == 16


@pytest.mark.parametrize("speed", [300.0, 600.0, 1000.0, 4000.0])
def test_a_site_of_few_samples_takes_more_steps_on_them_however_fast_it_is(speed: float) -> None:
    """Otherwise a faster one, which has time for all passes over its data, would take fewer steps than a slower one."""
    few = plans_of(a_tier(1), a_site("few", points=speeds(speed), train_samples=160))["few"]

    assert few.batch_size == 4
    assert few.steps * few.batch_size <= 3 * 160


@pytest.mark.parametrize(("samples", "batch"), [(2, 2), (5, 5), (17, 4)])
def test_a_quarter_of_the_batch_is_of_samples_that_a_step_has(samples: int, batch: int) -> None:
    """With a batch of 4, 5 samples would make steps of 2 and 3; 17 make steps of 3 and 4."""
    assert plans_of(a_tier(1), a_site("few", points=speeds(1000.0), train_samples=samples))["few"].batch_size == batch


def test_a_smaller_batch_is_explained() -> None:
    plan = plans_of(a_tier(1), a_tier(4))["slower-4"]

    assert any(
        reason.startswith("a step has 4 samples instead of 16: the site is slow or has few samples, so that it takes smaller steps")
        for reason in plan.why
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1, 30), min_size=1, max_size=5), st.sampled_from(["2m", "20m", "8h"]))
def test_every_batch_is_one_of_the_spec_and_needs_no_more_memory_or_time_than_the_round_has(slower: list[float], deadline: str) -> None:
    sites = {f"site-{index}": replace(a_tier(factor), name=f"site-{index}") for index, factor in enumerate(slower)}
    spec = a_spec(planning={"bits": [16], "batchSizes": [2, 4, 16]}, rounds={"deadline": deadline})

    plans = plan_round(spec, sites, {}).plans.plans

    for name, plan in plans.items():
        assert plan.batch_size in {4, 16}
        assert plan.micro_batch <= plan.batch_size
        assert plan.forecast.memory_bytes <= 0.85 * sites[name].memory_bytes
        assert plan.forecast.seconds <= 0.8 * parse_duration(deadline) * (1 + 1e-6)


def test_more_memory_is_no_gain_where_memory_does_not_bind_whatever_the_batch() -> None:
    """A site that is 1.45 times slower takes more steps of 8 samples than the fastest takes of 16."""
    plans = plans_of(a_tier(1), a_tier(1.45))
    fast, slow = plans["slower-1"], plans["slower-1.45"]

    assert (slow.batch_size, slow.limited_by) == (8, "Time")
    assert slow.steps > fast.steps
    assert "25 % more download bandwidth, memory or upload bandwidth would bring less than 1 %" in slow.why[0]
    assert any(f"another site takes {fast.steps}" in reason for reason in slow.why)
