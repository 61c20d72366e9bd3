"""The planner's entry: all sites of a round, in the spec's mode.

SiteProfiles ─▶ importance ─▶ choices of every site ─▶ the round's length and each site's best plan (`fleet`) ─▶ plans with reasons
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np

from fedpipe_operator.api import FineTuneSpec, PlanningMode
from fedpipe_operator.planning.coverage import are_enough
from fedpipe_operator.planning.exclusion import rest_reason
from fedpipe_operator.planning.fleet import common_floor
from fedpipe_operator.planning.importance import CombinedImportance, combine, explore
from fedpipe_operator.planning.modes import (
    Plans,
    given_plans,
    plan_auto,
    plan_manual,
    plan_proportional,
    plan_uniform,
    plan_uniform_weakest,
)
from fedpipe_operator.planning.request import GivenPlan, PlanRequest
from fedpipe_operator.planning.time_model import has_speed
from fedpipe_operator.sites import Correction, KeptActivations, SiteProfile
from fedpipe_trainer.contract import Plan

MODES: Final[Mapping[PlanningMode, Callable[[PlanRequest, Mapping[str, SiteProfile]], Plans]]] = {
    PlanningMode.AUTO: plan_auto,
    PlanningMode.UNIFORM: plan_uniform,
    PlanningMode.UNIFORM_WEAKEST: plan_uniform_weakest,
    PlanningMode.PROPORTIONAL: plan_proportional,
    PlanningMode.MANUAL: plan_manual,
}

_NONE: Final = Correction()
_LOG: Final = logging.getLogger(__name__)
_IMPOSSIBLE_FIGURES: Final = (ArithmeticError, ValueError)
"""What figures raise that are 0, too large or no number where a formula or the contract of a forecast needs one."""

Select = Callable[[Collection[str]], tuple[str, ...]]
"""Chooses a round's sites out of those with a plan."""


