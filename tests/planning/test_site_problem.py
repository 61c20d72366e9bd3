"""The best plan of one site within a round, against every combination of row, ranks and steps of small random problems."""

from itertools import product
from random import Random
from typing import Final

import numpy as np
import pytest
from site_profiles import GIB, MPNET, a_site, a_spec, point

from fedpipe_operator.planning.choices import Choice, choices_of, seconds_per_element
from fedpipe_operator.planning.fleet import frontiers_of
from fedpipe_operator.planning.frontier import Frontier
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.site_problem import BITS_QUALITY, TOLERANCE, Rows, SiteProblem, relaxed_optima, worth
from fedpipe_operator.planning.sizes import adapter_parameters
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import WeightShape

INSTANCES: Final = 400
SIZES: Final = (8, 16, 64)


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311 -- test cases, no secrets


def a_problem(random: Random) -> SiteProblem:
    """Up to four rows of two depths, up to three weights, up to 40 steps; everything else at random."""
    weights = tuple(
        WeightShape(name=f"w{layer}", d_out=random.choice(SIZES), d_in=random.choice(SIZES), layer=layer)
        for layer in range(random.randint(1, 3))
    )
    importance = {weight.name: random.lognormvariate(0, 1) for weight in weights}
    ranks = tuple(sorted(random.sample((1, 2, 4, 8), random.randint(1, 3))))
    depths = (0, len(weights) - 1)
    by_depth = {lowest: Frontier(tuple(one for one in weights if one.layer >= lowest), importance, ranks) for lowest in depths}
    count = random.randint(1, 4)
    lowest = [random.choice(depths) for _ in range(count)]
    rows = Rows(
        lowest=np.array(lowest),
        fixed=np.array([random.uniform(0, 5) for _ in range(count)]),
        step=np.array([random.uniform(0.1, 2) for _ in range(count)]),
        room=np.array([random.uniform(0, 1.2) * by_depth[one].costs[-1] for one in lowest]),
        wanted=np.full(count, float(random.randint(1, 40))),
        per_element=np.full(count, 10 ** random.uniform(-5, -1)),
        quality=np.array([random.choice((0.95, 1.0)) for _ in range(count)]),
    )
    return SiteProblem(tuple(Choice(16, 16, 1 + index, False, one, False) for index, one in enumerate(lowest)), rows, by_depth)


def best_value(problem: SiteProblem, seconds: float) -> float:
    """The most that any row with any ranks and any number of steps is worth; 0 if nothing fits."""
    return max(
        (
            worth_of(problem, row, ranks, seconds)
            for row in range(len(problem.choices))
            for ranks in assignments(problem.frontiers[problem.choices[row].lowest_layer])
        ),
        default=0.0,
    )


def assignments(frontier: Frontier) -> list[dict[str, int]]:
    names = [weight.name for weight in frontier.weights]
    return [dict(zip(names, ranks, strict=True)) for ranks in product((0, *frontier.ranks), repeat=len(names)) if any(ranks)]


