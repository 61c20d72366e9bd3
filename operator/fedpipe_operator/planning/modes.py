"""The planner's modes: how each chooses the plans of all sites. `planner.plan_round` is their caller.

`Auto` is what the product is for. The others are the same run otherwise, for comparison: `Uniform` and `UniformWeakest` give all sites
one choice of bits and rank and equal steps, `Proportional` gives them steps by speed, `Manual` takes the plans from the spec.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fedpipe_operator.api import Bits, ManualPlan
from fedpipe_operator.formatting import bytes_text, counted, passes_text
from fedpipe_operator.planning import explanation, limits
from fedpipe_operator.planning.choices import Choice, Choices, choices_of, known_need, seconds_per_element
from fedpipe_operator.planning.exclusion import crowded_out_reason, exclusion_reason
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD, asked_steps, solve_fleet
from fedpipe_operator.planning.forecast import forecast, make_plan
from fedpipe_operator.planning.frontier import Frontier
from fedpipe_operator.planning.memory_model import Float64
from fedpipe_operator.planning.passes import largest_pass, largest_step, samples_of_a_step
from fedpipe_operator.planning.progress import round_progress
from fedpipe_operator.planning.request import MAX_PASSES, PlanRequest
from fedpipe_operator.planning.samples import counted_train_samples
from fedpipe_operator.planning.sizes import rank_parameters, uniform_ranks
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Plan


@dataclass(frozen=True)
class Plans:
    """The outcome of planning, by site: a plan for every site that can take part, a reason for every site that cannot."""

    plans: dict[str, Plan]
    excluded: dict[str, str]


def plan_auto(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> Plans:
    """Give every site the plan that is worth most within a common length of the round."""
    fleet = solve_fleet(request, sites)
    plans, excluded = {}, {}
    for name, site in sorted(sites.items()):
        solution = fleet.solutions.get(name)
        if name in fleet.crowded_out:
            excluded[name] = crowded_out_reason(site, fleet)
        elif solution is None:
            excluded[name] = exclusion_reason(request, site, *_smallest_plans(request, site, fleet.problems[name].frontiers))
        else:
            limit = limits.limit_of(request, site, fleet=fleet, solution=solution)
            why = (limit.sentence, *explanation.plan_reasons(request, site, fleet=fleet, solution=solution))
            plans[name] = make_plan(
                request, site, solution.choice, ranks=solution.ranks, steps=solution.steps, why=why, limited_by=limit.name
            )
    return Plans(plans, excluded)


def _smallest_plans(request: PlanRequest, site: SiteProfile, frontiers: Mapping[int, Frontier]) -> tuple[Choices, Float64]:
    """A site's choices, and for each the elements of the smallest adapter."""
    choices = choices_of(request, site)
    return choices, np.array([frontiers[row.lowest_layer].smallest for row in choices.rows])


class Common(NamedTuple):
    """What the plans of the uniform modes have in common at all sites."""

    bits: Bits
    rank: int


class _Feasible(NamedTuple):
    """How a site can run a common choice: its fastest row."""

    choice: Choice
    fixed: float
    """Seconds that do not depend on the steps."""
    step: float


class _Steps(NamedTuple):
    """A site's steps in a round of the uniform modes."""

    taken: int
    wanted: int
    """Those that the spec and the data allow."""
    fitting: str
    """What `taken` is if it is fewer, in words."""


