"""Modules that are trained whole: what they take counts, they set the depth, and a plan says so."""

from typing import Any

import pytest
from site_profiles import GIB, SMOLLM2, a_site, a_spec

from fedpipe_operator.api import PlanningMode
from fedpipe_operator.planning import plan_round
from fedpipe_operator.planning.choices import choices_of, lowest_layers
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.run_facts import facts_of
from fedpipe_operator.planning.sizes import head_shapes
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts

EMBEDDING = {"base_model.model.model.embed_tokens.weight": (49_152, 576)}
ELEMENTS = 49_152 * 576
SENTENCE = "1 tensor of planning.modulesToSave is trained whole: 432 MiB of memory with gradients and optimiser, and 108 MiB of each update"


def with_whole(whole: dict[str, tuple[int, ...]] = EMBEDDING, layer: int = 0) -> BaseModelFacts:
    return SMOLLM2.model_copy(update={"whole": whole, "whole_layer": layer})


def planned(site: SiteProfile, *, mu: float = 0.0, **planning: Any) -> Any:
    spec = a_spec(rounds={"deadline": "10m"}, planning={"bits": [16]} | planning, training={"proximalMu": mu})
    facts = facts_of({"ward": site}, spec.task)
    return plan_round(spec, {"ward": site}, facts.head).plans


def test_they_are_among_the_tensors_that_are_sent_in_full() -> None:
    assert head_shapes(with_whole(), 0) == EMBEDDING
    assert facts_of({"ward": a_site(base=with_whole())}, a_spec().task).head == EMBEDDING


def test_their_bytes_count_in_the_forecasts_of_memory_and_of_transfers() -> None:
    given = {"mode": "Manual", "plans": [{"bits": 16, "rank": 4, "steps": 5}]}

    plans = [planned(a_site(base=base), **given).plans["ward"] for base in (with_whole(), SMOLLM2)]

    assert plans[0].forecast.upload_bytes - plans[1].forecast.upload_bytes == pytest.approx(4 * ELEMENTS, rel=1e-4)
    assert plans[0].forecast.memory_bytes - plans[1].forecast.memory_bytes == pytest.approx(16 * ELEMENTS, rel=0.01)


@pytest.mark.parametrize("mode", [PlanningMode.AUTO, PlanningMode.MANUAL])
def test_a_plan_says_what_they_take(mode: PlanningMode) -> None:
    given = {"plans": [{"bits": 16, "rank": 4, "steps": 5}]} if mode is PlanningMode.MANUAL else {}

    why = planned(a_site(base=with_whole()), mode=mode, **given).plans["ward"].why

    assert SENTENCE in why
    assert not [one for one in planned(a_site(), mode=mode, **given).plans["ward"].why if "modulesToSave" in one]


def test_with_a_proximal_term_they_and_the_adapters_take_4_bytes_more_for_each_parameter() -> None:
    given = {"mode": "Manual", "plans": [{"bits": 16, "rank": 4, "steps": 5}]}
    with_term, without = (planned(a_site(base=with_whole()), mu=mu, **given).plans["ward"] for mu in (0.1, 0.0))
    trained = ELEMENTS + 4 * sum(weight.d_in + weight.d_out for weight in SMOLLM2.weights)

    assert with_term.forecast.memory_bytes - without.forecast.memory_bytes == pytest.approx(4 * trained, abs=1)
    changed = SENTENCE.replace("432 MiB", "540 MiB").replace("gradients and optimiser", "gradients, optimiser and proximal term")
    assert changed in with_term.why


def test_with_a_proximal_term_memory_leaves_room_for_fewer_elements_of_adapters() -> None:
    """A trained element takes the place of one of the frozen residual, of 4 bytes: it adds 16 bytes with the term, and 12 without."""
    requests = [PlanRequest(a_spec(training={"proximalMu": mu}), head={}) for mu in (0.1, 0.0)]
    with_term, without = (choices_of(request, a_site()) for request in requests)

    assert (without.room > 0).any()
    assert with_term.memory == pytest.approx(without.memory)
    assert with_term.room == pytest.approx(12 / 16 * without.room)


def test_a_site_for_whose_memory_they_are_too_much_is_told_both_numbers_and_what_to_do() -> None:
    small = GIB + GIB // 4

    excluded = planned(a_site(base=with_whole(), memory_bytes=small)).excluded["ward"]

    assert planned(a_site(memory_bytes=small)).plans, "without them it has a plan"
    assert "Mi of memory instead of 1.25 GiB" in excluded
    assert f"or name fewer in planning.modulesToSave ({SENTENCE})" in excluded


def test_a_site_for_whose_link_they_are_too_much_is_told_both_numbers_and_what_to_do() -> None:
    excluded = planned(a_site(base=with_whole(), up=1e6)).excluded["ward"]

    assert "raise its upload bandwidth from 1 Mbit/s to" in excluded
    assert "or name fewer in planning.modulesToSave" in excluded


@pytest.mark.parametrize(("layer", "deepest"), [(0, 0), (12, 8), (30, 20)])
def test_no_plan_trains_from_above_their_lowest_layer_on(layer: int, deepest: int) -> None:
    site = a_site(base=with_whole(layer=layer))

    assert max(lowest_layers(PlanRequest(a_spec(), head=EMBEDDING, lowest_covered=30), site)) == deepest


def test_a_given_plan_that_does_not_reach_them_is_refused_with_the_layers_that_do() -> None:
    given = {"mode": "Manual", "plans": [{"bits": 16, "rank": 4, "steps": 5, "layers": 3}]}

    assert planned(a_site(base=with_whole()), **given).excluded["ward"] == (
        "planning.modulesToSave is trained from layer 0 on, and planning.plans trains from 27 on: set layers to 30 or more, leave it out, "
        "or name other modules"
    )
    assert planned(a_site(base=with_whole(layer=30)), **given).plans
