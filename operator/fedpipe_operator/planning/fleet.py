"""The fleet: the length of a round, and the plan of every site within it.

All sites wait for the slowest, so they are planned to finish together: each takes the steps that fit (FedNova's normalisation makes sure
that more steps are no louder vote). The longer the round, the less its fixed part weighs (load, transfers); the longer, the less a further
step brings. The length with the most predicted progress per second is chosen, as far as the spec leaves it open:
`rounds.deadline` bounds it, `training.epochs` and `training.maxSteps` bound the steps. And all rounds together make `RUN_PASSES` passes
over the fleet's data, if the deadline allows: a run of few short rounds would be efficient and learn little. A plan that the spec gives to
a site is waited for in any case, so no round is shorter, and its samples count in what they train (`coverage`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.formatting import counted
from fedpipe_operator.planning.batches import most_more_steps, with_batch
from fedpipe_operator.planning.choices import can_cache, lowest_layers
from fedpipe_operator.planning.coverage import Covered, cover, long_enough
from fedpipe_operator.planning.frontier import Frontier, frontiers, rank_value
from fedpipe_operator.planning.memory_model import Int64
from fedpipe_operator.planning.passes import batches_of_a_pass, samples_of_a_step
from fedpipe_operator.planning.progress import round_progress
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.samples import counted_train_samples
from fedpipe_operator.planning.site_problem import (
    ROUNDING,
    STEPS_EXPONENT,
    Rows,
    SiteProblem,
    Solution,
    Stacked,
    relaxed_optima,
    solve_all,
    stack,
    worth,
)
from fedpipe_operator.sites import SiteProfile

RUN_PASSES: Final = 3.0
ROUND_OVERHEAD: Final = 2.0
"""Seconds of a round outside of the sites: aggregation and scheduling."""
_LENGTHS: Final = 32
_TYPICAL: Final = 32
_WORTH_A_FLOOR: Final = 1.01
"""A floor that brings less is not worth the writing."""


class RoundLength(NamedTuple):
    """How long the sites work in a round, and what decided it."""

    seconds: float
    reason: str
    longer: str = ""
    """Which field of the spec makes it longer, or sets it, as a clause; where fewer rounds do, if there can be no fewer (`longer_by`)."""
    rate: float = 0.0
    """Predicted progress per second of the round and its overhead."""
    run_steps: float = 0.0
    """The steps of all sites and rounds together that are asked for, where fewer rounds make it longer; 0 where they do not."""


_NO_ROWS: Final = Stacked(Rows(np.zeros(0, dtype=np.int64), *(np.zeros(0) for _ in range(6))), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class FleetSolution:
    """The solution of every site that can take part."""

    length: RoundLength
    solutions: dict[str, Solution]
    most_steps: int
    """Of the site that takes most with the run's batch; 0 without a solution."""
    problems: dict[str, SiteProblem]
    """Of all sites, those without a solution included."""
    frontiers: Mapping[int, Frontier]
    """By lowest layer: of the weights that a site may train, which are all but those that too few sites or samples would train."""
    uncovered: tuple[str, ...]
    """Weights that too few samples would have trained: no site trains them (`coverage`)."""
    crowded_out: frozenset[str]
    """Sites that in this round can train none but such weights: they have no solution."""
    bound: float
    """The most predicted progress that is possible with `frontiers` within the round's length with the run's batch."""
    progress: float
    """The predicted progress of the solutions with the run's batch: the sum of the values, each times the site's share of the samples."""
    stacked: Stacked
    """The rows of the sites that can take part in a round within the deadline."""

    @property
    def gap(self) -> float:
        """The share by which the solutions may be below the best possible, at most."""
        return 1 - self.progress / self.bound if self.bound > 0 else 0.0


@dataclass(frozen=True)
class _Fleet:
    """The sites' problems, and the length of the round for those that can take part."""

    by_depth: Mapping[int, Frontier]
    problems: dict[str, SiteProblem]
    able: dict[str, SiteProblem]
    """Of the sites that can take part in a round within the deadline."""
    stacked: Stacked
    length: RoundLength


