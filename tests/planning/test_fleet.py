"""The fleet: the round's length, each site's plan within it, and what more of a resource changes."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from site_profiles import GIB, MPNET, SMOLLM2, a_site, a_spec, point, speeds

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.planning import plan_round
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD, RUN_PASSES, FleetSolution, RoundLength, longer_by, solve_fleet
from fedpipe_operator.planning.request import DEADLINE_FRACTION, MAX_PASSES, PlanRequest
from fedpipe_operator.planning.site_problem import Solution
from fedpipe_operator.sites import SiteProfile

BASES: Final = tuple(base.model_copy(update={"layers": 6, "weights": base.weights[:24]}) for base in (SMOLLM2, MPNET))
# Fewer layers than the real ones: the shape is the same and planning takes less time.


def a_request(**sections: Mapping[str, Any]) -> PlanRequest:
    return PlanRequest(spec=a_spec(**sections), head={})


def solved(*sites: SiteProfile, **sections: Mapping[str, Any]) -> FleetSolution:
    return solve_fleet(a_request(**sections), {site.name: site for site in sites})


def a_small_site(name: str = "ward", **changes: Any) -> SiteProfile:
    return a_site(name, **({"base": BASES[0], "points": speeds(400.0)} | changes))


points = st.builds(
    point,
    bits=st.sampled_from((4, 8, 16, 32)),
    batch=st.sampled_from((1, 8)),
    speed=st.floats(20, 5000),
    peak=st.floats(5e8, 4e9),
)
sites = st.builds(
    a_site,
    device=st.sampled_from(("cpu", "NVIDIA A10")),
    memory_bytes=st.integers(GIB, 16 * GIB),
    up=st.floats(1e5, 1e9),
    down=st.floats(1e6, 1e9),
    base=st.just(BASES[0]),
    train_samples=st.integers(1, 5000),
    points=st.lists(points, min_size=1, max_size=4).map(tuple),
)
fleets = st.lists(sites, min_size=1, max_size=4).map(
    lambda drawn: {f"site-{index}": replace(site, name=f"site-{index}") for index, site in enumerate(drawn)}
)
EXAMPLES: Final = settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
"""Fleets are not shrunk: that takes minutes."""
specs = st.builds(
    lambda deadline, max_steps, epochs, count: a_spec(
        rounds={"deadline": deadline, "count": count}, training={"epochs": epochs, "maxSteps": max_steps}
    ),
    st.sampled_from(("30s", "5m", "1h")),
    st.sampled_from((None, 1, 40)),
    st.sampled_from((None, 0.1, 1.0, 3.0)),
    st.sampled_from((1, 10)),
)


@EXAMPLES
@given(specs, fleets)
def test_no_site_exceeds_the_round_s_length_the_deadline_or_the_wanted_steps(spec: FineTuneSpec, fleet: dict[str, SiteProfile]) -> None:
    request = PlanRequest(spec=spec, head={})

    solution = solve_fleet(request, fleet)

    assert solution.length.seconds <= request.deadline * (1 + 1e-9)
    for name, one in solution.solutions.items():
        assert one.seconds <= solution.length.seconds * (1 + 1e-6)
        assert 1 <= one.steps <= request.wanted_steps(fleet[name], one.choice.batch)
        assert any(one.ranks.values())


@EXAMPLES
@given(specs, fleets)
def test_the_proven_gap_is_at_most_half_a_percent(spec: FineTuneSpec, fleet: dict[str, SiteProfile]) -> None:
    solution = solve_fleet(PlanRequest(spec=spec, head={}), fleet)

    assert -1e-9 <= solution.gap <= 0.005


@EXAMPLES
@given(specs, fleets, st.randoms(use_true_random=False))
def test_the_order_of_the_sites_changes_nothing(spec: FineTuneSpec, fleet: dict[str, SiteProfile], random: Random) -> None:
    shuffled = list(fleet.items())
    random.shuffle(shuffled)
    request = PlanRequest(spec=spec, head={})

    one, other = solve_fleet(request, fleet), solve_fleet(request, dict(shuffled))

    assert (one.length, one.solutions, one.uncovered) == (other.length, other.solutions, other.uncovered)


def progress_per_second(fleet: FleetSolution, fleet_sites: Mapping[str, SiteProfile], seconds: float) -> float:
    """What whole plans within a round of this length are worth per second: H / (1 + passes / 0.6).

    H is the harmonic mean of the steps by samples.
    The sites here take four times as many steps of a quarter of the samples. Their adapters count as √(their value / the largest).
    """
    found = {name: problem.solve(seconds) for name, problem in fleet.problems.items()}
    total = sum(site.train_samples for site in fleet_sites.values())
    if any(one is None for one in found.values()):
        return 0.0
    largest = {name: problem.frontiers[0].values[-1] for name, problem in fleet.problems.items()}
    steps = {name: one.value**2 / math.sqrt(largest[name]) for name, one in found.items() if one is not None}
    taken = {name: min(max(steps.values()), 4 * count) for name, count in steps.items()}
    mean = 1 / sum(fleet_sites[name].train_samples / total / count for name, count in taken.items())
    passes = 16 * sum(steps.values()) / total
    return mean / (1 + passes / 0.6) / (seconds + ROUND_OVERHEAD)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_length_of_the_round_brings_clearly_more_progress_per_second(seed: int) -> None:
    random = Random(seed)  # noqa: S311 -- test cases, no secrets
    drawn = {
        f"site-{index}": a_small_site(
            f"site-{index}",
            points=speeds(4000.0 / 2 ** random.uniform(0, 3)),
            up=10 ** random.uniform(6, 8),
            memory_bytes=int(random.uniform(2, 8) * GIB),
            train_samples=random.randint(500, 20_000),
        )
        for index in range(random.randint(1, 3))
    }
    # So many rounds that three passes over the data are no reason for longer ones.
    fleet = solved(*drawn.values(), rounds={"count": 1000, "deadline": "20m"})

    lengths = np.geomspace(1.0, 0.8 * 1200, 60)
    best = max(progress_per_second(fleet, drawn, float(seconds)) for seconds in lengths)

    assert len(fleet.solutions) == len(drawn)
    assert progress_per_second(fleet, drawn, fleet.length.seconds) >= 0.97 * best


@EXAMPLES
@given(specs, sites, st.sampled_from(("memory_bytes", "up", "down")), st.floats(1, 8))
def test_within_the_same_length_more_of_a_resource_never_lowers_the_predicted_progress(
    spec: FineTuneSpec, site: SiteProfile, resource: str, factor: float
) -> None:
    request = PlanRequest(spec=spec, head={})
    richer = replace(site, **{resource: type(getattr(site, resource))(getattr(site, resource) * factor)})
    before = solve_fleet(request, {site.name: site})
    after = solve_fleet(request, {site.name: richer})

    for seconds in (before.length.seconds, 2 * before.length.seconds):
        less, more = before.problems[site.name].solve(seconds), after.problems[site.name].solve(seconds)
        if less is not None:
            assert more is not None
            assert more.value >= less.value * (1 - 2e-3)


@EXAMPLES
@given(specs, sites, st.floats(5, 500), st.floats(1, 8))
def test_more_time_never_lowers_the_predicted_progress(spec: FineTuneSpec, site: SiteProfile, seconds: float, factor: float) -> None:
    problem = solve_fleet(PlanRequest(spec=spec, head={}), {site.name: site}).problems[site.name]
    less, more = problem.solve(seconds), problem.solve(seconds * factor)

    if less is not None:
        assert more is not None
        assert more.value >= less.value * (1 - 2e-3)


def test_slow_sites_take_smaller_batches_and_nearly_as_many_steps_and_all_finish_together() -> None:
    tiers = {f"tier-{slow}": a_small_site(f"tier-{slow}", points=speeds(4000.0 / slow), train_samples=50_000) for slow in (1, 2, 4, 8)}

    fleet = solve_fleet(a_request(), tiers)

    found = [fleet.solutions[name] for name in tiers]
    assert [one.choice.batch for one in found] == [16, 8, 4, 4]
    assert found[0].steps < 2.5 * found[3].steps
    assert found[0].steps * 16 > 4 * found[3].steps * 4
    assert all(one.seconds >= 0.9 * fleet.length.seconds for one in fleet.solutions.values())


def test_a_slow_uplink_lowers_the_ranks_more_than_the_steps() -> None:
    fleet = solved(a_small_site("fast", up=1e9), a_small_site("slow", up=5e5))
    fast, slow = fleet.solutions["fast"], fleet.solutions["slow"]

    assert sum(slow.ranks.values()) < 0.5 * sum(fast.ranks.values())
    assert slow.steps > 0.5 * fast.steps


def test_less_and_less_memory_first_splits_the_batch_and_last_costs_depth_bits_and_ranks() -> None:
    """On a GPU whose speed depends on nothing but the model: what costs the least progress is given up first."""
    big = a_small_site(device="NVIDIA A10", runtime_bytes=0, load_peak_bytes={4: 0, 8: 0, 16: 0})
    seconds = solved(big).length.seconds

    def choice(memory: float) -> Solution | None:
        problem = solved(replace(big, memory_bytes=int(memory))).problems["ward"]
        return problem.solve(seconds)

    plans = [plan for share in range(100, 0, -2) if (plan := choice(share / 100 * 4 * GIB)) is not None]
    values = [plan.value for plan in plans]
    first = next(plan for plan in plans if plan.choice != plans[0].choice)

    assert plans[0].choice[:5] == (32, 16, 16, False, 0)
    assert all(less <= more * (1 + 2e-3) for more, less in pairwise(values))
    assert first.choice.micro_batch < 16
    assert (first.choice.lowest_layer, first.ranks) == (0, plans[0].ranks)
    assert plans[-1].choice.bits == 4


def test_all_rounds_together_make_three_passes_over_the_data_if_the_deadline_allows() -> None:
    sites = (a_small_site("one", train_samples=2000), a_small_site("two", train_samples=1000))

    fleet = solved(*sites, rounds={"count": 2, "deadline": "8h"})

    passes = 2 * sum(one.steps for one in fleet.solutions.values()) * 16 / 3000
    assert RUN_PASSES <= passes * 1.05 < 1.3 * RUN_PASSES
    assert fleet.length.reason == "which the planner chose so that all sites together make about 3 passes over the data in 2 rounds"


def test_a_deadline_that_allows_no_three_passes_is_used_whole() -> None:
    fleet = solved(a_small_site(train_samples=100_000), rounds={"count": 1, "deadline": "5m"})

    assert fleet.length.seconds == pytest.approx(DEADLINE_FRACTION * 300)
    assert fleet.length.reason == "the longest that rounds.deadline allows"


def test_of_many_rounds_each_has_the_length_of_the_most_progress_per_second() -> None:
    fleet = solved(a_small_site(load_seconds={16: 10.0}), rounds={"count": 100, "deadline": "8h"})

    assert fleet.length.reason == "which the planner chose for the most predicted progress per second"
    assert fleet.length.seconds > 10.0


def a_fleet(training: dict[str, float] | None = None, **rounds: Any) -> FleetSolution:
    sites = (a_small_site("one", load_seconds={16: 10.0}), a_small_site("two", load_seconds={16: 10.0}, points=speeds(900.0)))
    return solved(*sites, planning={"bits": [16]}, rounds=rounds, training=training or {})


def a_length(training: dict[str, float] | None = None, **rounds: Any) -> RoundLength:
    return a_fleet(training, **rounds).length


def test_a_round_that_the_deadline_limits_is_longer_with_a_later_one() -> None:
    assert a_length(count=1, deadline="2m").longer == "by raising rounds.deadline"
    assert a_length(count=1, deadline="3m").seconds > a_length(count=1, deadline="2m").seconds


@pytest.mark.parametrize("rounds", [3, 10, 100])
@pytest.mark.parametrize("factor", [1.02, 1.25, 1.6])
def test_a_round_that_the_planner_chose_gets_as_long_as_is_told_with_the_count_of_rounds_that_is_told(rounds: int, factor: float) -> None:
    """And with no later deadline."""
    now = a_fleet(count=rounds, deadline="8h")

    told = longer_by(a_request(rounds={"count": rounds, "deadline": "8h"}), now, factor * now.length.seconds)

    count = re.fullmatch(rf"a rounds\.count of (\d+) instead of {rounds} makes rounds at least that much longer", told)
    assert count
    assert int(count[1]) < rounds
    assert a_length(count=int(count[1]), deadline="8h").seconds >= factor * now.length.seconds
    assert a_length(count=rounds, deadline="24h").seconds == now.length.seconds


def test_where_fewer_rounds_fill_more_than_the_deadline_a_later_one_is_told_as_well() -> None:
    now = a_fleet(count=3, deadline="2m")
    seconds = 1.25 * now.length.seconds

    told = longer_by(a_request(rounds={"count": 3, "deadline": "2m"}), now, seconds)

    assert told == "a rounds.count of 2 instead of 3 and a later rounds.deadline make rounds at least that much longer"
    assert a_length(count=2, deadline="2m").seconds < seconds <= a_length(count=2, deadline="3m").seconds


@pytest.mark.parametrize(("field", "less", "now"), [("maxSteps", 9, 10), ("epochs", 0.2, 0.25)])
def test_a_round_of_all_the_steps_that_the_spec_allows_has_its_length_from_the_field_that_says_how_many(
    field: str, less: float, now: float
) -> None:
    assert a_length({field: now}, count=2, deadline="8h").longer == f"training.{field} sets its length"
    assert a_length({field: less}, count=2, deadline="8h").seconds < a_length({field: now}, count=2, deadline="8h").seconds


@pytest.mark.parametrize("training", [{}, {"epochs": 5.0}, {"maxSteps": 1000}])
def test_the_length_of_a_single_round_of_three_passes_is_set_by_no_field(training: dict[str, float]) -> None:
    """More passes that the spec would allow are not what sets it."""
    assert a_length(training, count=1, deadline="8h").longer == "no field of the spec sets its length"


@pytest.mark.parametrize(
    ("training", "most"), [({"maxSteps": 7}, 7), ({"epochs": 0.5}, 20), ({"epochs": 0.001}, 1), ({}, MAX_PASSES * 640 / 16)]
)
def test_steps_are_at_most_those_of_the_spec(training: dict[str, float], most: int) -> None:
    assert solved(a_small_site(), rounds={"count": 1, "deadline": "8h"}, training=training).solutions["ward"].steps == most


def test_all_weights_of_a_site_of_plenty_get_the_largest_rank() -> None:
    fleet = solved(a_small_site(memory_bytes=256 * GIB, up=1e12), rounds={"count": 1, "deadline": "8h"})

    assert set(fleet.solutions["ward"].ranks.values()) == {32}


def test_with_full_depth_every_site_trains_from_the_first_layer() -> None:
    slow = a_small_site(points=speeds(100.0))
    free = solved(slow, planning={"bits": [16]}, rounds={"deadline": "2m"}).solutions["ward"]
    full = solved(slow, planning={"bits": [16], "depth": "Full"}, rounds={"deadline": "2m"}).solutions["ward"]

    assert full.choice.lowest_layer == 0
    assert full.value <= free.value * (1 + 2e-3)


def test_a_site_that_cannot_take_part_does_not_change_the_others() -> None:
    tiny, good = a_small_site("tiny", memory_bytes=GIB // 8), a_small_site("good")

    both = solved(tiny, good)

    assert set(both.solutions) == {"good"}
    assert both.solutions["good"] == solved(good).solutions["good"]


def test_a_fleet_without_any_able_site_has_no_plan() -> None:
    fleet = solved(a_small_site(memory_bytes=GIB // 8))

    assert fleet.solutions == {}
    assert fleet.gap == 0


def test_a_site_that_is_not_selected_neither_lengthens_the_round_nor_covers_its_weights() -> None:
    fast, slow = {name: a_small_site(name) for name in "ab"}, a_small_site("c", points=speeds(4.0), load_seconds={16: 200.0})
    spec, fleet = a_spec(planning={"bits": [16]}), fast | {"c": slow}

    alone, chosen = plan_round(spec, fast, {}), plan_round(spec, fleet, {}, select=lambda able: sorted(able)[:2])
    everyone = plan_round(spec, fleet, {})

    assert {name: chosen.plans.plans[name] for name in fast} == alone.plans.plans
    assert chosen.plans.plans["c"] == everyone.plans.plans["c"], "as if all took part"
    assert everyone.plans.plans["a"].forecast.seconds > 2 * chosen.plans.plans["a"].forecast.seconds
