"""The planner: chooses each site's bits, batch size, rank and steps among its candidates, in the spec's mode.

`Auto` (greedy): each site gets the best candidate that fits its memory and trains all requested steps before the
deadline: the highest bits, then the largest batch, then the largest rank, one rank for all weights. Where no candidate
trains all steps, the number of samples comes first: FedPipe wants the fraction that the deadline cuts (the under-training rate) near 0.

`Uniform`: all sites get the same bits, batch and rank: the comparison for `Auto`. The choice is one that most sites can
run (all sites with a feasible candidate, unless their devices have no bit width in common); of those, the one that is
best at the site where it is worst. Steps still differ, with the sites' samples.

An optimiser over which weight gets which rank replaces `_best`; the models, candidates and reasons stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Final

from fedpipe_operator.api import FineTuneSpec, PlanningMode
from fedpipe_operator.planning.candidates import Candidate, PlanRequest, make_plan, single_rank_candidates
from fedpipe_operator.planning.reasons import exclusion_reason, no_common_choice_reason, plan_reasons, uniform_reasons
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Plan

_BANDS: Final = 20
"""Fractions of trained steps are compared in bands of 5 %, so that a marginal difference in speed does not decide over bits."""
_Score = tuple[int, int, int, int]
_Choice = tuple[int, int, int]
"""Bits, batch, rank: what a uniform plan has in common at all sites."""


@dataclass(frozen=True)
class Plans:
    """The outcome of planning, by site: a plan for every site that can take part, a reason for every site that cannot."""

    plans: dict[str, Plan]
    excluded: dict[str, str]


def plan_round(spec: FineTuneSpec, profiles: Mapping[str, SiteProfile], head: Mapping[str, tuple[int, ...]]) -> Plans:
    """Plan every profiled site, in the spec's mode.

    Args:
        spec: the run's spec.
        profiles: by site; of sites with the run's common base (`facts_of` names the others).
        head: shapes of the tensors that are trained in full (`facts_of`).
    """
    excluded = {name: reason for name, profile in sorted(profiles.items()) if (reason := _missing_input(profile))}
    usable = {name: profile for name, profile in profiles.items() if name not in excluded}
    result = MODES[spec.planning.mode](PlanRequest(spec=spec, head=head), usable)
    return Plans(plans=result.plans, excluded=result.excluded | excluded)


def _missing_input(profile: SiteProfile) -> str:
    """The message for a profile that lacks what every mode needs; empty when it is complete."""
    if profile.train_samples == 0:
        return "has no training samples: check data.train of its EdgeSite"
    if profile.memory_bytes == 0:
        return "its memory is neither claimed nor measured: set capacity.memory of its EdgeSite"
    if not any(point.tokens_per_second > 0 for point in profile.points):
        return "no training step was measured at any bit width: see the log of its profile task"
    return ""


def score(candidate: Candidate) -> _Score:
    """The order of feasible candidates, larger is better: fraction of trained steps (in bands), bits, batch, rank."""
    return (floor(_BANDS * candidate.trained_fraction), candidate.bits, candidate.batch, candidate.rank)


def plan_auto(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> Plans:
    """Plan every site independently."""
    plans, excluded = {}, {}
    for name, site in sorted(sites.items()):
        candidates = single_rank_candidates(request, site)
        chosen = _best(site, candidates)
        if chosen is None:
            excluded[name] = exclusion_reason(request, site, candidates)
        else:
            plans[name] = make_plan(request, chosen, plan_reasons(request, site, chosen=chosen, candidates=candidates))
    return Plans(plans=plans, excluded=excluded)


def _best(site: SiteProfile, candidates: tuple[Candidate, ...]) -> Candidate | None:
    return max((candidate for candidate in candidates if candidate.is_feasible(site)), key=score, default=None)


def plan_uniform(request: PlanRequest, sites: Mapping[str, SiteProfile]) -> Plans:
    """Plan all sites with one choice of bits, batch and rank."""
    candidates = {name: single_rank_candidates(request, site) for name, site in sorted(sites.items())}
    feasible = {name: _feasible_choices(sites[name], options) for name, options in candidates.items()}
    common, weakest = _best_common_choice(list(feasible.values())), _weakest_site(feasible)
    plans, excluded = {}, {}
    for name, choices in feasible.items():
        if common is None or not choices:
            excluded[name] = exclusion_reason(request, sites[name], candidates[name])
        elif common in choices:
            reasons = uniform_reasons(request, sites[name], chosen=choices[common], weakest=weakest)
            plans[name] = make_plan(request, choices[common], reasons)
        else:
            excluded[name] = no_common_choice_reason(*common)
    return Plans(plans=plans, excluded=excluded)


def _feasible_choices(site: SiteProfile, candidates: Sequence[Candidate]) -> dict[_Choice, Candidate]:
    return {(found.bits, found.batch, found.rank): found for found in candidates if found.is_feasible(site)}


def _best_common_choice(feasible: list[dict[_Choice, Candidate]]) -> _Choice | None:
    every_choice = {choice for choices in feasible for choice in choices}
    return max(every_choice, key=lambda choice: _common_score(choice, feasible), default=None)


def _common_score(choice: _Choice, feasible: list[dict[_Choice, Candidate]]) -> tuple[int, _Score]:
    """The number of sites where the choice is feasible, and its lowest score among them."""
    candidates = [choices[choice] for choices in feasible if choice in choices]
    return len(candidates), min(score(candidate) for candidate in candidates)


def _weakest_site(feasible: Mapping[str, dict[_Choice, Candidate]]) -> str:
    """The site whose best choice has the lowest score: it limits the common choice."""
    best = {name: max(map(score, choices.values())) for name, choices in feasible.items() if choices}
    return min(best, key=lambda name: (best[name], name), default="")


MODES: Final[Mapping[PlanningMode, Callable[[PlanRequest, Mapping[str, SiteProfile]], Plans]]] = {
    PlanningMode.AUTO: plan_auto,
    PlanningMode.UNIFORM: plan_uniform,
}