def _fleet_of(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> _Fleet:
    by_depth = frontiers_of(request, sites)
    problems = {name: SiteProblem.of(request, site, by_depth) for name, site in sorted(sites.items())}
    able = {name: problem for name, problem in problems.items() if problem.shortest() * ROUNDING <= request.deadline}
    if not able:
        return _Fleet(by_depth, problems, able, _NO_ROWS, RoundLength(request.deadline, ""))
    stacked = stack(list(able.values()))
    return _Fleet(by_depth, problems, able, stacked, _round_length(request, able, sites, stacked))


def solve_fleet(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> FleetSolution:
    """Choose the round's length, then every site's plan within it."""
    fleet = _fleet_of(request, sites)
    if not fleet.able:
        return FleetSolution(fleet.length, {}, 0, fleet.problems, fleet.by_depth, (), frozenset(), 0.0, 0.0, _NO_ROWS)
    length, shares = fleet.length, _sample_shares({name: sites[name] for name in fleet.able})

    def covered_in(seconds: float) -> Covered:
        return cover(request, sites, solve_all(fleet.able, seconds), fleet.able, seconds)

    covered = covered_in(length.seconds)
    if (longer := long_enough(request, sites, covered)) > length.seconds:
        length = length._replace(seconds=longer, reason="as long as the slowest site needs for weights that enough samples train")
        covered = covered_in(longer)
    solutions, seconds = covered.solutions, length.seconds
    most = max((solution.steps for solution in solutions.values()), default=0)
    return FleetSolution(
        length=length,
        solutions={name: with_batch(request, sites[name], solution, most, seconds) for name, solution in solutions.items()},
        most_steps=most,
        problems=fleet.problems,
        frontiers=covered.frontiers,
        uncovered=covered.uncovered,
        crowded_out=covered.crowded_out,
        bound=sum(shares[name] * solution.bound for name, solution in solutions.items()),
        progress=sum(shares[name] * solution.value for name, solution in solutions.items()),
        stacked=fleet.stacked,
    )


def common_floor(request: PlanRequest, sites: Mapping[str, SiteProfile], lowest: int | None = None) -> int | None:
    """The layer below which no site trains in the rounds to come, if that is worth more than a depth of each site's own.

    What enters a layer stays the same from round to round as long as no site trains a layer below. So with a floor for all, the upper
    layers being trained first, sites with a cache compute the layers below once (FedAdapter, arXiv 2205.10162). All sites train down to
    the floor, or as deep as they can. A floor is compared as it is on average of the rounds that are left, over which a first pass is
    spread. Once a run stalls, there is none.

    Args:
        request: the run.
        sites: those that are planned.
        lowest: the lowest layer that other sites train; None: there are no others.
    """
    typical = _typical(sites)
    layers = {layer for site in typical.values() for layer in lowest_layers(request, site)}
    allowed = {layer for layer in layers if lowest is None or layer <= lowest}
    floors = sorted(layer for layer in allowed if any(can_cache(request, site, layer) for site in typical.values()))
    lasts = request.rounds_left > 1 or request.kept
    if request.is_stalled or not lasts or not floors:
        return None
    # What the caches hold would be lost to later rounds without a floor, so it does not count for that.
    free = _fleet_of(replace(request, kept={}), typical)

    def rate(floor: int) -> float:
        fleet = _fleet_of(replace(request, floor=floor, filling_rounds=request.rounds_left), typical)
        return fleet.length.rate if fleet.able.keys() >= free.able.keys() else 0.0

    rates = {floor: rate(floor) for floor in floors}
    best = max(floors, key=lambda floor: rates[floor])
    return best if rates[best] > free.length.rate * _WORTH_A_FLOOR else None


def _typical(sites: Mapping[str, SiteProfile]) -> dict[str, SiteProfile]:
    """Sites of all speeds, with and without a cache; so few that a large fleet takes no longer to compare floors for."""

    def kind(name: str) -> tuple[bool, float, str]:
        return sites[name].has_cache, max((one.tokens_per_second for one in sites[name].points), default=0.0), name

    ordered = sorted(sites, key=kind)
    chosen = np.unique(np.linspace(0, len(ordered) - 1, min(_TYPICAL, len(ordered))).round().astype(int))
    return {ordered[index]: sites[ordered[index]] for index in chosen}


def frontiers_of(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> dict[int, Frontier]:
    """The frontiers of the common base, by lowest layer."""
    site = next(iter(sites.values()), None)
    if site is None:
        return {}
    weights = site.base.weights
    importance = {weight.name: request.importance.get(weight.name, 1.0) for weight in weights}
    return frontiers(weights, importance, request.spec.planning.ranks, lowest_layers(request, site))


def _sample_shares(sites: Mapping[str, SiteProfile]) -> dict[str, float]:
    """p_k: each site's share of all training samples."""
    samples = counted_train_samples(sites, sites)
    total = sum(samples.values())
    return {name: samples[name] / total for name in sites}


def _round_length(
    request: PlanRequest, problems: Mapping[str, SiteProblem], sites: Mapping[str, SiteProfile], stacked: Stacked
) -> RoundLength:
    """The length for these problems, whose rows are stacked; every site can take part in it."""
    given = min(request.deadline, max((one.seconds for one in request.given.values()), default=0.0))
    shortest = ROUNDING * max(problem.shortest() for problem in problems.values())
    longest = max(shortest, min(request.deadline, max(problem.longest() for problem in problems.values())))
    rows, first = stacked
    by_depth = next(iter(problems.values())).frontiers
    samples = np.array(list(counted_train_samples(sites, problems).values()), dtype=float)
    batch = np.array([samples_of_a_step(sites[name].train_samples, request.batch) for name in problems])
    more_steps = np.array([most_more_steps(request, sites[name]) for name in problems])
    largest = _largest_value(request, sites[next(iter(problems))])
    lengths = np.geomspace(shortest, longest, _LENGTHS).clip(min=given, max=request.deadline)

    def rate(seconds: float) -> float:
        values = np.maximum.reduceat(relaxed_optima(rows, by_depth, seconds), first)
        # As many steps of the whole model with the largest ranks would be worth as much.
        steps = np.power(values / largest, 1 / STEPS_EXPONENT)
        return round_progress(steps, more_steps, samples, batch) / (seconds + ROUND_OVERHEAD)

    def length(seconds: float, reason: str, longer: str, run_steps: float = 0.0) -> RoundLength:
        return RoundLength(float(seconds), reason, longer, rate(seconds), run_steps)

    best = max(lengths, key=rate)
    asked = asked_steps(request, sites, problems)
    enough = next((seconds for seconds in lengths if _deepest_steps(rows, first, seconds) >= asked), lengths[-1])
    if max(best, enough) >= lengths[-1] and longest >= request.deadline:
        return length(lengths[-1], "the longest that rounds.deadline allows", "by raising rounds.deadline")
    if max(best, enough) <= given:
        return length(given, "as long as the plans of planning.plans take", "planning.plans sets its length")
    of_run, no_field = _run_steps(request, sites, problems), "no field of the spec sets its length"
    if best >= enough:
        return length(best, "which the planner chose for the most predicted progress per second", no_field, of_run)
    if asked < sum(request.wanted_steps(sites[name]) for name in problems) * (1 - 1e-9):
        rounds = request.spec.rounds.count
        # Of all sites together: a site's own passes are more where it is fast, and fewer where it takes smaller steps.
        together = "all sites together make" if len(problems) > 1 else "the site makes"
        made = f"{together} about {RUN_PASSES:g} passes over the data in {counted(rounds, 'round')}"
        return length(enough, f"which the planner chose so that {made}", no_field, of_run)
    bound = f"{_bound_of_steps(request, sites, problems)} sets its length"
    return length(enough, "which the planner chose so that sites take all the steps that the spec allows", bound)


def longer_by(request: PlanRequest, fleet: FleetSolution, seconds: float) -> str:
    """What makes the round so long, as a clause: the `rounds.count` with which `asked_steps` fill it, or another field of the spec.

    No count is told that is in the past, nor one where sites take all the steps that they want in less time.
    """
    rows, first = fleet.stacked
    steps = _deepest_steps(rows, first, seconds) * (1 + 1e-9)
    count = int(fleet.length.run_steps / steps) if steps else 0
    if count < request.round or steps >= float(np.maximum.reduceat(rows.wanted, first).sum()):
        return fleet.length.longer
    fewer = f"a rounds.count of {count} instead of {request.spec.rounds.count}"
    # Whole rounds: this count may make them much longer than is asked for.
    if seconds > request.deadline * (1 + 1e-9):
        return f"{fewer} and a later rounds.deadline make rounds at least that much longer"
    return f"{fewer} makes rounds at least that much longer"


def asked_steps(request: PlanRequest, sites: Mapping[str, SiteProfile], able: Collection[str]) -> float:
    """The steps of all sites together that make `RUN_PASSES` passes over the fleet's data in all rounds, or that the spec allows."""
    wanted = sum(request.wanted_steps(sites[name]) for name in able)
    return min(_run_steps(request, sites, able) / request.spec.rounds.count, float(wanted)) * (1 - 1e-9)


def _run_steps(request: PlanRequest, sites: Mapping[str, SiteProfile], able: Collection[str]) -> float:
    """The steps of all sites and rounds together that make `RUN_PASSES` passes over the fleet's data."""
    return RUN_PASSES * sum(batches_of_a_pass(samples, request.batch) for samples in counted_train_samples(sites, able).values())


def _bound_of_steps(request: PlanRequest, sites: Mapping[str, SiteProfile], able: Collection[str]) -> str:
    """The field that bounds the sites' steps."""
    training = request.spec.training
    if training.max_steps in [request.wanted_steps(sites[name]) for name in able]:
        return "training.maxSteps"
    return "no field of the spec" if training.epochs is None else "training.epochs"


def _largest_value(request: PlanRequest, site: SiteProfile) -> float:
    """What a step with the largest ranks on all weights is worth."""
    usable = max(request.spec.planning.ranks)
    adapters = sum(request.importance.get(weight.name, 1.0) * rank_value(usable) for weight in site.base.weights)
    return float(worth(np.ones(1), np.array([adapters]))[0])


def _deepest_steps(rows: Rows, first: Int64, seconds: float) -> float:
    """The most steps of all sites together, each in the deepest of its choices."""
    deepest = np.repeat(np.minimum.reduceat(rows.lowest, first), np.diff(np.append(first, len(rows.lowest))))
    steps = np.where(rows.lowest == deepest, rows.most_steps(seconds), 0.0)
    return float(np.maximum.reduceat(steps, first).clip(min=0.0).sum())
