"""What earlier rounds tell the planner: corrected forecasts, what updates changed, whether the run stalls, which sites changed. Pure."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import fmean
from typing import Final

from fedpipe_operator.api import Depth, FineTuneSpec, PlanningMode, parse_duration
from fedpipe_operator.planning import History, limit_after
from fedpipe_operator.planning.forecast import choice_of, training_peak_of, with_found_share
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.site_problem import ROUNDING
from fedpipe_operator.rounds.observed import CommitSummary, Observed, Run
from fedpipe_operator.rounds.policies import is_stalled
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.sites import (
    Correction,
    KeptActivations,
    Measurement,
    SiteProfile,
    after_a_rest,
    carried_over,
    changes,
    corrected,
    findings,
    with_lateness,
)
from fedpipe_trainer.contract import Plan

_NONE: Final = Correction()
_MOVED: Final = "its EdgeSite has changed, so that it was profiled anew"
_RESTED: Final = "it was left out of the last round after it had missed the deadline, and is tried again"
_RELAXED: Final = "what rounds had shown of it counts less after a round without it, so that it is tried again"


@dataclass(frozen=True)
class Evidence:
    """What earlier rounds tell the planner, and what is new of it."""

    history: History
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """By site, what the next round's are computed from: those of the history count the seconds of late sites several times."""
    findings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By site, parts of a sentence: what the last round showed, and what has changed since."""
    deepened: frozenset[str] = frozenset()
    """The sites whose depth the planner chooses, if the run has stalled since the last plan."""


def evidence_for(
    run: Run, observed: Observed, round_: int, profiles: Mapping[str, SiteProfile], *, moved: AbstractSet[str] = frozenset()
) -> Evidence:
    """The evidence for the plan of this round.

    Args:
        run: the run.
        observed: its plans, commits and evaluations.
        round_: the round that is planned.
        profiles: by site, as the sites claim and have measured now.
        moved: the sites whose profile is another than the last plan's.
    """
    plan, commit = observed.plan, observed.commits.get(round_ - 1)
    adapter_bytes = commit.read_by_sites.size if commit else 0 if round_ == 1 else None
    if plan is None or commit is None or plan.round != round_ - 1:
        return Evidence(History(round_, adapter_bytes=adapter_bytes))
    measured = measurements(commit)
    corrections = {site: _correction(run.spec, plan, site, measured.get(site), profiles.get(site)) for site in _known(plan, profiles)}
    # Of a site that has moved, only that a plan ran out of memory is kept: it may not have moved far.
    limited = {site: (corrections[site].memory_limit, corrections[site].micro_batch) for site in moved}
    corrections |= {site: Correction(memory_limit=limit, micro_batch=micro_batch) for site, (limit, micro_batch) in limited.items()}
    stalled = plan.is_stalled or is_stalled(observed.evaluations)
    history = History(
        round=round_,
        learned=observed.learned,
        ranks=_mean_ranks(plan),
        corrections={site: with_lateness(one) for site, one in corrections.items() if one != _NONE},
        is_stalled=stalled,
        adapter_bytes=adapter_bytes,
        kept={site: kept for site, kept in _kept(plan, measured).items() if site not in moved},
    )
    found = {site: _findings(plan, site, now, measured.get(site), profiles.get(site)) for site, now in corrections.items()}
    found |= dict.fromkeys(moved, (_MOVED,))
    known = {site: one for site, one in corrections.items() if one != _NONE}
    return Evidence(history, known, found, _deepened(run.spec, plan) if stalled and not plan.is_stalled else frozenset())


def without_rests(history: History) -> History:
    """The history with which no site sits out a round for deadlines that it missed."""
    return replace(history, corrections={site: one.model_copy(update={"rests": 0}) for site, one in history.corrections.items()})


def _kept(plan: RoundPlan, measured: Mapping[str, Measurement]) -> dict[str, KeptActivations]:
    """By site what its cache holds after the round of this plan that the next one can read."""
    floor = min(plan.plans[site].lowest_layer for site in plan.selected)
    found = {site: kept_activations(plan.plans[site], one, floor, plan.samples.get(site, 0)) for site, one in measured.items()}
    trained = {site for site, one in measured.items() if one.steps}
    waiting = {site: one for site, one in plan.kept.items() if site not in trained and one.lowest_layer <= floor}
    return waiting | {site: kept for site, kept in found.items() if kept is not None}


def kept_activations(plan: Plan, measured: Measurement, floor: int, samples: int) -> KeptActivations | None:
    """What a site's cache holds after a round that the next one can read; None if that is nothing.

    Of the batches that the round drew, as many as it took steps, it holds what the trainer says; of the others, it is assumed to hold the
    share that the round found there.

    Args:
        plan: the site's plan.
        measured: what the round needed.
        floor: the lowest layer that any site trained in the round: what enters a layer above has changed.
        samples: the site's training samples; 0: not known.
    """
    was_used = measured.cache_hits + measured.cache_misses > 0 and not measured.cache_problem
    # After an attempt that ran out of memory, passes were smaller than planned.
    if not was_used or measured.out_of_memory or not samples or plan.lowest_layer > floor:
        return None
    found = measured.found_share
    drawn = min(1.0, measured.steps / ceil(samples / plan.batch_size))
    return KeptActivations(
        bits=plan.bits,
        batch_size=plan.batch_size,
        micro_batch=plan.micro_batch,
        lowest_layer=plan.lowest_layer,
        share=found * (1 - drawn) + measured.cache_held * drawn,
    )


def measurements(commit: CommitSummary) -> dict[str, Measurement]:
    """By site what its round needed. Of a site that left no update it may be known that it ran out of memory, or of time."""
    nothing = Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0)
    lost = {
        site: nothing.model_copy(
            update={
                "out_of_memory": site in commit.out_of_memory,
                "too_large": commit.out_of_memory.get(site, 0),
                "is_late": site in commit.late,
            }
        )
        for site in (*commit.out_of_memory, *commit.late)
    }
    return {one.site: one.measured for one in commit.contributions if one.measured is not None} | lost


def _mean_ranks(plan: RoundPlan) -> dict[str, float]:
    """By weight the mean rank of its adapters at the round's sites that gave it one."""
    given: dict[str, list[int]] = {}
    for site in plan.selected:
        for weight, rank in plan.plans[site].ranks.items():
            if rank:
                given.setdefault(weight, []).append(rank)
    return {weight: fmean(ranks) for weight, ranks in given.items()}


