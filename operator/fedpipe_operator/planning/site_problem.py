"""The best plan of one site within a round of given length.

    maximise   n^½ · S(P)^¼      S(P): what adapters of P elements are worth at most (`frontier`), n: optimiser steps
    subject to P ≤ the elements for which memory leaves room
               fixed + n · step + P · (seconds to send an element) ≤ T,    1 ≤ n ≤ the steps that the run wants

over all rows of `choices`. For a row, log n + log S is concave along the time constraint, so the relaxed optimum is found by a ternary
search on log n, for all rows at once. Rows are then solved with whole steps and whole ranks, the most promising first, until no other row
can be better: the answer is at most `TOLERANCE` below the best.

The exponents follow what was measured (benchmarks/README.md, *Progress by steps and depth*): the loss falls about like √steps, and two of
six layers bring 0.7 to 1.07 of what all six bring in as many steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import floor
from typing import Final, NamedTuple, Self

import numpy as np

from fedpipe_operator.api import Bits
from fedpipe_operator.planning.choices import Choice, choices_of, seconds_per_element
from fedpipe_operator.planning.frontier import Frontier
from fedpipe_operator.planning.memory_model import Float64, Int64
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.sizes import adapter_parameters
from fedpipe_operator.sites import SiteProfile

STEPS_EXPONENT: Final = 0.5
VALUE_EXPONENT: Final = 0.25
BITS_QUALITY: Final[Mapping[Bits, float]] = {4: 0.95, 8: 0.98, 16: 1.0, 32: 1.0}
"""Fewer bits make a site feasible, and cost a little quality: without this a base that is a trifle faster at 4 bits would be preferred."""
TOLERANCE: Final = 1e-3
ROUNDING: Final = 1.0001
"""A round is this much longer than the shortest one of a site, so that rounding does not exclude it."""
_SEARCH_ROUNDS: Final = 28
"""Each leaves two thirds of the interval of log n: 28 leave 1e-5 of it."""
_COUNTED_STEPS: Final = 2048
"""Up to so many steps every number is tried; of more, so many with equal ratios (below 1 %)."""


class Solution(NamedTuple):
    """A choice with whole ranks and steps."""

    choice: Choice
    ranks: dict[str, int]
    steps: int
    seconds: float
    value: float
    bound: float = 0.0
    """No plan of the site within this length of the round is worth more."""


@dataclass(frozen=True)
class Rows:
    """Choices as arrays with one element each, of one site or of many."""

    lowest: Int64
    """The lowest trained layer."""
    fixed: Float64
    """Seconds that depend neither on the steps nor on the adapters."""
    step: Float64
    """Seconds of a step."""
    room: Float64
    """Elements of adapters for which memory leaves room."""
    wanted: Float64
    """The most steps of a round."""
    per_element: Float64
    """Seconds to send one element of the update."""
    quality: Float64
    """What training on a base of these bits is worth, of one of 16 bits."""

    def most_steps(self, seconds: float) -> Float64:
        """The steps that fit into a round of this length without any adapter, and are wanted."""
        return np.minimum(self.wanted, (seconds - self.fixed) / self.step)

    def budgets(self, steps: Float64, seconds: float) -> Float64:
        """Elements of adapters that memory and the rest of the time leave."""
        left = (seconds - self.fixed - steps * self.step) / self.per_element
        return np.maximum(0.0, np.minimum(self.room, left))


def relaxed_optima(rows: Rows, frontiers: Mapping[int, Frontier], seconds: float) -> Float64:
    """For each row an upper bound of the value within a round of this length: the relaxed optimum; 0 where nothing fits."""
    groups = [(rows.lowest == layer, frontier) for layer, frontier in frontiers.items()]

    def relaxed(steps: Float64) -> Float64:
        budgets, adapters = rows.budgets(steps, seconds), np.zeros(len(rows.lowest))
        for mine, frontier in groups:
            adapters[mine] = frontier.relaxed(budgets[mine])
        return rows.quality * worth(steps, adapters)

    most = rows.most_steps(seconds)
    low, high = np.zeros(len(most)), np.log(np.maximum(most, 1.0))
    for _ in range(_SEARCH_ROUNDS):
        third = (high - low) / 3
        rises = relaxed(np.exp(low + third)) < relaxed(np.exp(high - third))
        low, high = np.where(rises, low + third, low), np.where(rises, high, high - third)
    # The optimum is in between: it has at most the steps of `high`, and adapters worth at most those beside the steps of `low`.
    bound = relaxed(np.exp(low)) * np.exp(STEPS_EXPONENT * (high - low))
    return np.where((most >= 1) & (rows.room > 0), bound, 0.0)


@dataclass(frozen=True)
class SiteProblem:
    """A site's choices without those that another is at least as good as, and what limits them."""

    choices: tuple[Choice, ...]
    rows: Rows
    frontiers: Mapping[int, Frontier]
    """By lowest layer."""

    @classmethod
    def of(cls, request: PlanRequest, site: SiteProfile, frontiers: Mapping[int, Frontier]) -> Self:
        """The problem of a site, with the depths of these frontiers."""
        choices = choices_of(request, site, lowest=tuple(frontiers))
        most = np.array([frontiers[choice.lowest_layer].costs[-1] for choice in choices.rows])
        every = Rows(
            lowest=np.array([choice.lowest_layer for choice in choices.rows], dtype=np.int64),
            fixed=choices.fixed,
            step=choices.step,
            room=np.minimum(choices.room, most),
            wanted=np.full(len(most), float(request.wanted_steps(site))),
            per_element=np.full(len(most), seconds_per_element(request, site)),
            quality=np.array([BITS_QUALITY[choice.bits] for choice in choices.rows]),
        )
        kept = _undominated(every)
        problem = cls(choices.rows, every, frontiers).only(kept)
        is_deepest_wanted = request.is_stalled or request.floor is not None
        return problem.deepest(request.deadline) if is_deepest_wanted else problem

    def only(self, kept: Int64) -> Self:
        """The problem with these rows only."""
        rows = Rows(**{one.name: getattr(self.rows, one.name)[kept] for one in fields(Rows)})
        return replace(self, choices=tuple(self.choices[index] for index in kept), rows=rows)

    def deepest(self, deadline: float) -> Self:
        """The problem with the greatest depth that memory and a round of this length allow; unchanged if they allow none."""
        for lowest in np.unique(self.rows.lowest):
            problem = self.only(np.flatnonzero(self.rows.lowest == lowest))
            if problem.shortest() * ROUNDING <= deadline:
                return problem
        return self

    def shortest(self) -> float:
        """The shortest round in which the site can take part, with one step and one adapter; infinite if its memory allows none."""
        least = np.array([self.frontiers[choice.lowest_layer].smallest for choice in self.choices])
        seconds = self.rows.fixed + self.rows.step + least * self.rows.per_element
        return float(np.min(np.where(self.rows.room >= least, seconds, np.inf), initial=np.inf))

    def longest(self) -> float:
        """The longest round that the site can use: all wanted steps of its slowest choice, with all adapters that fit."""
        seconds = self.rows.fixed + self.rows.wanted * self.rows.step + self.rows.room * self.rows.per_element
        return float(np.max(np.where(self.rows.room > 0, seconds, 0.0), initial=0.0))

    def solve(self, seconds: float, tolerance: float = TOLERANCE, *, relaxed: Float64 | None = None) -> Solution | None:
        """The best plan within a round of this length; None if nothing fits.

        Args:
            seconds: the length of the round.
            tolerance: the share by which the plan may be worth less than the best.
            relaxed: the rows' relaxed optima, where they are known.
        """
        relaxed = relaxed_optima(self.rows, self.frontiers, seconds) if relaxed is None else relaxed
        best: Solution | None = None
        for row in sorted(range(len(relaxed)), key=lambda row: (-relaxed[row], row)):
            least = best.value * (1 + tolerance) if best else 0.0
            if relaxed[row] <= least:
                break
            best = self._best_of(row, seconds, least, tolerance) or best
        if best is None:
            return None
        # What was tried is worth at most `tolerance` less than it can be, and what was not tried at most `tolerance` more than the best.
        proven = best.value * (1 + tolerance) / (1 - tolerance) * _unseen_gain(self.rows.most_steps(seconds))
        return best._replace(bound=max(best.value, min(proven, float(relaxed.max()))))

    def _best_of(self, row: int, seconds: float, least: float, tolerance: float) -> Solution | None:
        """The best whole solution of one row, if it is worth more than `least`."""
        frontier, steps = self.frontiers[int(self.rows.lowest[row])], _step_counts(int(self.rows.most_steps(seconds)[row]))
        left = (seconds - self.rows.fixed[row] - steps * self.rows.step[row]) / self.rows.per_element[row]
        budgets = np.maximum(0.0, np.minimum(self.rows.room[row], left))
        bounds = self.rows.quality[row] * worth(steps, frontier.relaxed(budgets))
        best: Solution | None = None
        for index in np.argsort(-bounds, kind="stable"):
            if bounds[index] <= least:
                break
            found = self._whole(row, float(budgets[index]), seconds, tolerance)
            if found is not None and found.value > least:
                best, least = found, found.value * (1 + tolerance)
        return best

    def _whole(self, row: int, budget: float, seconds: float, tolerance: float) -> Solution | None:
        """The best ranks within a budget of elements, and all the steps that then fit."""
        frontier = self.frontiers[int(self.rows.lowest[row])]
        ranks = frontier.solve(budget, 1 - (1 - tolerance) ** (1 / VALUE_EXPONENT))
        elements = adapter_parameters(frontier.weights, ranks)
        fixed = float(self.rows.fixed[row] + elements * self.rows.per_element[row])
        step = float(self.rows.step[row])
        steps = min(int(self.rows.wanted[row]), floor((seconds - fixed) / step + 1e-9))
        if elements == 0 or steps < 1:
            return None
        value = float(self.rows.quality[row] * worth(np.array([float(steps)]), np.array([frontier.value(ranks)]))[0])
        return Solution(self.choices[row], ranks, steps, fixed + steps * step, value)


