"""Coverage: a weight that few samples train would be decided by them alone, so no site trains it (DESIGN §9: to more sites or to none).

Nor does any site train a weight that fewer do than their policies ask for (`policy.minSites`): it would not be aggregated.

The sites that chose such a weight are solved anew, within the same length of the round, with the weights only that enough samples train:
the room, bytes and seconds that the others would have taken are spent again, and a site trains no layer in vain. That may change the depth
of a site, and so leave another weight with too few; each time fewer weights are left, so it ends.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.mixing import mixable
from fedpipe_operator.planning.frontier import Frontier
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.site_problem import ROUNDING, SiteProblem, Solution, solve_all
from fedpipe_operator.sites import SiteProfile

COVERAGE: Final = 0.1
"""The least share of the round's samples that must train a weight: fewer would decide over it alone."""
_TOGETHER: Final = 3
"""Sites that no single one keeps from a weight."""


class Covered(NamedTuple):
    """Solutions in which enough samples train every weight that any site trains."""

    solutions: dict[str, Solution]
    """By site; without sites that can train no such weight in the round."""
    frontiers: Mapping[int, Frontier]
    """By lowest layer: of the weights that sites may train."""
    uncovered: tuple[str, ...]
    """The weights that too few samples would have trained, in the model's order."""
    crowded_out: frozenset[str]
    """Sites with a solution before, which can train none of the weights that are left."""


def are_enough(samples: float, sites: int, *, all_samples: float, all_sites: int) -> bool:
    """Whether so many samples, of so many sites, are enough for a weight, of those of all sites of the round.

    They are if all sites but one have them, three at least: what one site says of its samples keeps no weight from the others.
    """
    return samples >= COVERAGE * all_samples or sites >= max(_TOGETHER, all_sites - 1)


def cover(
    request: PlanRequest,
    sites: Mapping[str, SiteProfile],
    solutions: Mapping[str, Solution],
    problems: Mapping[str, SiteProblem],
    seconds: float,
) -> Covered:
    """Solve the sites anew that train a weight with too few others, until there is none.

    Args:
        request: the run, with the given plans.
        sites: by name, those with a solution among them.
        solutions: the best within the length of the round, by site.
        problems: of these sites.
        seconds: the length of the round.
    """
    made, dropped = dict(solutions), set[str]()
    frontiers = next((problems[name].frontiers for name in solutions), {})
    while few := _trained_by_few(request, sites, made):
        dropped |= few
        frontiers = _of_weights(frontiers, _trained_by_enough(request, sites, made))
        again = {name for name, one in made.items() if few & _trained(one)}
        smaller = {name: _of_depths(request, sites[name], problems[name], frontiers) for name in made if name in again} if frontiers else {}
        made = {name: one for name, one in made.items() if name not in again} | solve_all(smaller, seconds)
    every = next(iter(sites.values())).base.weights if sites else ()
    made = {name: made[name] for name in solutions if name in made}
    return Covered(made, frontiers, tuple(weight.name for weight in every if weight.name in dropped), frozenset(solutions.keys() - made))


def long_enough(request: PlanRequest, sites: Mapping[str, SiteProfile], covered: Covered) -> float:
    """Seconds of the shortest round in which those sites that are crowded out can take part that can before the deadline; 0 if none can."""
    if not covered.frontiers:
        return 0.0
    shortest = [ROUNDING * SiteProblem.of(request, sites[name], covered.frontiers).shortest() for name in covered.crowded_out]
    return max((seconds for seconds in shortest if seconds <= request.deadline), default=0.0)


def _of_depths(request: PlanRequest, site: SiteProfile, problem: SiteProblem, frontiers: Mapping[int, Frontier]) -> SiteProblem:
    """The problem with these frontiers, and with other depths than its own only where none of its own is among theirs."""
    rows = np.flatnonzero(np.isin(problem.rows.lowest, list(frontiers)))
    return replace(problem.only(rows), frontiers=frontiers) if len(rows) else SiteProblem.of(request, site, frontiers)


def _trained(solution: Solution) -> frozenset[str]:
    return frozenset(weight for weight, rank in solution.ranks.items() if rank)


def _trained_by_few(request: PlanRequest, sites: Mapping[str, SiteProfile], solutions: Mapping[str, Solution]) -> set[str]:
    """The weights that some of these sites train, but too few samples."""
    return set().union(*(_trained(one) for one in solutions.values())) - _trained_by_enough(request, sites, solutions)


def _trained_by_enough(request: PlanRequest, sites: Mapping[str, SiteProfile], solutions: Mapping[str, Solution]) -> set[str]:
    """The weights that enough of the round's samples train, those of the given plans included.

    A site that has too few others at a weight for its policy counts as none: what it trains there stays out of the aggregate.
    """
    parts = {name: (sites[name].train_samples, sites[name].min_sites, _trained(one)) for name, one in solutions.items()}
    parts |= {name: (one.samples, one.min_sites, one.weights) for name, one in request.given.items()}
    trainers: dict[str, dict[str, int]] = {}
    for name, (_, least, weights) in parts.items():
        for weight in weights:
            trainers.setdefault(weight, {})[name] = least
    counts = {weight: [parts[name][0] for name in mixable(of)] for weight, of in trainers.items()}
    total = sum(count for count, _, _ in parts.values())
    return {weight for weight, of in counts.items() if of and are_enough(sum(of), len(of), all_samples=total, all_sites=len(parts))}


def _of_weights(frontiers: Mapping[int, Frontier], kept: Collection[str]) -> dict[int, Frontier]:
    """The frontiers of these weights only, without depths that reach none of them that a smaller depth does not reach."""
    of_kept = {
        lowest: replace(one, weights=tuple(weight for weight in one.weights if weight.name in kept)) for lowest, one in frontiers.items()
    }
    highest = {one.weights: max(low for low, other in of_kept.items() if other.weights == one.weights) for one in of_kept.values()}
    return {lowest: one for lowest, one in of_kept.items() if one.weights and highest[one.weights] == lowest}