def worth_of(problem: SiteProblem, row: int, ranks: dict[str, int], seconds: float) -> float:
    rows, frontier = problem.rows, problem.frontiers[problem.choices[row].lowest_layer]
    elements = adapter_parameters(frontier.weights, ranks)
    left = seconds - rows.fixed[row] - elements * rows.per_element[row]
    steps = min(rows.wanted[row], left // rows.step[row])
    if elements > rows.room[row] or steps < 1:
        return 0.0
    return float(rows.quality[row] * worth(np.array([steps]), np.array([frontier.value(ranks)]))[0])


@pytest.mark.parametrize(("tolerance", "allowed", "instances"), [(0.0, 1e-6, 2000), (TOLERANCE, TOLERANCE, 500), (0.1, 0.1, 200)])
def test_a_plan_fits_and_is_worth_the_best_of_all_within_the_tolerance(tolerance: float, allowed: float, instances: int) -> None:
    for seed in range(instances):
        random = seeded(seed)
        problem, seconds = a_problem(random), random.uniform(1, 40)

        solution, best = problem.solve(seconds, tolerance), best_value(problem, seconds)

        assert (solution is None) == (best == 0), seed
        if solution is not None:
            assert best * (1 - allowed) <= solution.value <= best * (1 + 1e-9), seed
            assert solution.bound >= best * (1 - 1e-9), seed
            row = problem.choices.index(solution.choice)
            assert solution.value == pytest.approx(worth_of(problem, row, solution.ranks, seconds * (1 + 1e-9))), seed
            assert solution.seconds <= seconds * (1 + 1e-9)
            assert 1 <= solution.steps <= problem.rows.wanted[row]


def test_the_relaxed_optimum_of_a_row_is_never_below_the_best_whole_plan() -> None:
    for seed in range(INSTANCES):
        random = seeded(seed)
        problem, seconds = a_problem(random), random.uniform(1, 40)

        bounds = relaxed_optima(problem.rows, problem.frontiers, seconds)

        for row, bound in enumerate(bounds):
            ranks = assignments(problem.frontiers[problem.choices[row].lowest_layer])
            assert max(worth_of(problem, row, one, seconds) for one in ranks) <= bound * (1 + 1e-9), seed


def test_the_shortest_round_is_the_shortest_that_has_a_plan() -> None:
    for seed in range(INSTANCES // 2):
        problem = a_problem(seeded(seed))
        shortest = problem.shortest()

        if np.isfinite(shortest):
            assert problem.solve(shortest * 1.0001) is not None
            assert problem.solve(shortest * 0.999) is None
        else:
            assert problem.solve(1e6) is None


def test_a_longer_round_than_the_longest_brings_nothing() -> None:
    for seed in range(INSTANCES // 2):
        problem = a_problem(seeded(seed))
        longest = problem.longest()
        at_longest, later = problem.solve(longest * 1.0001, 0.0), problem.solve(longest * 10 + 1, 0.0)

        assert (at_longest is None) == (later is None)
        if at_longest is not None and later is not None:
            assert at_longest.value == pytest.approx(later.value, rel=1e-6)


BASE = MPNET.model_copy(update={"layers": 8, "weights": MPNET.weights[:32]})


def test_choices_that_another_is_better_than_are_left_out_without_loss() -> None:
    request = PlanRequest(spec=a_spec(planning={"bits": [4, 8, 16, 32]}), head={})
    for seed in range(30):
        random = seeded(seed)
        speeds = [point(bits=bits, batch=batch, speed=random.uniform(50, 2000)) for bits in (4, 8, 16, 32) for batch in (1, 8)]
        site = a_site(base=BASE, memory_bytes=int(random.uniform(1.2, 6) * GIB), up=10 ** random.uniform(5, 8), points=tuple(speeds))
        by_depth = frontiers_of(request, {site.name: site})
        problem, every = SiteProblem.of(request, site, by_depth), every_row(request, site)

        for seconds in (20.0, 100.0, 600.0):
            few, all_ = (relaxed_optima(rows, by_depth, seconds).max(initial=0.0) for rows in (problem.rows, every))
            assert few == pytest.approx(all_, rel=1e-4)
        assert len(problem.choices) < len(every.lowest) / 2


def every_row(request: PlanRequest, site: SiteProfile) -> Rows:
    choices = choices_of(request, site)
    count = len(choices.rows)
    return Rows(
        lowest=np.array([choice.lowest_layer for choice in choices.rows]),
        fixed=choices.fixed,
        step=choices.step,
        room=choices.room,
        wanted=np.full(count, float(request.wanted_steps(site))),
        per_element=np.full(count, seconds_per_element(request, site)),
        quality=np.array([BITS_QUALITY[choice.bits] for choice in choices.rows]),
    )