class Stacked(NamedTuple):
    """The rows of many sites in one."""

    rows: Rows
    first: Int64
    """Where those of each site begin."""


def stack(problems: Sequence[SiteProblem]) -> Stacked:
    """The rows of these problems, of which there is at least one."""
    stacked = Rows(**{one.name: np.concatenate([getattr(problem.rows, one.name) for problem in problems]) for one in fields(Rows)})
    counts = [len(problem.rows.lowest) for problem in problems]
    return Stacked(stacked, np.cumsum([0, *counts[:-1]]))


def solve_all(problems: Mapping[str, SiteProblem], seconds: float) -> dict[str, Solution]:
    """The best plans within a round of this length, by site; none for a site that nothing fits. All problems have the same frontiers."""
    if not problems:
        return {}
    stacked = stack(list(problems.values()))
    relaxed = np.split(relaxed_optima(stacked.rows, next(iter(problems.values())).frontiers, seconds), stacked.first[1:])
    solved = {name: problem.solve(seconds, relaxed=optima) for (name, problem), optima in zip(problems.items(), relaxed, strict=True)}
    return {name: solution for name, solution in solved.items() if solution is not None}


def worth(steps: Float64, adapters: Float64) -> Float64:
    """The progress that so many steps with adapters of this value make (dimensionless)."""
    return np.power(steps, STEPS_EXPONENT) * np.power(np.maximum(adapters, 0.0), VALUE_EXPONENT)


