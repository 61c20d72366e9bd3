"""A round that went well leaves no site out of the next, and no plan changes to and fro; a site that misses deadlines rests ever longer."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import pytest
from site_profiles import MPNET, a_site, a_spec, point, speeds

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.planning import History, Plans, plan_round
from fedpipe_operator.planning.forecast import choice_of, peak_of, training_peak_of
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.sites import Correction, Measurement, Resources, SiteProfile, after_a_rest, corrected, findings, with_lateness
from fedpipe_trainer.contract import Plan

BASE: Final = MPNET.model_copy(update={"layers": 6, "weights": MPNET.weights[:24], "head": {}})
"""Half of its layers, so that it is planned soon."""
MB: Final = 10**6


def tight_site(memory: float, *, peaks: Sequence[int] = (1530, 1560, 1600), load: int = 1600, **changes: Any) -> SiteProfile:
    """A site whose base takes most of its memory; all figures in MB."""
    points = tuple(point(bits=16, batch=batch, length=64, speed=400, peak=peak * MB) for batch, peak in zip((1, 4, 16), peaks, strict=True))
    figures = {"points": points, "load_peak_bytes": {16: load * MB}, "base_bytes": {16: 220 * MB}, "longest_tokens": 64} | changes
    return a_site(base=BASE, labels=("a", "b"), memory_bytes=int(memory * MB), **figures)


def the_spec(**rounds: Any) -> FineTuneSpec:
    planning = {"bits": [16], "batchSizes": [1, 4, 16], "ranks": [0, 4, 32]}
    return a_spec(planning=planning, rounds={"count": 20, "deadline": "30m"} | rounds)


def planned(spec: FineTuneSpec, site: SiteProfile, correction: Correction, round_: int = 2) -> Plans:
    return plan_round(spec, {"ward": site}, {}, History(round_, corrections={"ward": with_lateness(correction)})).plans


def after(  # noqa: PLR0913 -- a plan, and what is measured of it as a factor of its forecast
    spec: FineTuneSpec,
    site: SiteProfile,
    before: Correction,
    plan: Plan,
    *,
    memory: float = 1.0,
    step: float = 1.0,
    other: float = 1.0,
    steps: int | None = None,
) -> Correction:
    """The correction after a round that was done in time."""
    request, taken = PlanRequest(spec, {}, corrections={"ward": before}), steps or plan.steps
    measured = Measurement(
        step_seconds=step * plan.forecast.step_seconds * taken / plan.steps,
        other_seconds=other * (plan.forecast.seconds - plan.forecast.step_seconds),
        peak_memory_bytes=int(memory * plan.forecast.memory_bytes),
        steps=taken,
    )
    training = training_peak_of(request, site, choice_of(plan), plan.ranks)
    resources = Resources(memory_bytes=site.memory_bytes, up=site.up, down=site.down)
    return corrected(before, plan, measured, resources, training_bytes=training, longest=request.deadline / 1.0002)


@pytest.mark.parametrize("deadline", ["40s", "30m"])
@pytest.mark.parametrize("peak", [0.5, 1.15, 3.0])
@pytest.mark.parametrize(("step", "other", "taken"), [(1, 1, 1.0), (1000, 1, 0.1), (0.1, 100, 0.1), (30, 30, 0.5)])
def test_whatever_was_measured_in_a_round_that_went_well_the_site_has_a_plan_in_the_next(
    deadline: str, peak: float, step: float, other: float, taken: float
) -> None:
    spec, site = the_spec(deadline=deadline), tight_site(2147.483648)
    first = planned(spec, site, Correction(), 1).plans["ward"]

    steps = max(1, round(taken * first.steps))
    now = after(spec, site, Correction(), first, memory=peak, step=step, other=other, steps=steps)

    assert planned(spec, site, now).excluded == {}


@pytest.mark.parametrize("share", [1.15, 1.2, 1.25])
def test_a_training_that_succeeded_above_its_forecast_does_not_raise_what_loading_needs(share: float) -> None:
    """85 % of the 2147 MB are 1825, and the load alone takes 1600."""
    site, spec = tight_site(2147.483648), the_spec()
    first = planned(spec, site, Correction(), 1).plans["ward"]

    now = after(spec, site, Correction(), first, memory=share)
    second = planned(spec, site, now).plans["ward"]

    assert now.peak == int(share * first.forecast.memory_bytes)
    assert second.forecast.memory_bytes == pytest.approx(now.peak, rel=0.01)
    (sentence,) = findings(Correction(), now)
    assert sentence.startswith("training needed 1.")
    assert sentence.endswith("times what was predicted")
    loading = PlanRequest(spec, {}, corrections={"ward": Correction(memory=0.05)})
    assert peak_of(loading, site, choice_of(first), first.ranks) == 1600 * MB


def test_a_peak_that_loading_explains_says_nothing_of_training() -> None:
    """Training is forecast to take half of what loading does."""
    spec, site = the_spec(), tight_site(4000, peaks=(700, 720, 800))
    plan = planned(spec, site, Correction(), 1).plans["ward"]
    assert plan.forecast.memory_bytes == 1600 * MB

    for share, factor in ((0.9, 1.0), (1.0, 1.0), (1.1, 1.0), (1.3, 1.3 * 1600 / 800), (0.4, 0.4 * 1600 / 800)):
        assert after(spec, site, Correction(), plan, memory=share).memory == pytest.approx(factor, rel=0.1), share


def test_a_site_that_its_forecast_leaves_out_is_told_the_measured_peak_and_comes_back() -> None:
    """It has less memory than when the peak was measured, so that it does not count any more."""
    spec, site = the_spec(), tight_site(2300, load=900)
    correction, told = Correction(memory=1.6, peak=1900 * MB), []
    correction = correction.model_copy(update={"peak": 1500 * MB})
    for round_ in range(2, 10):
        made = planned(spec, site, correction, round_)
        if "ward" in made.plans:
            break
        told.append(made.excluded["ward"])
        correction = after_a_rest(correction)

    assert 1 <= len(told) <= 3
    assert "(its last training needed 1.40 GiB, more than was forecast)" in told[0]


def test_a_slow_load_that_left_a_site_out_is_forgotten_by_and_by() -> None:
    correction = Correction(step_seconds=0.5, other_seconds=16.0, transfers=4.0, memory=4.0, memory_limit=4000)

    rested = after_a_rest(correction)

    assert rested == Correction(step_seconds=0.5, other_seconds=4.0, transfers=2.0, memory=2.0, memory_limit=2000)


@pytest.mark.parametrize("memory", [1800, 1900, 2000, 2100, 2200, 2300])
def test_plans_do_not_change_to_and_fro_where_large_passes_need_more_than_forecast_and_small_ones_less(memory: int) -> None:
    site, spec = tight_site(memory, peaks=(1030, 1200, 1900), load=900), the_spec()
    correction, made = Correction(), []
    for round_ in range(1, 13):
        plan = planned(spec, site, correction, round_).plans["ward"]
        made.append((plan.micro_batch, plan.batch_size, plan.lowest_layer, plan.gradient_checkpointing))
        correction = after(spec, site, correction, plan, memory=1.06 if plan.micro_batch == 16 else 0.97)

    assert sum(one != other for one, other in pairwise(made)) <= 1, made


def rounds_with(site: SiteProfile, spec: FineTuneSpec, rounds: int) -> tuple[str, list[str]]:
    """In which rounds a site that never ends is waited for (M) or not (-), and the reasons of the others."""
    correction, course, told = Correction(), "", []
    for round_ in range(1, rounds + 1):
        made = planned(spec, site, correction, round_)
        if (plan := made.plans.get("ward")) is None:
            course += "-"
            told.append(made.excluded["ward"])
            correction = after_a_rest(correction)
            continue
        course += "M"
        nothing = Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0, is_late=True)
        correction = corrected(correction, plan, nothing, deadline=1800.0)
    return course, told


def test_a_site_that_has_stopped_is_waited_for_in_ever_fewer_rounds_and_told_when_it_is_tried_again() -> None:
    site = a_site(base=BASE, labels=("a", "b"), points=speeds(4000.0))

    course, told = rounds_with(site, the_spec(), 24)

    assert course.startswith("MM-M--M"), "once may be its node"
    assert course.count("M") <= 6
    gaps = [len(gap) for gap in course.strip("-").split("M")[1:-1]]
    assert gaps == sorted(gaps)
    assert max(gaps) <= 9, "it is tried again for as long as the run lasts"
    assert told[0] == (
        "it missed the deadline 2 times in a row, so it sits out 1 round and is tried again in round 4: "
        "see whether its node, its queue or its link was down"
    )
    assert told[1].startswith("it missed the deadline 3 times in a row, so it sits out 2 rounds")


def test_a_second_missed_deadline_shows_at_least_how_many_times_longer_it_is_than_the_forecast() -> None:
    site, spec = a_site(base=BASE, labels=("a", "b"), points=speeds(4000.0)), the_spec()
    plan = planned(spec, site, Correction(), 1).plans["ward"]
    nothing = Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0, is_late=True)
    seconds = plan.forecast.seconds

    once = corrected(Correction(), plan, nothing, deadline=50 * seconds)
    twice = corrected(once, plan, nothing, deadline=50 * seconds)
    nearly = corrected(once, plan, nothing, deadline=1.25 * seconds)

    assert (once.lateness, once.rests) == (2.0, 0), "less to do may be enough"
    assert (twice.lateness, twice.rests) == (pytest.approx(100), 1)
    assert (nearly.lateness, nearly.rests) == (4.0, 1)
    assert (after_a_rest(twice).lateness, after_a_rest(twice).rests) == (pytest.approx(10), 0)
    assert [corrected(Correction(late=late), plan, nothing, deadline=50 * seconds).rests for late in range(7)] == [0, 1, 2, 4, 8, 8, 8]


def test_a_record_of_an_earlier_version_counts_seconds_twice_for_each_missed_deadline() -> None:
    assert Correction.model_validate_json('{"late": 3}').lateness == 8
