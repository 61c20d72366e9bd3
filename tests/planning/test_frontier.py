"""The ranks of adapters for a budget of elements, against every possible assignment of small random models."""

from itertools import product
from random import Random

import numpy as np
import pytest

from fedpipe_operator.planning.frontier import Frontier, frontiers, rank_value
from fedpipe_operator.planning.sizes import adapter_parameters
from fedpipe_trainer.contract import WeightShape

INSTANCES = 1000


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311 -- test cases, no secrets


def some_weights(random: Random, count: int) -> tuple[WeightShape, ...]:
    sizes = (8, 16, 24, 64)
    return tuple(
        WeightShape(name=f"w{index}", d_out=random.choice(sizes), d_in=random.choice(sizes), layer=index) for index in range(count)
    )


def some_frontier(seed: int) -> Frontier:
    """A model of one to four weights of unequal sizes and importance, with one to three ranks."""
    random = seeded(seed)
    weights = some_weights(random, random.randint(1, 4))
    importance = {weight.name: random.choice((0.0, 1.0, random.lognormvariate(0, 1))) for weight in weights}
    return Frontier(weights, importance, tuple(sorted(random.sample((1, 2, 4, 8, 16, 32), random.randint(1, 3)))))


def some_budget(frontier: Frontier, seed: int) -> float:
    return seeded(seed).uniform(0, 1.2) * float(frontier.costs[-1])


def best_value(frontier: Frontier, budget: float) -> float:
    """The most that any assignment of ranks within the budget is worth."""
    names = [weight.name for weight in frontier.weights]
    assignments = (dict(zip(names, ranks, strict=True)) for ranks in product((0, *frontier.ranks), repeat=len(names)))
    return max(frontier.value(ranks) for ranks in assignments if adapter_parameters(frontier.weights, ranks) <= budget)


def alike(count: int, importance: float = 1.0) -> Frontier:
    weights = tuple(WeightShape(name=f"w{index}", d_out=8, d_in=8, layer=index) for index in range(count))
    return Frontier(weights, {weight.name: importance for weight in weights}, (4, 8))


def test_exact_ranks_are_the_best_of_all_assignments() -> None:
    for seed in range(INSTANCES):
        frontier = some_frontier(seed)
        budget = some_budget(frontier, seed)

        ranks = frontier.exact(budget)

        assert set(ranks) == {weight.name for weight in frontier.weights}
        assert adapter_parameters(frontier.weights, ranks) <= budget
        assert frontier.value(ranks) == pytest.approx(best_value(frontier, budget), rel=1e-6), seed


def test_greedy_ranks_fit_and_lack_less_than_one_increment_to_the_bound() -> None:
    for seed in range(INSTANCES):
        frontier = some_frontier(seed)
        budget = some_budget(frontier, seed)

        ranks = frontier.greedy(budget)

        assert adapter_parameters(frontier.weights, ranks) <= budget
        bound = float(frontier.relaxed(np.array([budget]))[0])
        assert bound >= best_value(frontier, budget) * (1 - 1e-12) >= frontier.value(ranks) * (1 - 1e-9)
        assert bound - frontier.value(ranks) <= max(step.value for step in frontier.increments) + 1e-9


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.2])
def test_ranks_are_worth_the_best_within_the_tolerance(tolerance: float) -> None:
    for seed in range(INSTANCES // 4):
        frontier = some_frontier(seed)
        budget = some_budget(frontier, seed)

        ranks = frontier.solve(budget, tolerance)

        assert frontier.value(ranks) >= best_value(frontier, budget) * (1 - tolerance) - 1e-9


def test_the_ranks_of_a_model_of_many_weights_are_proven_to_be_the_best() -> None:
    """The bound of a budget that is spent whole is the best: HiGHS must reach it although greedy leaves a rest elsewhere."""
    random = seeded(1)
    weights = some_weights(random, 120)
    frontier = Frontier(weights, {weight.name: random.lognormvariate(0, 1) for weight in weights}, (2, 4, 8, 16, 32))

    for spent in frontier.costs[20:-1:50]:
        found = frontier.value(frontier.exact(float(spent)))
        assert found == pytest.approx(float(frontier.relaxed(np.array([spent]))[0]), rel=1e-9)


def test_of_equal_weights_the_first_of_the_model_are_taken() -> None:
    frontier = alike(6)
    budget = 3.5 * 4 * 16

    assert list(frontier.exact(budget).values()) == list(frontier.greedy(budget).values()) == [4, 4, 4, 0, 0, 0]


def test_the_smallest_adapter_has_the_smallest_rank_not_the_smallest_step_between_ranks() -> None:
    weights = (WeightShape(name="wide", d_out=64, d_in=64), WeightShape(name="narrow", d_out=8, d_in=8))

    assert Frontier(weights, {"wide": 1.0, "narrow": 1.0}, (16, 17)).smallest == 16 * 16
    assert Frontier((), {}, (16, 17)).smallest == float("inf")


def test_an_important_weight_gets_the_higher_rank() -> None:
    frontier = alike(2)
    important = Frontier(frontier.weights, {"w0": 0.2, "w1": 1.8}, frontier.ranks)

    ranks = important.solve(12 * 16, 0.0)

    assert ranks == {"w0": 4, "w1": 8}


def test_weights_of_no_importance_leave_the_value_at_0() -> None:
    frontier = alike(3, importance=0.0)

    assert frontier.value(frontier.solve(1000, 0.0)) == 0


def test_an_adapter_is_worth_more_by_rank_but_each_rank_adds_less() -> None:
    values = [rank_value(rank) for rank in range(40)]
    gains = np.diff(values)

    assert values[0] == 0
    assert values[2] == 0.5
    assert all(gains > 0)
    assert all(np.diff(gains) < 0)


def test_the_frontier_of_a_depth_has_the_weights_from_its_lowest_layer_on() -> None:
    weights = some_weights(seeded(1), 4)

    by_depth = frontiers(weights, dict.fromkeys((weight.name for weight in weights), 1.0), (0, 8, 4, 4), (0, 3))

    assert [weight.name for weight in by_depth[3].weights] == ["w3"]
    assert by_depth[0].weights == weights
    assert by_depth[0].ranks == (4, 8)