def plan_uniform(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> Plans:
    """The common choice that most sites can run, with equal steps."""
    return _plan_common(request, sites, require_all=False)


def plan_uniform_weakest(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> Plans:
    """The common choice that every site can run, with equal steps."""
    return _plan_common(request, sites, require_all=True)


def plan_proportional(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> Plans:
    """The common choice that every site can run, with the steps that fit into a common time."""
    return _plan_common(request, sites, require_all=True, by_speed=True)


def plan_manual(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> Plans:
    """The plans of the spec. They are obeyed: what the forecast says of memory and time is told, not enforced."""
    given = {plan.site: plan for plan in request.spec.planning.plans}
    without = {name: "planning.plans has no plan for it: add one, or one without a site" for name in sites if not {name, None} & set(given)}
    made = given_plans(request, {name: (site, given.get(name) or given[None]) for name, site in sites.items() if name not in without})
    return Plans(made.plans, made.excluded | without)


def given_plans(request: PlanRequest, sites: Mapping[str, tuple[SiteProfile, ManualPlan]]) -> Plans:
    """The plans that the spec gives to these sites."""
    problems = {name: problem for name, (site, given) in sorted(sites.items()) if (problem := _why_impossible(site, given))}
    plans = {name: _given_plan(request, site, given) for name, (site, given) in sorted(sites.items()) if name not in problems}
    return Plans(plans, problems)


def _why_impossible(site: SiteProfile, given: ManualPlan) -> str:
    """Why a site cannot follow a given plan; empty if it can."""
    if given.bits in site.unsupported:
        return f"its device does not support the {given.bits} bits of planning.plans: {site.unsupported[given.bits]}"
    if site.memory_bytes <= (too_few := known_need(site, given.bits)):
        advice = "give it more memory, or plan fewer bits"
        return f"the {given.bits} bits of planning.plans need more than {bytes_text(too_few)} of memory: {advice}"
    if not any(weight.layer >= _lowest_layer(site, given) for weight in site.base.weights):
        return f"in the top {given.layers} of {site.base.layers} layers of planning.plans no weight can get an adapter: train more layers"
    if site.base.whole and (lowest := _lowest_layer(site, given)) > site.base.whole_layer:
        needed = site.base.layers - site.base.whole_layer
        advice = f"set layers to {needed} or more, leave it out, or name other modules"
        return (
            f"planning.modulesToSave is trained from layer {site.base.whole_layer} on, and planning.plans trains from {lowest} on: {advice}"
        )
    if given.gradient_checkpointing and not site.base.supports_gradient_checkpointing:
        cannot = f"which transformers cannot do in a {site.base.architecture} model"
        return f"planning.plans recomputes its activations, {cannot}: leave gradientCheckpointing out"
    return _why_not_cached(site, given) if given.cache_activations else ""


def _why_not_cached(site: SiteProfile, given: ManualPlan) -> str:
    """Why a site cannot cache the activations below the trained layers; empty if it can."""
    if site.base.encoder_decoder:
        return "planning.plans caches its activations, which an encoder-decoder model cannot: leave cacheActivations out"
    if not _lowest_layer(site, given):
        advice = f"set layers to fewer than {site.base.layers}, or leave cacheActivations out"
        return f"planning.plans caches the activations below its trained layers, but trains all {site.base.layers}: {advice}"
    if not (site.has_cache or site.cache_problem):  # one that does not work is not used, which the plan says
        return "planning.plans caches its activations, but it has no cache volume: set cache of its EdgeSite, or leave cacheActivations out"
    return ""


def _lowest_layer(site: SiteProfile, given: ManualPlan) -> int:
    return max(0, site.base.layers - (given.layers or site.base.layers))


def _given_plan(request: PlanRequest, site: SiteProfile, given: ManualPlan) -> Plan:
    batch = largest_step(site.train_samples, given.batch_size or request.batch)
    lowest = _lowest_layer(site, given)
    choice = Choice(
        bits=given.bits,
        batch=batch,
        micro_batch=min(largest_pass(batch, site.devices), given.micro_batch_size or batch),
        checkpointing=given.gradient_checkpointing,
        lowest_layer=lowest,
        cached=given.cache_activations and request.has_cache(site),
    )
    ranks = {weight.name: given.rank for weight in site.base.weights if weight.layer >= lowest}
    steps = min(given.steps, request.spec.training.max_steps or given.steps)
    predicted = forecast(request, site, choice, ranks=ranks, steps=steps)
    why = explanation.given_reasons(request, site, choice, ranks, predicted=predicted, wants_cache=given.cache_activations)
    return make_plan(request, site, choice, ranks=ranks, steps=steps, why=why)


def _plan_common(request: PlanRequest, sites: Mapping[str, SiteProfile], *, require_all: bool, by_speed: bool = False) -> Plans:
    feasible = {name: _feasible(request, site) for name, site in sorted(sites.items())}
    able = {name: options for name, options in feasible.items() if options}
    common = _best_common(list(able.values()), require_all=require_all)
    members = {name: options[common] for name, options in able.items() if common in options} if common else {}
    steps = _steps_by_speed(request, members, sites) if by_speed else _equal_steps(request, members, sites)
    why_choice = _why_common(request, common, [(name, feasible[name]) for name in members]) if common else ""
    plans, excluded = {}, {}
    for name, site in sorted(sites.items()):
        if name in members and common is not None:
            limit, ranks = _limit_of_steps(request, steps[name], by_speed=by_speed), uniform_ranks(site.base.weights, common.rank)
            plans[name] = make_plan(
                request,
                site,
                members[name].choice,
                ranks=ranks,
                steps=steps[name].taken,
                why=tuple(filter(None, (limit.sentence, why_choice, explanation.not_recomputed_reason(request, site)))),
                limited_by=limit.name,
            )
        elif feasible[name] and common is not None:
            excluded[name] = explanation.no_common_choice_reason(common.bits, common.rank)
        else:
            excluded[name] = explanation.NO_COMMON_CHOICE if feasible[name] else _not_feasible(request, site)
    return Plans(plans, excluded)


def _not_feasible(request: PlanRequest, site: SiteProfile) -> str:
    """Why a site can run no common choice."""
    choices = choices_of(request, site, lowest=(0,))
    smallest = min(rank for rank in request.spec.planning.ranks if rank) * rank_parameters(site.base.weights)
    return exclusion_reason(request, site, choices, np.full(len(choices.rows), float(smallest)))


def _feasible(request: PlanRequest, site: SiteProfile) -> dict[Common, _Feasible]:
    """The common choices that a site can run with at least one step before the deadline, each in its fastest form."""
    choices = choices_of(request, site, lowest=(0,))
    found: dict[Common, _Feasible] = {}
    for rank in sorted({rank for rank in request.spec.planning.ranks if rank}):
        elements = rank * rank_parameters(site.base.weights)
        sent = elements * seconds_per_element(request, site)
        for row, fixed in _within(choices, elements, request.deadline - sent):
            common, one = Common(choices.rows[row].bits, rank), _Feasible(choices.rows[row], fixed + sent, float(choices.step[row]))
            if common not in found or one.step < found[common].step:
                found[common] = one
    return found


def _within(choices: Choices, elements: int, seconds: float) -> list[tuple[int, float]]:
    """The rows with room for so many elements and time for one step, with their fixed seconds."""
    fits = (choices.room >= elements) & (choices.fixed + choices.step <= seconds)
    return [(int(row), float(choices.fixed[row])) for row in np.flatnonzero(fits)]


def _best_common(feasible: Sequence[Mapping[Common, _Feasible]], *, require_all: bool) -> Common | None:
    """The choice that most sites can run (if `require_all`, that all can); of those the largest rank, then the most bits."""
    counts = {common: sum(common in options for options in feasible) for options in feasible for common in options}
    allowed = [common for common, count in counts.items() if not require_all or count == len(feasible)]
    return max(allowed, key=lambda common: (counts[common], common.rank, common.bits), default=None)


def _equal_steps(request: PlanRequest, members: Mapping[str, _Feasible], sites: Mapping[str, SiteProfile]) -> dict[str, _Steps]:
    """The steps of the mean site's passes, or fewer where they do not fit before the deadline at the slowest site."""
    if not members:
        return {}
    samples = counted_train_samples(sites, members)
    all_wanted = sum(request.wanted_steps(replace(sites[name], train_samples=count)) for name, count in samples.items())
    wanted = round(all_wanted / len(members))
    fitting, slowest = min((math.floor((request.deadline - one.fixed) / one.step), name) for name, one in members.items())
    until = f"equal at all sites, as many as fit before the deadline at the slowest one ({slowest})"
    return dict.fromkeys(members, _Steps(max(1, min(wanted, fitting)), wanted, until))


def _steps_by_speed(request: PlanRequest, members: Mapping[str, _Feasible], sites: Mapping[str, SiteProfile]) -> dict[str, _Steps]:
    """The steps that fit into the length of round with the most predicted progress per second.

    As in mode Auto it is longer if all rounds together would otherwise make too few passes over the data (`fleet.asked_steps`).
    """
    if not members:
        return {}
    samples = np.array(list(counted_train_samples(sites, members).values()), dtype=float)
    batch = np.array([samples_of_a_step(sites[name].train_samples, request.batch) for name in members])
    shortest = max(one.fixed + one.step for one in members.values())

    def steps(name: str, seconds: float) -> int:
        one = members[name]
        return max(1, min(request.wanted_steps(sites[name]), math.floor((seconds - one.fixed) / one.step + 1e-9)))

    def progress(seconds: float) -> float:
        taken = np.array([float(steps(name, seconds)) for name in members])
        return round_progress(taken, np.ones(len(taken)), samples, batch) / (seconds + ROUND_OVERHEAD)

    lengths = np.geomspace(shortest, max(shortest, request.deadline), 64)
    best = max(lengths, key=lambda seconds: progress(float(seconds)))
    asked = asked_steps(request, sites, members)
    enough = next((seconds for seconds in lengths if sum(steps(name, float(seconds)) for name in members) >= asked), lengths[-1])
    length, until = float(max(best, enough)), "as many as fit into the common length of the round"
    return {name: _Steps(steps(name, length), request.wanted_steps(sites[name]), until) for name in members}


def _why_common(request: PlanRequest, common: Common, members: Sequence[tuple[str, Mapping[Common, _Feasible]]]) -> str:
    """Why the sites, with the choices that each can run, get this one."""
    planning = request.spec.planning
    larger = {Common(bits, rank) for bits in planning.bits for rank in planning.ranks if (rank, bits) > (common.rank, common.bits)}
    limiting = [name for name, options in members if larger.isdisjoint(options)]
    return explanation.common_choice_reason(common.bits, common.rank, limiting if larger else None)


def _limit_of_steps(request: PlanRequest, steps: _Steps, *, by_speed: bool) -> limits.Limit:
    """What limits a site's steps in the uniform modes."""
    told, training = counted(steps.taken, "step"), request.spec.training
    if steps.taken < steps.wanted:
        return limits.Limit("Time", f"{told}: {steps.fitting}")
    equal = "" if by_speed else "equal at all sites, "
    if steps.taken == training.max_steps:
        return limits.Limit("Spec", f"{told}: {equal}limited by training.maxSteps")
    made, whose = f"{passes_text(training.epochs or MAX_PASSES)}{' (training.epochs)' if training.epochs else ''}", "its"
    if not by_speed:
        made, whose = f"the mean of {made}", "each site's"
    capped = "" if by_speed or training.max_steps is None else ", at most training.maxSteps each"
    name = "Spec" if training.epochs is not None or capped else "Data"
    return limits.Limit(name, f"{told}: {equal}{made} over {whose} data{capped}")
