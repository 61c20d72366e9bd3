"""A common floor: all sites train the same upper layers, so that what enters them is cached from round to round."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.site_profiles import GIB, a_site, a_spec, speeds

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.planning import History, plan_round
from fedpipe_operator.planning.choices import Choice, choices_of, seconds_of_steps, step_seconds_of, steps_within
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD, common_floor
from fedpipe_operator.planning.frontier import rank_value
from fedpipe_operator.planning.modes import plan_auto
from fedpipe_operator.planning.progress import round_progress
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.sites import KeptActivations, SiteProfile
from fedpipe_trainer.contract import Plan

RUN: Final[Mapping[str, Any]] = {"rounds": {"count": 12, "deadline": "1h"}, "training": {"epochs": 0.7}, "planning": {"bits": [16]}}
"""Rounds of less than a pass, and more than a pass in all of them."""
CACHED: Final = Choice(bits=16, batch=16, micro_batch=16, checkpointing=False, lowest_layer=15, cached=True)
FILLED: Final = KeptActivations(bits=16, batch_size=16, micro_batch=16, lowest_layer=15, share=0.5)


def a_fleet(**changes: Any) -> dict[str, SiteProfile]:
    """Three sites with a cache that differ in speed."""
    return {
        f"site-{speed:.0f}": a_site(f"site-{speed:.0f}", points=speeds(speed), **({"has_cache": True} | changes))
        for speed in (400.0, 200.0, 100.0)
    }


def planned(fleet: Mapping[str, SiteProfile], history: History | None = None, **sections: Mapping[str, Any]) -> dict[str, Plan]:
    return plan_round(a_spec(**(RUN | sections)), fleet, {}, history or History()).plans.plans


def a_request(**changes: Any) -> PlanRequest:
    return PlanRequest(spec=a_spec(**RUN), head={}, **changes)


def a_kept(**changes: Any) -> KeptActivations:
    return FILLED.model_copy(update=changes)


def after(plans: Mapping[str, Plan], fleet: Mapping[str, SiteProfile], before: Mapping[str, KeptActivations]) -> dict[str, KeptActivations]:
    """What the caches hold when a round of these plans is over, if all goes as planned."""
    kept = {}
    for name, plan in plans.items():
        state = a_kept(bits=plan.bits, batch_size=plan.batch_size, micro_batch=plan.micro_batch, lowest_layer=plan.lowest_layer, share=0.0)
        earlier = before.get(name, state)
        share = earlier.share if earlier.model_copy(update={"share": 0.0}) == state else 0.0
        drawn = min(1.0, plan.steps / math.ceil(fleet[name].train_samples / plan.batch_size))
        if plan.cache_activations:
            kept[name] = state.model_copy(update={"share": share + (1 - share) * drawn})
    return kept


def test_all_sites_of_a_run_of_several_rounds_train_the_same_upper_layers_and_cache_what_enters_them() -> None:
    plans = planned(a_fleet())

    assert len({plan.lowest_layer for plan in plans.values()} - {0}) == 1
    assert all(plan.cache_activations for plan in plans.values())
    floor = "no site trains a lower layer in this run unless it stalls, so that what the caches hold stays valid: "
    assert all(any(floor in reason and "in the next rounds too" in reason for reason in plan.why) for plan in plans.values())


def test_a_site_without_a_cache_trains_no_layer_below_the_others_floor() -> None:
    fleet = a_fleet() | {"plain": a_site("plain")}

    plans = planned(fleet)

    assert len({plan.lowest_layer for plan in plans.values()} - {0}) == 1
    assert {name: plan.cache_activations for name, plan in plans.items()} == {name: name != "plain" for name in fleet}
    assert any("no site trains a lower layer in this run unless it stalls: " in reason for reason in plans["plain"].why)
    assert not any("cache" in reason for reason in plans["plain"].why)


def test_what_the_caches_hold_makes_the_next_rounds_steps_cheaper_and_the_plans_say_how_much_it_is() -> None:
    fleet, kept = a_fleet(), dict[str, KeptActivations]()
    seconds, reasons = list[float](), list[str]()
    for round_ in range(1, 5):
        plans = planned(fleet, History(round_, kept=kept))
        fastest = plans["site-400"]
        seconds.append(fastest.forecast.step_seconds / fastest.steps / fastest.batch_size)
        reasons += [reason for reason in fastest.why if "cache holds" in reason]
        kept = after(plans, fleet, kept)

    assert all(later < earlier for earlier, later in pairwise(seconds))
    assert len(reasons) == 3  # in the first round it holds nothing


def progress_per_second(fleet: Mapping[str, SiteProfile], spec: FineTuneSpec, floor: int | None) -> float:
    """Predicted progress per second of a whole run that is planned with this floor, its caches being filled round by round."""
    kept, progress, seconds = dict[str, KeptActivations](), 0.0, 0.0
    samples = np.array([float(site.train_samples) for _, site in sorted(fleet.items())])
    for round_ in range(1, spec.rounds.count + 1):
        request = PlanRequest(spec=spec, head={}, kept=kept, floor=floor, rounds_left=spec.rounds.count - round_ + 1)
        plans = plan_auto(request, fleet).plans
        steps = np.array([steps_of_the_whole_model(plan) for _, plan in sorted(plans.items())])
        progress += round_progress(steps, np.ones(len(steps)), samples, 16)
        seconds += max(plan.forecast.seconds for plan in plans.values()) + ROUND_OVERHEAD
        kept = after(plans, fleet, kept)
    return progress / seconds


def steps_of_the_whole_model(plan: Plan) -> float:
    adapters = sum(rank_value(rank) for rank in plan.ranks.values()) / (len(plan.ranks) * rank_value(32))
    return plan.steps * math.sqrt(adapters)


@pytest.mark.parametrize("epochs", [0.05, 0.7])
def test_the_floor_that_is_chosen_brings_a_whole_run_more_progress_per_second_than_none(epochs: float) -> None:
    """Of passes that a run never makes twice, a cache is of no use, and then it costs nothing either."""
    spec = a_spec(**(RUN | {"training": {"epochs": epochs}}))
    fleet = a_fleet()
    floor = common_floor(PlanRequest(spec=spec, head={}, rounds_left=spec.rounds.count), fleet)

    assert progress_per_second(fleet, spec, floor) >= 0.99 * progress_per_second(fleet, spec, None)


def test_there_is_no_floor_without_a_cache_in_the_last_round_or_once_the_run_stalls() -> None:
    lasting = a_request(rounds_left=12)

    assert common_floor(lasting, a_fleet()) is not None
    assert common_floor(lasting, a_fleet(has_cache=False)) is None
    assert common_floor(a_request(), a_fleet()) is None
    assert common_floor(a_request(kept={"site-100": a_kept(share=1.0)}), a_fleet()) is not None, "what is cached is used to the end"
    assert common_floor(replace(lasting, is_stalled=True), a_fleet()) is None


def test_a_given_plan_that_trains_all_layers_leaves_nothing_for_a_floor() -> None:
    given_plan = {"site": "site-100", "bits": 16, "rank": 4, "steps": 5}

    plans = planned(a_fleet(), planning={"bits": [16], "plans": [given_plan]})

    assert plans["site-100"].lowest_layer == 0
    assert not any(plan.cache_activations for plan in plans.values())


def test_a_site_that_cannot_train_down_to_the_floor_trains_fewer_layers_and_caches_nothing_for_later_rounds() -> None:
    """Without recomputed activations, a batch of 16 through 22 layers needs more than 4 GiB."""
    training = {"epochs": 0.7, "gradientCheckpointing": False}
    spec = a_spec(**(RUN | {"training": training, "planning": {"bits": [16], "batchSizes": [16], "ranks": [8]}}))
    sites = {name: a_site(name, memory_bytes=memory * GIB, has_cache=True) for name, memory in (("small", 4), ("large", 16))}

    plans = plan_auto(PlanRequest(spec=spec, head={}, floor=8, rounds_left=12), sites).plans

    assert plans["small"].lowest_layer > plans["large"].lowest_layer == 8
    assert {name: plan.cache_activations for name, plan in plans.items()} == {"small": False, "large": True}
    assert {name: any("no site trains a lower layer" in why for why in plan.why) for name, plan in plans.items()} == {
        "small": False,
        "large": True,
    }


def test_the_floor_of_a_large_fleet_is_that_of_sites_of_all_speeds() -> None:
    fleet = {f"{name}-{copy}": replace(site, name=f"{name}-{copy}") for name, site in a_fleet().items() for copy in range(40)}

    assert common_floor(a_request(rounds_left=12), fleet) == common_floor(a_request(rounds_left=12), a_fleet()) is not None


def test_caches_that_do_not_work_give_a_fleet_no_floor() -> None:
    broken = {name: replace(site, has_cache=False, cache_problem="it is full: free space") for name, site in a_fleet().items()}

    assert common_floor(a_request(rounds_left=12), broken) is None


def test_a_fleet_of_which_every_other_site_has_a_cache_gets_a_floor() -> None:
    fleet = {f"site-{index:03}": a_site(f"site-{index:03}", points=speeds(100.0), has_cache=index % 2 == 0) for index in range(64)}

    assert common_floor(a_request(rounds_left=12), fleet) is not None


@pytest.mark.parametrize("batch", [16, 4])
def test_what_slow_sites_cached_with_smaller_batches_counts_for_the_floor_to_the_end(batch: int) -> None:
    names = [f"slow-{index}" for index in range(5)]
    fleet = {name: a_site(name, points=speeds(100.0), has_cache=True) for name in names} | {"fast": a_site("fast", has_cache=True)}
    kept = {name: a_kept(batch_size=batch, micro_batch=batch, lowest_layer=20, share=1.0) for name in names}
    full = kept | {"fast": a_kept(lowest_layer=20, share=1.0)}

    assert [common_floor(a_request(rounds_left=left, kept=full), fleet) for left in (6.0, 3.0, 2.0, 1.0)] == [20] * 4


def test_a_site_takes_the_batch_that_its_cache_holds_or_is_planned_without_it() -> None:
    """Steps of 4 samples are cached. A plan with steps of 16 finds nothing, and takes no longer than the round for all that."""
    site = a_site("ward", has_cache=True, train_samples=5000)
    kept = {"ward": a_kept(batch_size=4, micro_batch=4, lowest_layer=20, share=1.0)}

    plans = plan_auto(a_request(rounds_left=6.0, kept=kept, floor=20), {"ward": site}).plans

    plan = plans["ward"]
    assert plan.forecast.cached_share == (1.0 if plan.batch_size == 4 else 0.0)
    length = next(reason for reason in plan.why if "into a round of" in reason)
    assert seconds_in(length) >= 0.99 * plan.forecast.seconds


def seconds_in(reason: str) -> float:
    """The length of the round that a reason names."""
    minutes, seconds = re.search(r"into a round of (?:(\d+) min)? ?(?:(\d+) s)?", reason).groups()  # type: ignore[union-attr]  # it matches
    return 60 * int(minutes or 0) + int(seconds or 0) + 1


def test_with_some_sites_a_round_a_first_pass_is_spread_over_the_rounds_in_which_a_site_takes_part() -> None:
    """Of 20 sites 2 take part in each of 12 rounds: each in hardly more than one. With all, the floor is worth it."""
    fleet = {f"site-{index:02}": a_site(f"site-{index:02}", has_cache=True) for index in range(20)}

    def cached(**sections: Any) -> set[bool]:
        return {plan.cache_activations for plan in planned(fleet, **sections).values()}

    assert cached() == {True}
    assert cached(sites={"perRound": 2}) == {False}


def test_a_device_that_trains_faster_than_a_volume_can_read_does_not_cache() -> None:
    assert not any(choice.cached for choice in choices_of(a_request(), a_site(has_cache=True, points=speeds(1e6))).rows)


@pytest.mark.parametrize(
    "other",
    [{"micro_batch": 8}, {"lowest_layer": 20}, {"batch": 8, "micro_batch": 8}, {"bits": 8}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_passes_than_those_that_are_cached_find_nothing(other: Mapping[str, Any]) -> None:
    site, choice = a_site(has_cache=True), CACHED._replace(**other)

    found = seconds_of_steps(a_request(kept={"ward": FILLED}), site, choice, 10)

    assert found == pytest.approx(seconds_of_steps(a_request(), site, choice, 10))


@given(st.floats(0, 1), st.integers(1, 200), st.sampled_from((None, 15)))
def test_the_rows_of_a_choice_together_give_its_seconds(share: float, steps: int, floor: int | None) -> None:
    """Each row is a line above them, and one of them touches."""
    site, request = a_site(has_cache=True), a_request(kept={"ward": a_kept(share=share)}, floor=floor)
    choices = choices_of(request, site)
    lines = [(choices.fixed[index], choices.step[index]) for index, row in enumerate(choices.rows) if row == CACHED]
    plain = choices_of(a_request(), site)
    fixed = min(plain.fixed[index] for index, row in enumerate(plain.rows) if row == CACHED._replace(cached=False))

    assert min(first + steps * each for first, each in lines) - fixed == pytest.approx(seconds_of_steps(request, site, CACHED, steps))


@given(st.floats(0, 1), st.floats(0, 3000), st.booleans())
def test_the_steps_within_some_seconds_are_the_most_that_take_no_longer(share: float, seconds: float, cached: bool) -> None:
    site, request, choice = a_site(has_cache=True), a_request(kept={"ward": a_kept(share=share)}), CACHED._replace(cached=cached)

    steps = steps_within(request, site, choice, seconds)

    assert seconds_of_steps(request, site, choice, steps) <= seconds + 1e-6
    assert seconds_of_steps(request, site, choice, steps + 1) > seconds
    assert steps_within(request, site, choice, -seconds) == 0


def test_a_full_cache_makes_every_step_one_that_finds_its_activations() -> None:
    site, full = a_site(has_cache=True), a_request(kept={"ward": a_kept(share=1.0)})

    assert seconds_of_steps(full, site, CACHED, 10) == pytest.approx(10 * step_seconds_of(full, site, CACHED))
