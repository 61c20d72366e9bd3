"""Weights that too few sites or samples would train get an adapter nowhere; sites that wanted them spend their resources elsewhere."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final

import pytest
from site_profiles import GIB, MPNET, SMOLLM2, a_site, a_spec, point, speeds

from fedpipe_operator.planning import History, Plans, plan_round
from fedpipe_operator.planning.coverage import COVERAGE
from fedpipe_operator.planning.fleet import FleetSolution, solve_fleet
from fedpipe_operator.planning.modes import plan_auto
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.site_problem import SiteProblem
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Plan

SMALL: Final = SMOLLM2.model_copy(update={"layers": 6, "weights": SMOLLM2.weights[:24]})
FOUR_LAYERS: Final = MPNET.model_copy(update={"layers": 4, "weights": MPNET.weights[:16], "head": {}})
WARDS: Final = {
    "hospital": a_site("hospital", base=MPNET, train_samples=9500, up=100e3, points=speeds(2000.0)),
    "ward-a": a_site("ward-a", base=MPNET, train_samples=150, up=2e6, points=speeds(300.0)),
    "ward-b": a_site("ward-b", base=MPNET, train_samples=150, up=60e3, points=speeds(300.0), memory_bytes=2 * GIB),
}
"""One large site on a slow uplink, which carries the adapters of the top third of the layers, and two small ones."""


def solved(sites: Mapping[str, SiteProfile], importance: Mapping[str, float] | None = None, **sections: Any) -> FleetSolution:
    return solve_fleet(PlanRequest(spec=a_spec(**sections), head={}, importance=importance or {}), sites)


def planned(sites: Mapping[str, SiteProfile], history: History | None = None, **sections: Any) -> Plans:
    return plan_round(a_spec(**sections), sites, {}, history or History()).plans


def wards_plan(name: str) -> Plan:
    return planned(WARDS, rounds={"count": 10, "deadline": "5m"}, planning={"bits": [16]}).plans[name]


def test_a_weight_that_too_few_samples_would_train_gets_an_adapter_nowhere() -> None:
    """One site of a twentieth of the samples could carry every rank; the other's uplink carries adapters of few weights."""
    small = a_site("small", base=SMALL, train_samples=50, up=1e9)
    large = a_site("large", base=SMALL, train_samples=950, up=2e4)

    fleet = solved({"small": small, "large": large}, rounds={"deadline": "10m"})

    assert 0 < len(fleet.uncovered) < 24
    assert COVERAGE > 50 / 1000
    assert all(one.ranks.get(weight, 0) == 0 for one in fleet.solutions.values() for weight in fleet.uncovered)
    assert any(fleet.solutions["small"].ranks.values())


@pytest.mark.parametrize("asks", ["small", "large", "both"])
def test_a_weight_that_fewer_sites_train_than_a_policy_asks_for_gets_an_adapter_nowhere(asks: str) -> None:
    """Half of the samples are enough for it; but what one site trains alone is not mixed with anything."""
    sites = {
        "small": a_site("small", base=SMALL, train_samples=500, up=1e9),
        "large": a_site("large", base=SMALL, train_samples=500, up=2e4),
    }
    asking = {name: replace(site, min_sites=2) if asks in {name, "both"} else site for name, site in sites.items()}

    alone, mixed = (solved(one, rounds={"deadline": "10m"}).solutions for one in (sites, asking))

    trained = [{name: {weight for weight, rank in one.ranks.items() if rank} for name, one in found.items()} for found in (alone, mixed)]
    assert trained[0]["small"] > trained[0]["large"]
    if asks == "large":  # which trains no weight alone
        assert trained[1] == trained[0]
    else:
        assert trained[1]["small"] == trained[1]["large"]


def test_plans_that_the_spec_gives_count_as_sites_that_train() -> None:
    """The given plan has the upper layers: the site that is planned beside it trains no weight without it."""
    sites = {name: replace(a_site(name, base=SMALL, train_samples=500), min_sites=2) for name in ("given", "planned")}

    found = planned(sites, planning={"bits": [16], "plans": [{"site": "given", "bits": 16, "rank": 8, "layers": 2, "steps": 5}]}).plans

    trained = {name: {weight for weight, rank in plan.ranks.items() if rank} for name, plan in found.items()}
    assert trained["planned"] <= trained["given"]


def test_a_site_spends_what_such_weights_would_have_cost_on_the_others() -> None:
    fleet = solved(WARDS, rounds={"count": 10, "deadline": "5m"}, planning={"bits": [16]})
    ward = fleet.solutions["ward-a"]
    best = SiteProblem.of(PlanRequest(spec=a_spec(planning={"bits": [16]}), head={}), WARDS["ward-a"], fleet.frontiers).solve(
        fleet.length.seconds
    )

    assert len(fleet.uncovered) == 31
    assert best is not None
    assert 32 in ward.ranks.values()
    assert {name for name, rank in ward.ranks.items() if rank}.isdisjoint(fleet.uncovered)
    assert ward.ranks == best.ranks


def test_no_layer_is_trained_in_vain_below_the_weights_that_are_left() -> None:
    plan = wards_plan("ward-a")

    assert plan.trained_layers == 4
    assert [one for one in plan.why if "layers are trained" in one] == [
        "the top 4 of 12 layers are trained: the layers below need no backward pass, which saves 33.3 % of a step"
    ]
    assert any(one.endswith("31 weights get none at any site, because too few sites or samples would train them") for one in plan.why)


