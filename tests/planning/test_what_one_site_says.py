"""What one site says of its samples decides the plans of no others: a site is believed up to what all the others have together."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_profiles import SMOLLM2, a_site, a_spec, speeds

from fedpipe_operator.planning import plan_round
from fedpipe_operator.planning.fleet import solve_fleet
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.shares import counted_samples
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Importance, ImportanceMethod

SMALL: Final = SMOLLM2.model_copy(update={"layers": 6, "weights": SMOLLM2.weights[:24]})
NAMES: Final = tuple(weight.name for weight in SMALL.weights)
CLAIM: Final = 10**12


def scores(names: tuple[str, ...]) -> Importance:
    """Ascending in the order of these names."""
    half = {name: float(index) for index, name in enumerate(names, 1)}
    return Importance(method=ImportanceMethod.GRADIENT, samples=64, first_half=half, second_half=half)


HONEST: Final = {f"ward-{index}": a_site(f"ward-{index}", base=SMALL, importance=scores(NAMES)) for index in range(4)}


def beside(**changes: object) -> dict[str, SiteProfile]:
    """The honest sites, and one that claims 10^12 samples."""
    liar = replace(HONEST["ward-0"], name="liar", train_samples=CLAIM, **changes)  # type: ignore[arg-type]
    return HONEST | {"liar": liar}


def test_one_site_does_not_decide_which_weights_are_important_to_all() -> None:
    found = plan_round(a_spec(), beside(importance=scores(NAMES[::-1])), {}).importance

    assert found.scores[NAMES[0]] <= found.scores[NAMES[-1]]


@pytest.mark.parametrize("mode", ["Auto", "Proportional", "UniformWeakest"])
def test_one_site_does_not_make_the_round_as_long_as_the_deadline(mode: str) -> None:
    spec = {"planning": {"mode": mode, "bits": [16]}, "rounds": {"deadline": "10h"}}
    alone, together = plan_round(a_spec(**spec), HONEST, {}).plans, plan_round(a_spec(**spec), beside(), {}).plans

    longest = max(plan.forecast.seconds for plan in alone.plans.values())
    assert max(plan.forecast.seconds for name, plan in together.plans.items() if name != "liar") < 4 * longest


def test_one_site_keeps_the_others_from_no_weight_by_its_samples() -> None:
    """It says that it has nearly all samples, and a link that carries the adapters of a few layers."""
    narrow = {"up": 3e3, "points": speeds(400.0)}
    sites = beside(**narrow)
    spec = a_spec(planning={"depth": "Full", "bits": [16]})

    found = solve_fleet(PlanRequest(spec=spec, head={}), sites)

    assert not found.uncovered


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 10**15), max_size=8))
def test_of_three_sites_or_more_none_counts_with_more_than_half_and_few_are_counted_with_less(samples: dict[str, int]) -> None:
    counted = counted_samples(samples)

    changed = [name for name in samples if counted[name] != samples[name]]
    assert len(changed) <= 1
    assert len(samples) < 3 or all(2 * count <= sum(counted.values()) for count in counted.values())