def _known(plan: RoundPlan, profiles: Mapping[str, SiteProfile]) -> list[str]:
    """The sites of the last plan, those without a plan of their own included, and those with a profile now; sorted."""
    return sorted({*plan.plans, *plan.corrections, *profiles})


def _correction(spec: FineTuneSpec, plan: RoundPlan, site: str, measured: Measurement | None, profile: SiteProfile | None) -> Correction:
    """How the site's forecasts are corrected after the round of this plan."""
    now, resources = plan.corrections.get(site, _NONE), plan.resources.get(site)
    if site in plan.plans:
        done, limit, training = plan.plans[site], None, None
        request = PlanRequest(_as_trained(spec, plan), plan.head, corrections={site: now})
        if profile and measured and measured.cache_passes:  # what the next plan counts on is the lower share, not a slower site
            done = with_found_share(profile, done, measured.found_share)
        if profile and measured and measured.out_of_memory:
            limit = limit_after(request, profile, done, measured.too_large or done.micro_batch)
        if profile:
            training = training_peak_of(request, profile, choice_of(done), done.ranks)
        fastest = profile.least_transfer_factor if profile else 0.0
        now = corrected(
            now,
            done,
            measured,
            resources,
            fastest=fastest,
            memory_limit=limit,
            training_bytes=training,
            longest=request.deadline / ROUNDING**2,
            deadline=parse_duration(spec.rounds.deadline),
        )
    else:
        now = after_a_rest(now)
    return carried_over(now, resources, profile.resources) if profile else now


def _as_trained(spec: FineTuneSpec, plan: RoundPlan) -> FineTuneSpec:
    """The spec with what the memory of the round's trainings depended on: an edit since then explains nothing that they needed."""
    mu = plan.training.proximal_mu if plan.training else 0.0
    return spec.model_copy(update={"training": spec.training.model_copy(update={"proximal_mu": mu})})


def _findings(plan: RoundPlan, site: str, now: Correction, measured: Measurement | None, profile: SiteProfile | None) -> tuple[str, ...]:
    """What is new of a site since the last plan, as parts of a sentence."""
    resources = plan.resources.get(site)
    # A bandwidth that the site no longer has explains no transfers.
    has_changed = profile is not None and resources is not None and not profile.resources.has_bandwidth_of(resources)
    before = plan.corrections.get(site, _NONE)
    ran_out = measured is not None and measured.out_of_memory
    if site not in plan.plans:
        shown: tuple[str, ...] = (_RESTED,) if before.late else (_RELAXED,) if now != before else ()
    else:
        shown = findings(before, now, None if has_changed else resources, ran_out_of_memory=ran_out)
    return (*shown, *changes(resources, profile.resources)) if profile and resources else shown


def _deepened(spec: FineTuneSpec, plan: RoundPlan) -> frozenset[str]:
    """The sites whose depth the planner chooses: a stall changes their plans."""
    planning = spec.planning
    if planning.mode is not PlanningMode.AUTO or planning.depth is not Depth.AUTO:
        return frozenset()
    return frozenset(plan.plans) - {one.site for one in planning.plans if one.site}