@dataclass(frozen=True)
class History:
    """What earlier rounds tell the planner."""

    round: int = 1
    """The round that is planned."""
    learned: Mapping[str, float] = field(default_factory=dict)
    """Frobenius norm of the last round's aggregated increment, by weight."""
    ranks: Mapping[str, float] = field(default_factory=dict)
    """Mean rank of the adapters that made it, by weight."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """By site: how its forecasts are corrected."""
    is_stalled: bool = False
    """Whether the run has stalled, in the last rounds or earlier."""
    adapter_bytes: int | None = None
    """Size of the file of the global adapter that the round starts from: the last round's; 0 in round 1, which starts from none.

    None: not known, so that the planner assumes the largest rank for every weight.
    """
    kept: Mapping[str, KeptActivations] = field(default_factory=dict)
    """By site: the activations that its cache holds from earlier rounds."""


@dataclass(frozen=True)
class FleetPlans:
    """The plans of a round, and what they are made from."""

    plans: Plans
    importance: CombinedImportance
    selected: tuple[str, ...]
    """The sites that take part in the round."""


def plan_round(
    spec: FineTuneSpec,
    profiles: Mapping[str, SiteProfile],
    head: Mapping[str, tuple[int, ...]],
    history: History = History(),
    *,
    select: Select = tuple,
) -> FleetPlans:
    """Plan every profiled site, in the spec's mode.

    Nothing of a round but the floor, which is for all rounds, depends on sites that take no part in it: those that `select` chooses are
    planned once more, without the others. Another site keeps the plan that it would have if all took part.

    Args:
        spec: the run's spec.
        profiles: by site; of sites with the run's common base (`facts_of` names the others).
        head: shapes of the tensors that are trained in full (`facts_of`).
        history: what earlier rounds tell.
        select: chooses the round's sites out of those that can take part.
    """
    excluded = {
        name: reason
        for name, profile in sorted(profiles.items())
        if (reason := _missing_input(profile) or rest_reason(history.corrections.get(name, _NONE), history.round))
    }
    usable = {name: profile for name, profile in profiles.items() if name not in excluded}
    try:
        made = _plan_usable(spec, usable, head, history, select)
    except _IMPOSSIBLE_FIGURES:
        # A site's figures come from its machine. What they break is that site's plan, and no other's.
        impossible = {name: reason for name in sorted(usable) if (reason := _impossible(spec, {name: usable[name]}, head, history))}
        if not impossible:
            raise
        excluded |= impossible
        made = _plan_usable(spec, {name: one for name, one in usable.items() if name not in impossible}, head, history, select)
    return replace(made, plans=Plans(made.plans.plans, made.plans.excluded | excluded))


def _impossible(spec: FineTuneSpec, alone: Mapping[str, SiteProfile], head: Mapping[str, tuple[int, ...]], history: History) -> str:
    """Why the figures of a site allow no plan even if it is alone; empty if they do."""
    try:
        _plan_usable(spec, alone, head, history, tuple)
    except _IMPOSSIBLE_FIGURES as error:
        _LOG.warning("the site %s cannot be planned, and is excluded", *alone, exc_info=True)
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        advice = "see the log of its profile task, mend what measured them, and change its EdgeSite's nodeSelector, capacity.cpu or data"
        return f"no forecast can be made with the figures of its profile ({problem}): {advice}, after which it is profiled again"
    return ""


@np.errstate(divide="raise", over="raise", invalid="raise")
def _plan_usable(
    spec: FineTuneSpec, usable: Mapping[str, SiteProfile], head: Mapping[str, tuple[int, ...]], history: History, select: Select
) -> FleetPlans:
    """Plan sites whose profiles have what every mode needs.

    Raises:
        ArithmeticError, ValueError: the figures of a site allow no forecast. In arrays as well, where they would spread to other sites.
    """
    importance = _importance(usable, history)
    request = PlanRequest(
        spec=spec,
        head=head,
        importance=explore(importance.scores, spec.planning.exploration, history.round),
        scores=importance.scores,
        importance_note=importance.note,
        corrections=history.corrections,
        is_stalled=history.is_stalled,
        adapter_bytes=history.adapter_bytes,
        round=history.round,
        rounds_left=_rounds_left(spec, history.round, len(usable)),
        kept=history.kept,
    )
    given = {plan.site: plan for plan in spec.planning.plans if plan.site in usable and spec.planning.mode is not PlanningMode.MANUAL}
    own = given_plans(request, {str(name): (usable[str(name)], plan) for name, plan in given.items()})
    planned = {name: profile for name, profile in usable.items() if name not in given}
    if spec.planning.mode is PlanningMode.AUTO:
        lowest = min((plan.lowest_layer for plan in own.plans.values()), default=None)
        request = _beside(request, _given(own.plans, usable), planned)
        request = replace(request, floor=common_floor(request, planned, lowest))
    made = MODES[spec.planning.mode](request, planned)
    selected = select(made.plans | own.plans)
    plans = made.plans | _plans_of_selected(request, planned, made, set(selected)) | own.plans
    return FleetPlans(Plans(plans, made.excluded | own.excluded), importance, selected)


def _given(plans: Mapping[str, Plan], sites: Mapping[str, SiteProfile]) -> dict[str, GivenPlan]:
    """What given plans mean for the others."""
    weights = {name: frozenset(weight for weight, rank in plan.ranks.items() if rank) for name, plan in plans.items()}
    return {
        name: GivenPlan(sites[name].train_samples, sites[name].min_sites, weights[name], plan.forecast.seconds)
        for name, plan in plans.items()
    }


def _beside(request: PlanRequest, given: Mapping[str, GivenPlan], sites: Mapping[str, SiteProfile]) -> PlanRequest:
    """The request for the plans of these sites in a round with given plans."""
    samples = sum(site.train_samples for site in sites.values())
    enough = partial(are_enough, all_samples=samples + sum(one.samples for one in given.values()), all_sites=len(sites) + len(given))

    def can_be_covered(weight: str) -> bool:
        training = [one.samples for one in given.values() if weight in one.weights]
        return enough(samples + sum(training), len(sites) + len(training))

    weights = next(iter(sites.values())).base.weights if sites else ()
    lowest = 0 if enough(samples, len(sites)) else min((weight.layer for weight in weights if can_be_covered(weight.name)), default=0)
    return replace(request, given=given, lowest_covered=lowest)


def _plans_of_selected(request: PlanRequest, sites: Mapping[str, SiteProfile], made: Plans, selected: set[str]) -> dict[str, Plan]:
    """The plans of the round's sites, planned without the others; none where there are no others."""
    if made.plans.keys() | request.given.keys() <= selected:
        return {}
    own = {name: sites[name] for name in made.plans if name in selected}
    request = _beside(request, {name: one for name, one in request.given.items() if name in selected}, own)
    return MODES[request.spec.planning.mode](request, own).plans


def _rounds_left(spec: FineTuneSpec, round_: int, sites: int) -> float:
    """Rounds from this one on in which a site takes part, on average."""
    left, per_round = max(1, spec.rounds.count - round_ + 1), spec.sites.per_round
    return float(left) if per_round is None or per_round >= sites else max(1.0, left * per_round / sites)


def _importance(profiles: Mapping[str, SiteProfile], history: History) -> CombinedImportance:
    if not profiles:
        return CombinedImportance({}, "")
    weights = profiles[min(profiles)].base.weights
    return combine(profiles, weights, learned=history.learned, ranks=history.ranks)


def _missing_input(profile: SiteProfile) -> str:
    """The message for a profile that lacks what every mode needs; empty when it is complete."""
    if profile.train_samples == 0:
        return "has no training samples: check data.train of its EdgeSite"
    if not profile.base.weights:
        return "no weight of its base model can get an adapter: name others in planning.targetModules, or use another base model"
    if profile.memory_bytes == 0:
        return "its memory is neither claimed nor measured: set capacity.memory of its EdgeSite"
    if not has_speed(profile):
        return "no training step was measured at any bit width: see the log of its profile task"
    return ""
