"""Mode Auto with plans that the spec gives to some of the sites: the others are planned beside them."""

from typing import Any

import pytest
from site_profiles import GIB, a_site, a_spec, speeds

from fedpipe_operator.planning import History, plan_round
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Plan

BIG = a_site("big", points=speeds(60.0), train_samples=9500, memory_bytes=64 * GIB)
SMALL = a_site("small", points=speeds(4000.0), train_samples=500, memory_bytes=64 * GIB)
TOP: dict[str, Any] = {"site": "big", "bits": 16, "rank": 8, "steps": 5, "layers": 3}


def planned(*sites: SiteProfile, given: dict[str, Any] | None = TOP, deadline: str = "10m", only: tuple[str, ...] = ()) -> dict[str, Plan]:
    planning = {"bits": [16]} | ({"plans": [given]} if given else {})
    spec = a_spec(rounds={"deadline": deadline, "count": 10}, planning=planning)
    fleet = {site.name: site for site in sites}
    return plan_round(spec, fleet, {}, History(), select=lambda names: tuple(only or names)).plans.plans


def trained(plan: Plan) -> set[str]:
    return {weight for weight, rank in plan.ranks.items() if rank}


def layers_of(plan: Plan) -> set[int]:
    return {int(weight.split(".")[2]) for weight in trained(plan)}


def test_a_weight_that_a_given_plan_does_not_train_is_not_left_to_a_site_with_few_samples() -> None:
    plans = planned(BIG, SMALL)

    assert trained(plans["small"]) == trained(plans["big"])
    assert layers_of(plans["small"]) == {27, 28, 29}


def test_no_backward_pass_is_planned_far_below_the_weights_that_enough_samples_train() -> None:
    plans = planned(BIG, SMALL)

    assert plans["small"].trained_layers == 10, "the fewest that the planner chooses"


def test_a_weight_that_a_given_plan_trains_is_covered_by_its_samples() -> None:
    """A tenth of the samples alone would be too few for any weight."""
    plans = planned(BIG, SMALL, given=TOP | {"layers": 30})

    assert trained(plans["small"]) <= trained(plans["big"])
    assert layers_of(plans["small"]) >= set(range(15, 30))


def test_beside_a_given_plan_with_few_samples_all_weights_are_trained() -> None:
    plans = planned(BIG, SMALL, given=TOP | {"site": "small"})

    assert layers_of(plans["big"]) == layers_of(planned(BIG, SMALL, given=None)["big"]) == set(range(30))


def test_a_round_is_no_shorter_than_a_given_plan_takes() -> None:
    """A site that waits for another can as well train."""
    small = a_site("small", points=speeds(400.0), train_samples=500, memory_bytes=64 * GIB)
    without = planned(small, given=None)["small"]

    plans = planned(BIG, small)

    length = plans["big"].forecast.seconds
    assert without.forecast.seconds < length
    assert plans["small"].forecast.seconds == pytest.approx(length, rel=0.1)
    assert any("a round of 1 min 26 s, as long as the plans of planning.plans take" in why for why in plans["small"].why)
    assert " more a round (planning.plans sets its length) would buy " in plans["small"].why[0]


def test_a_given_plan_that_takes_longer_than_the_deadline_allows_leaves_the_others_the_deadline() -> None:
    small = a_site("small", points=speeds(1000.0), train_samples=5000, memory_bytes=64 * GIB)

    plans = planned(BIG, small, deadline="1m")

    assert plans["big"].forecast.seconds > 60
    assert plans["small"].forecast.seconds < 48
    assert any("the longest that rounds.deadline allows" in why for why in plans["small"].why)


def test_a_given_plan_of_a_site_that_takes_no_part_in_the_round_changes_nothing() -> None:
    plans = planned(BIG, SMALL, only=("small",))

    assert plans["small"] == planned(SMALL, given=None)["small"]