def test_a_run_that_stalled_says_that_no_lower_layer_is_trained_for_lack_of_samples() -> None:
    """The hospital's memory has no room for the activations of all layers; the ward's has."""
    sites = WARDS | {"hospital": replace(WARDS["hospital"], memory_bytes=int(1.4 * GIB))}

    plans = planned(sites, History(round=2, is_stalled=True), rounds={"deadline": "5m"}, planning={"bits": [16], "batchSizes": [8]}).plans

    assert "the top 4 of 12 layers are trained: more do not fit into its memory and the deadline, " in plans["hospital"].why[2]
    assert plans["ward-a"].why[2] == (
        "the top 4 of 12 layers are trained: too few sites or samples would train lower ones, though the improvement of the run stalled"
    )


def test_of_a_single_such_weight_the_sentence_is_in_the_singular() -> None:
    sites = a_random_fleet(305)

    plan = planned(sites, rounds={"deadline": "60s", "count": 5}, planning={"bits": [4, 8, 16], "ranks": [0, 4, 8, 32]}).plans["s1"]

    assert any(one.endswith("; 1 weight gets none at any site, because too few sites or samples would train it") for one in plan.why)


def a_random_fleet(seed: int) -> dict[str, SiteProfile]:
    """Two to five sites that differ by orders of magnitude in speed, bandwidth and samples."""
    draw = Random(seed)  # noqa: S311 -- test cases, no secrets

    def site(name: str) -> SiteProfile:
        speed = 10 ** draw.uniform(1.3, 3.6)
        return a_site(
            name,
            base=FOUR_LAYERS,
            points=tuple(point(bits=16, batch=batch, speed=speed * (1 + 0.1 * (batch > 1))) for batch in (1, 8)),
            up=10 ** draw.uniform(3, 8),
            down=10 ** draw.uniform(5, 9),
            memory_bytes=int(draw.uniform(0.8, 6) * GIB),
            train_samples=int(10 ** draw.uniform(0, 4)),
        )

    return {name: site(name) for name in [f"s{index}" for index in range(draw.randint(2, 5))]}


@pytest.mark.parametrize("seed", [0, 279, 305, *range(20)])
def test_enough_of_the_round_s_samples_train_every_weight_that_any_site_trains(seed: int) -> None:
    """And the plans are as good as the best with such weights only."""
    draw, sites = Random(seed), a_random_fleet(seed)  # noqa: S311 -- test cases, no secrets
    importance = {weight.name: draw.lognormvariate(0, draw.choice([0.01, 1.5])) for weight in FOUR_LAYERS.weights}

    fleet = solved(sites, importance, rounds={"deadline": draw.choice(["60s", "5m"])}, planning={"bits": [16], "ranks": [0, 4, 8, 32]})

    trained = {name: {weight for weight, rank in one.ranks.items() if rank} for name, one in fleet.solutions.items()}
    samples = sum(sites[name].train_samples for name in trained)
    for weight in set().union(*trained.values()):
        assert sum(sites[name].train_samples for name, weights in trained.items() if weight in weights) >= COVERAGE * samples
        assert weight not in fleet.uncovered
    assert all(trained.values())
    assert -1e-9 <= fleet.gap <= 0.005


def test_a_round_too_short_for_a_site_to_train_weights_that_enough_samples_train_is_longer() -> None:
    """The slowest site sets the length, by a step of the top layer; the others prefer weights of a lower one."""
    draw, sites = Random(20), a_random_fleet(20)  # noqa: S311 -- test cases, no secrets
    scores = {weight.name: draw.lognormvariate(0, 1.5) for weight in FOUR_LAYERS.weights}

    fleet = solved(sites, scores, rounds={"deadline": "30m", "count": 50}, planning={"bits": [4, 8, 16], "ranks": [0, 4, 8, 32]})

    assert not fleet.crowded_out
    assert fleet.solutions.keys() == sites.keys()
    assert fleet.length.reason == "as long as the slowest site needs for weights that enough samples train"
    assert all(one.seconds <= fleet.length.seconds * (1 + 1e-9) for one in fleet.solutions.values())


def test_a_site_that_can_train_none_but_such_weights_is_excluded_with_what_to_do() -> None:
    """Its uplink carries the adapter of a key projection, and not that of a query projection, which alone matter to the others."""
    large = a_site("large", base=SMALL, train_samples=5000, up=2e4, points=speeds(1000.0))
    tiny = replace(large, name="tiny", train_samples=16, up=1.25e3)
    scores = {weight.name: 50.0 if "q_proj" in weight.name else 0.1 for weight in SMALL.weights}
    sections = {"rounds": {"deadline": "2m"}, "planning": {"ranks": [0, 4]}}
    fleet = solved({"large": large, "tiny": tiny}, scores, **sections)

    plans = plan_auto(PlanRequest(spec=a_spec(**sections), head={}, importance=scores), {"large": large, "tiny": tiny})

    assert solved({"tiny": tiny}, scores, **sections).solutions.keys() == {"tiny"}, "alone it can take part"
    assert fleet.crowded_out == plans.excluded.keys() == {"tiny"}
    assert plans.excluded["tiny"] == (
        "it can train none of the weights that enough others train, such as model.layers.4.self_attn.q_proj, "
        "model.layers.5.self_attn.q_proj, in a round of 1 min 36 s, and a weight gets an adapter only where at least 10 % of the samples "
        "train it, and as many sites as their policy.minSites ask for: give it more memory (8.00 GiB now), "
        "bandwidth (1.25 kbit/s up, 1 Gbit/s down) or processors"
    )
