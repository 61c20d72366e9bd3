"""Bases that are not like others: without counted layers, and without a weight that can get an adapter."""

import pytest
from site_profiles import SMOLLM2, a_site, a_spec

from fedpipe_operator.api import PlanningMode
from fedpipe_operator.planning import plan_round

WITHOUT_LAYERS = SMOLLM2.model_copy(
    update={"layers": 0, "weights": tuple(weight.model_copy(update={"layer": 0}) for weight in SMOLLM2.weights[:4])}
)
every_mode = pytest.mark.parametrize("mode", PlanningMode)
GIVEN = {"bits": 16, "rank": 4, "steps": 5}


@every_mode
def test_a_base_that_counts_no_layers_is_planned_whole_and_without_a_cache(mode: PlanningMode) -> None:
    spec = a_spec(planning={"mode": mode, "bits": [16]} | ({"plans": [GIVEN]} if mode is PlanningMode.MANUAL else {}))

    made = plan_round(spec, {"ward": a_site("ward", base=WITHOUT_LAYERS, has_cache=True)}, {}).plans

    assert not made.excluded
    plan = made.plans["ward"]
    assert (plan.lowest_layer, plan.cache_activations) == (0, False)
    assert plan.steps > 0
    assert all(plan.ranks[weight.name] for weight in WITHOUT_LAYERS.weights)


@every_mode
def test_a_base_without_a_weight_for_an_adapter_is_excluded_with_what_to_do(mode: PlanningMode) -> None:
    spec = a_spec(planning={"mode": mode, "bits": [16]} | ({"plans": [GIVEN]} if mode is PlanningMode.MANUAL else {}))

    made = plan_round(spec, {"ward": a_site("ward", base=WITHOUT_LAYERS.model_copy(update={"weights": ()}))}, {}).plans

    assert not made.plans
    assert made.excluded["ward"] == (
        "no weight of its base model can get an adapter: name others in planning.targetModules, or use another base model"
    )