def _undominated(rows: Rows) -> Int64:
    """The rows of which no other of the same depth is as good in everything; of equals the last."""
    kept = []
    for layer in np.unique(rows.lowest):
        mine = np.flatnonzero((rows.lowest == layer) & (rows.room > 0))
        # One line for each row, more of everything being better.
        goods = np.column_stack((-rows.fixed[mine], -rows.step[mine], rows.room[mine], rows.quality[mine]))
        as_good = (goods[:, None, :] >= goods).all(axis=2)
        later = np.arange(len(mine))[:, None] > np.arange(len(mine))
        # `as_good[i, j]` and not `as_good[j, i]`: i is better in something.
        dominated = (as_good & (~as_good.T | later)).any(axis=0)
        kept.append(mine[~dominated])
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def _unseen_gain(most: Float64) -> float:
    """The factor by which numbers of steps that are not tried may be worth more than the next lower one that is."""
    counts = _step_counts(int(np.max(most, initial=1.0)))
    return float(np.max((counts[1:] - 1) / counts[:-1], initial=1.0) ** STEPS_EXPONENT)


def _step_counts(most: int) -> Float64:
    """The numbers of steps that are tried, ascending."""
    if most <= _COUNTED_STEPS:
        return np.arange(1, most + 1, dtype=np.float64)
    return np.unique(np.round(np.geomspace(1, most, _COUNTED_STEPS)))
