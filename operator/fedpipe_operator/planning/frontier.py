"""The ranks of a site's adapters for a budget of parameters: a multiple-choice knapsack.

Each weight m of the trained layers gets one rank r of the run's ranks; it costs r·(d_in + d_out) elements and is worth I_m·φ(r), where
I_m is its importance and φ is concave. What is worth most within a budget depends only on the base, the importance and the depth, not
on the site. So one `Frontier` for each depth serves the whole fleet: its linear relaxation (Dantzig's bound) is one interpolation.

Memory and bytes are both proportional to the number of elements, so that one budget stands for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Final

import highspy
import numpy as np

from fedpipe_operator.planning.memory_model import Float64
from fedpipe_trainer.contract import WeightShape

HALF_VALUE_RANK: Final = 2.0
"""φ(r) = r / (r + 2): rank 2 is worth half of what any rank can be. See benchmarks/README.md for what ranks were worth in training."""
_OPTIONS: Final[Mapping[str, bool | int | float]] = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 0.0,
}
_TIE: Final = 1e-9
"""Of equal weights the first in the model's order is preferred, so that ties are broken in the same way on every machine."""


def rank_value(rank: float) -> float:
    """φ: what an adapter of this rank is worth, from 0 for none towards 1; increasing and concave."""
    return rank / (rank + HALF_VALUE_RANK)


@dataclass(frozen=True)
class Increment:
    """A step up in the rank of one weight."""

    weight: str
    rank: int
    """The rank after the step."""
    cost: int
    """Elements that the step adds."""
    value: float


@dataclass(frozen=True)
class Frontier:
    """What adapters of the layers from `lowest_layer` on are worth at most, by budget."""

    weights: tuple[WeightShape, ...]
    """Those of the trained layers."""
    importance: Mapping[str, float]
    ranks: tuple[int, ...]
    """Ascending, without 0."""

    @cached_property
    def increments(self) -> tuple[Increment, ...]:
        """All steps up, those with the most value per element first; of one weight in the order of their ranks."""
        pairs = list(pairwise((0, *self.ranks)))
        steps = [self._increment(weight, below, rank) for weight in self.weights for below, rank in pairs]
        return tuple(sorted(steps, key=lambda step: -step.value / step.cost))  # stable: equal steps stay in the model's order

    @cached_property
    def costs(self) -> Float64:
        """Elements after each increment, from 0."""
        return np.cumsum([0.0, *(step.cost for step in self.increments)])

    @cached_property
    def values(self) -> Float64:
        """The value after each increment, from 0."""
        return np.cumsum([0.0, *(step.value for step in self.increments)])

    @cached_property
    def smallest(self) -> float:
        """Elements of the smallest adapter; infinite if no weight can get one."""
        return float(min((self.ranks[0] * (weight.d_in + weight.d_out) for weight in self.weights), default=np.inf))

    def relaxed(self, budgets: Float64) -> Float64:
        """An upper bound of the value for each budget (elements): that of the linear relaxation, where the last step may be a fraction."""
        return np.interp(budgets, self.costs, self.values)

    def value(self, ranks: Mapping[str, int]) -> float:
        """Σ I_m φ(r_m)."""
        return sum(self.importance[weight.name] * rank_value(ranks.get(weight.name, 0)) for weight in self.weights)

    def greedy(self, budget: float) -> dict[str, int]:
        """Ranks within the budget: every increment that still fits, best first. A weight that is passed over gets no later increment."""
        chosen, left = dict.fromkeys((weight.name for weight in self.weights), 0), budget
        passed = set[str]()
        for step in self.increments:
            if step.cost <= left and step.weight not in passed:
                chosen[step.weight], left = step.rank, left - step.cost
            else:
                passed.add(step.weight)
        return chosen

    def solve(self, budget: float, tolerance: float) -> dict[str, int]:
        """Ranks within the budget, worth at most the share `tolerance` less than the best: the greedy ones if they are, else exact ones."""
        greedy = self.greedy(budget)
        bound = float(self.relaxed(np.array([budget]))[0])
        return greedy if self.value(greedy) >= bound * (1 - tolerance) else self.exact(budget)

    def exact(self, budget: float) -> dict[str, int]:
        """The best ranks within the budget, by HiGHS: max Σ v_mr x_mr with Σ_r x_mr = 1 for each weight and Σ c_mr x_mr ≤ budget."""
        options = self._competing(budget)
        solver = _quiet_solver()
        scale = max((option.value for option in options), default=0.0) or 1.0
        for index, option in enumerate(options):
            solver.addVar(0.0, 1.0)
            solver.changeColCost(index, option.value / scale * (1 - _TIE * index / len(options)))
        columns = np.arange(len(options))
        solver.changeColsIntegrality(len(options), columns, np.full(len(options), highspy.HighsVarType.kInteger.value, dtype=np.uint8))
        for _, mine in groupby(columns, key=lambda column: options[column].weight):
            same = np.array(list(mine))
            solver.addRow(1.0, 1.0, len(same), same, np.ones(len(same)))
        costs = np.array([float(option.cost) for option in options])
        solver.addRow(-highspy.kHighsInf, float(budget), len(options), columns, costs)
        solver.changeObjectiveSense(highspy.ObjSense.kMaximize)
        solver.run()
        chosen = solver.getSolution().col_value
        return {option.weight: option.rank for option, is_chosen in zip(options, chosen, strict=True) if round(is_chosen)}

    def _competing(self, budget: float) -> list[Increment]:
        """The ranks of each weight that better ranks than the greedy ones may have, as increments from 0.

        At the price of the relaxation's last element, each weight has a best rank; another loses against it. Ranks that lose more than
        the greedy answer lacks to the bound are in no better answer (Pisinger, doi 10.1016/0377-2217(94)00013-3).
        """
        last = int(np.searchsorted(self.costs, budget))
        price = self.increments[last - 1].value / self.increments[last - 1].cost if 0 < last <= len(self.increments) else 0.0
        lacking = float(self.relaxed(np.array([budget]))[0]) - self.value(self.greedy(budget))
        competing = []
        for weight in self.weights:
            options = [self._increment(weight, 0, rank) for rank in (0, *self.ranks)]
            best = max(option.value - price * option.cost for option in options)
            competing += [option for option in options if best - (option.value - price * option.cost) <= lacking * (1 + _TIE) + _TIE]
        return competing

    def _increment(self, weight: WeightShape, below: int, rank: int) -> Increment:
        gained = self.importance[weight.name] * (rank_value(rank) - rank_value(below))
        return Increment(weight.name, rank, (rank - below) * (weight.d_in + weight.d_out), gained)


def frontiers(
    weights: Sequence[WeightShape], importance: Mapping[str, float], ranks: Sequence[int], lowest_layers: Sequence[int]
) -> dict[int, Frontier]:
    """A frontier for each depth, by lowest trained layer."""
    usable = tuple(sorted({rank for rank in ranks if rank}))
    return {lowest: Frontier(tuple(weight for weight in weights if weight.layer >= lowest), importance, usable) for lowest in lowest_layers}


def _quiet_solver() -> highspy.Highs:
    """A solver that prints nothing and gives the same answer on every machine: one thread, a fixed seed, no gap."""
    solver = highspy.Highs()  # type: ignore[no-untyped-call]  # its stubs leave the constructor out
    for option, value in _OPTIONS.items():
        solver.setOptionValue(option, value)
    return solver
