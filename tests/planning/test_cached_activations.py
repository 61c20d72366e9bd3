"""When the planner lets a site cache the activations below its lowest trained layer, and what it forecasts then."""

import pytest
from tests.helpers.site_profiles import SMOLLM2, a_site, a_spec

from fedpipe_operator.planning import History, plan_round
from fedpipe_operator.planning.choices import Choice, choices_of, seconds_of_steps, step_seconds_of
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.sites import Correction, SiteProfile, findings
from fedpipe_trainer.contract import Plan

LONG_ROUNDS = {"rounds": {"count": 1, "deadline": "20h"}, "training": {"epochs": 40}}
BROKEN = "its cache does not work, so that nothing is planned to be read from it: it is full: free space"
CACHED = Choice(bits=16, batch=16, micro_batch=16, checkpointing=False, lowest_layer=15, cached=True)


def the_plan(site: SiteProfile) -> Plan:
    return plan_round(a_spec(**LONG_ROUNDS), {site.name: site}, {}).plans.plans[site.name]


def a_request() -> PlanRequest:
    return PlanRequest(spec=a_spec(**LONG_ROUNDS), head={})


def test_a_site_with_a_cache_and_many_passes_a_round_caches_its_activations_and_takes_more_steps() -> None:
    with_cache, without = the_plan(a_site(has_cache=True)), the_plan(a_site())

    assert (with_cache.cache_activations, without.cache_activations) == (True, False)
    assert with_cache.forecast.step_seconds / with_cache.steps < without.forecast.step_seconds / without.steps
    assert any("their output is read from the site's cache" in reason for reason in with_cache.why)


def test_nothing_is_cached_in_a_run_of_less_than_a_pass() -> None:
    spec = a_spec(rounds={"count": 1, "deadline": "20h"}, training={"epochs": 0.9})

    assert not plan_round(spec, {"ward": a_site(has_cache=True)}, {}).plans.plans["ward"].cache_activations


def test_a_site_without_a_cache_has_no_such_choice() -> None:
    assert not any(choice.cached for choice in choices_of(a_request(), a_site()).rows)


def test_a_site_whose_cache_did_not_work_is_planned_without_one_and_the_plan_says_what_to_do() -> None:
    correction = Correction(cache_problem="it is full: free space")
    (note,) = findings(Correction(), correction)
    history = History(2, corrections={"ward": correction})

    plan = plan_round(a_spec(**LONG_ROUNDS), {"ward": a_site("ward", has_cache=True)}, {}, history).plans.plans["ward"]

    assert not plan.cache_activations
    assert plan == the_plan(a_site("ward")).model_copy(update={"why": plan.why})
    assert note.endswith("it is full: free space")
    assert BROKEN in plan.why


def test_a_site_whose_profile_found_that_its_cache_does_not_work_is_planned_without_one_and_the_plan_says_what_to_do() -> None:
    sites = {"ward": a_site("ward", cache_problem="it is full: free space"), "lab": a_site("lab", has_cache=True)}

    plans = plan_round(a_spec(**LONG_ROUNDS), sites, {}).plans.plans

    assert {name: plan.cache_activations for name, plan in plans.items()} == {"ward": False, "lab": True}
    assert {name: BROKEN in plan.why for name, plan in plans.items()} == {"ward": True, "lab": False}


def test_a_given_plan_is_obeyed_without_the_cache_that_does_not_work_and_says_so_if_it_was_to_be_used() -> None:
    given = {"bits": 16, "rank": 4, "steps": 5, "layers": 10}
    wants = [given | {"site": "ward", "cacheActivations": True}, given | {"site": "lab"}]
    sites = {name: a_site(name, cache_problem="it is full: free space") for name in ("ward", "lab")}

    plans = plan_round(a_spec(planning={"mode": "Manual", "plans": wants}), sites, {}).plans.plans

    assert {name: (plan.cache_activations, BROKEN in plan.why) for name, plan in plans.items()} == {
        "ward": (False, True),
        "lab": (False, False),
    }


def test_a_given_plan_does_not_count_on_a_cache_that_did_not_work_whatever_the_spec_says() -> None:
    given = {"bits": 16, "rank": 4, "steps": 5, "layers": 10, "cacheActivations": True}
    history = History(2, corrections={"ward": Correction(cache_problem="it is full: free space")})
    spec, sites = a_spec(planning={"mode": "Manual", "plans": [given]}), {name: a_site(name, has_cache=True) for name in ("ward", "lab")}

    plans = plan_round(spec, sites, {}, history).plans.plans

    assert {name: plan.cache_activations for name, plan in plans.items()} == {"ward": False, "lab": True}


def test_an_encoder_decoder_has_no_such_choice() -> None:
    site = a_site(has_cache=True, base=SMOLLM2.model_copy(update={"encoder_decoder": True}))

    assert not any(choice.cached for choice in choices_of(a_request(), site).rows)


def test_all_layers_leave_nothing_to_cache() -> None:
    assert {choice.lowest_layer == 0 for choice in choices_of(a_request(), a_site(has_cache=True)).rows if choice.cached} == {False}


def test_the_first_pass_costs_what_it_does_without_a_cache_and_later_ones_less() -> None:
    request, site = a_request(), a_site(has_cache=True)
    uncached = CACHED._replace(cached=False)
    a_pass = site.train_samples // 16

    def seconds(steps: int) -> float:
        return seconds_of_steps(request, site, CACHED, steps)

    assert seconds(a_pass) == pytest.approx(a_pass * step_seconds_of(request, site, uncached))
    assert seconds(a_pass // 2) == pytest.approx(a_pass // 2 * step_seconds_of(request, site, uncached))
    more = seconds(3 * a_pass) - seconds(a_pass)
    assert more == pytest.approx(2 * a_pass * step_seconds_of(request, site, CACHED))
    assert step_seconds_of(request, site, CACHED) < step_seconds_of(request, site, uncached)


def test_a_pass_in_steps_of_fewer_samples_costs_what_it_does_without_a_cache_too() -> None:
    request, site = a_request(), a_site(has_cache=True)
    cached, a_pass = CACHED._replace(batch=4, micro_batch=4), site.train_samples // 4

    assert seconds_of_steps(request, site, cached, a_pass) == pytest.approx(
        a_pass * step_seconds_of(request, site, cached._replace(cached=False))
    )
