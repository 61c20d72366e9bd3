"""The plan of a round: the planner's choice for every site, the selected sites, and how many updates the round needs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from fedpipe_operator import conversion
from fedpipe_operator.admission import AdmittedProfile, RefusalReason, Refused, hash_of
from fedpipe_operator.api import EdgeSite, Reason, SequenceClassificationTask
from fedpipe_operator.api.finetune import RoundsSpec
from fedpipe_operator.planning import (
    FROM_SPEC,
    FleetPlans,
    LearningRate,
    Plans,
    RunFacts,
    choose_learning_rate,
    dropped_labels_note,
    facts_as_fixed,
    facts_of,
    hyperparameters,
    label_notes,
    learning_rate_share,
    plan_round,
    rank_lines,
    rate_of,
    sites_without_label,
    too_few_labels,
)
from fedpipe_operator.rounds.consent import (
    left_out,
    needed_contributors,
    select_mixable,
    too_few_reason,
    with_hidden_rows,
    with_unmixed_weights,
)
from fedpipe_operator.rounds.evidence import evidence_for, without_rests
from fedpipe_operator.rounds.observed import Observed, Run
from fedpipe_operator.rounds.policies import needed_of, out_of_reach, select
from fedpipe_operator.rounds.records import STATUS_SITES, ExpiredProfile, OutOfReach, RoundPlan
from fedpipe_operator.rounds.replanning import with_reasons
from fedpipe_operator.rounds.revision import learning_revision_of
from fedpipe_operator.sites import SiteProfile, basis_of, site_profile
from fedpipe_trainer.contract import FailureReason, Outcome, Plan


class Unprofiled(NamedTuple):
    """The sites without a profile."""

    failed: Mapping[str, str]
    """All of them, with the reason."""
    given_up: Collection[str] = ()
    """Those whose profile had the whole time of its stage and missed the deadline."""


def round_plan(run: Run, observed: Observed, without: Unprofiled, round_: int, now: float) -> RoundPlan | OutOfReach:
    """Plan this round.

    Args:
        run: the run and its sites.
        observed: its profiles are all that will arrive.
        without: the sites without a profile.
        round_: the round, from 1.
        now: Unix seconds; the plan's start.
    """
    profiled = _profiled(run, observed)
    need = needed_of(run)
    failed = dict(without.failed) | profiled.denied
    if not profiled.sites:
        return _too_few(run, round_, need, 0, failed)
    facts = _facts(run, observed, profiled.sites)
    unusable = dict(facts.wrong_base) | sites_without_label(profiled.sites, facts.labels)
    if round_ == 1 and (message := _label_problem(run, profiled.sites, facts, failed)):
        return OutOfReach(reason=Reason.TOO_FEW_LABELS, message=message)
    evidence = evidence_for(run, observed, round_, profiled.sites, moved=_moved(observed.plan, profiled.attempts))
    agreeing = {name: one for name, one in profiled.sites.items() if name not in unusable}
    min_sites = {site.name: site.spec.policy.min_sites for site in run.sites}
    planned = partial(plan_round, run.spec, agreeing, facts.head, select=_selection(run, round_, min_sites))
    fleet = planned(evidence.history)
    if len(fleet.selected) < need:  # a site that may miss the deadline once more is better than the end of the run
        fleet = planned(without_rests(evidence.history))
    unmixed = _unmixed(run, fleet, min_sites)
    made = Plans({site: one for site, one in fleet.plans.plans.items() if site not in unmixed}, fleet.plans.excluded)
    excluded = failed | unusable | dict(made.excluded) | unmixed
    if len(fleet.selected) < need:
        return _too_few(run, round_, need, len(fleet.selected), excluded)
    steps = max(plan.steps for plan in made.plans.values())
    before = observed.plan.plans if observed.plan else {}
    plans = with_unmixed_weights(with_reasons(made.plans, before, evidence), fleet.selected, min_sites)
    rate, share = _learning_rate(run, observed, agreeing, steps=steps), learning_rate_share(run.spec, round_)
    return RoundPlan(
        round=round_,
        started_at=now,
        fingerprint=facts.fingerprint,
        model_commit=facts.commit,
        revision=learning_revision_of(run.spec),
        labels=facts.labels,
        label_notes=_label_notes(run, profiled.sites, facts),
        weights=dict(facts.weights),
        head=dict(facts.head),
        plans=with_hidden_rows(run, _with_dropped_labels(plans, agreeing, facts)),
        samples={site: profiled.sites[site].train_samples for site in made.plans},
        validation_samples={site: profiled.sites[site].validation_samples for site in made.plans},
        selected=fleet.selected,
        evaluators=fleet.selected,
        needed=needed_contributors(need, min_sites, fleet.selected, run.spec.aggregation.mixed),
        min_sites={site: min_sites[site] for site in fleet.selected},
        rule=run.spec.aggregation.rule,
        malicious_sites=run.spec.aggregation.malicious_sites,
        excluded=excluded,
        importance=fleet.importance.scores,
        importance_note=fleet.importance.note,
        rank_lines={site: rank_lines(made.plans[site].ranks, fleet.importance.scores) for site in sorted(made.plans)[:STATUS_SITES]},
        learning_rate=rate.value,
        learning_rate_share=share,
        training=conversion.hyperparameters(run.spec.training, rate.value * share),
        hyperparameters=hyperparameters(run.spec, agreeing, made.plans, rate),
        corrections=dict(evidence.corrections),
        kept=dict(evidence.history.kept),
        profiles=profiled.attempts,
        profile_hashes=profiled.hashes,
        given_up={site.name: trial_of(run, site) for site in run.sites if site.name in without.given_up},
        codec=conversion.codec(run.spec.codec),
        resources={site: profile.resources for site, profile in agreeing.items()},
        is_stalled=evidence.history.is_stalled,
    )


class _Profiled(NamedTuple):
    """The sites with a profile, by name."""

    sites: dict[str, SiteProfile]
    attempts: dict[str, int]
    """The attempt that made it; of a site whose profile was overwritten, the one of the last plan. So are the hashes."""
    hashes: dict[str, str]
    denied: dict[str, str]
    """Those that take no part whatever their profile says: the reason."""


def _profiled(run: Run, observed: Observed) -> _Profiled:
    overwritten = _overwritten(run, observed)
    denied = left_out(run) | overwritten | _with_too_many_labels(run, observed)
    completed = [one for one in _completed(run, observed) if one[0].name not in denied]
    attempts = {site.name: attempt for site, attempt, _ in completed}
    hashes = {site.name: hash_of(result) for site, _, result in completed}
    if observed.plan:
        attempts |= {site: observed.plan.profiles[site] for site in overwritten}
        hashes |= {site: observed.plan.profile_hashes[site] for site in overwritten}
    return _Profiled({site.name: site_profile(site, result) for site, _, result in completed}, attempts, hashes, denied)


def _unmixed(run: Run, fleet: FleetPlans, min_sites: Mapping[str, int]) -> dict[str, str]:
    """The sites with a plan that are not content with the number of the round's sites: the reason."""
    aggregation, count = run.spec.aggregation, len(fleet.selected)
    others = (site for site in fleet.plans.plans if site not in fleet.selected)
    return {site: too_few_reason(min_sites[site], count, aggregation) for site in others if min_sites[site] > aggregation.mixed(count)}


def _learning_rate(run: Run, observed: Observed, profiles: Mapping[str, SiteProfile], *, steps: int) -> LearningRate:
    """The spec's, else that of the round before, else the choice of the sites' range tests: so it is chosen once a run."""
    if run.spec.training.learning_rate is not None:
        return LearningRate(run.spec.training.learning_rate, FROM_SPEC)
    if observed.plan is None:
        return choose_learning_rate({name: profile.range_test for name, profile in profiles.items()}, steps)
    reasons = {one.name: one.reason for one in observed.plan.hyperparameters}
    chosen = reasons.get("training.learningRate", FROM_SPEC)
    value = rate_of(observed.plan.learning_rate, run.spec.training)
    return LearningRate(value, "as in the rounds before" if chosen == FROM_SPEC else chosen)


def completed_profiles(run: Run, observed: Observed) -> Iterator[tuple[EdgeSite, AdmittedProfile]]:
    """The sites with a profile that counts."""
    return ((site, profile) for site, _, profile in _completed(run, observed))


def _completed(run: Run, observed: Observed) -> Iterator[tuple[EdgeSite, int, AdmittedProfile]]:
    """The sites with a profile, each with its first completed attempt that counts."""
    for site in run.sites:
        attempts = observed.profiles.get(site.name, {})
        completed = (at for at, one in sorted(attempts.items()) if one.outcome is Outcome.COMPLETED and not is_outdated(one, site))
        if (attempt := next(completed, None)) is not None:
            yield site, attempt, attempts[attempt]


def _with_too_many_labels(run: Run, observed: Observed) -> dict[str, str]:
    """The sites whose profile names more labels than their policy allows, with the reason; an honest trainer would have refused."""
    if isinstance(run.spec.task, SequenceClassificationTask) and run.spec.task.labels:
        return {}
    return {
        site.name: f"{FailureReason.POLICY_DENIED}: its profile names {len(profile.labels)} labels, and its policy.maxLabels is "
        f"{site.spec.policy.max_labels}: declare task.labels in a new run, or have policy.maxLabels raised"
        for site, profile in completed_profiles(run, observed)
        if len(profile.labels) > site.spec.policy.max_labels
    }


def _overwritten(run: Run, observed: Observed) -> dict[str, str]:
    """The sites whose profile is another one than the last plan was made with, though it is of the same attempt, with the reason."""
    plan = observed.plan
    if plan is None:
        return {}
    message = "its profile is another one than the rounds before were planned with: find out who writes into the store"
    return {
        site.name: str(Refused(RefusalReason.OVERWRITTEN, message))
        for site, attempt, profile in _completed(run, observed)
        if plan.profiles.get(site.name) == attempt and plan.profile_hashes.get(site.name, hash_of(profile)) != hash_of(profile)
    }


def is_outdated(profile: AdmittedProfile, site: EdgeSite) -> bool:
    """Whether the site has changed since, so that another profile is needed; one that failed may do so for any part of the spec."""
    if profile.basis is None:
        return False
    if profile.outcome is Outcome.COMPLETED:
        now = basis_of(site)
        return profile.basis.measured != now.measured or profile.basis.cache not in {None, now.cache}
    return profile.basis.whole != basis_of(site).whole


def trial_of(run: Run, site: EdgeSite) -> str:
    """What a profile of this site is tried with: its EdgeSite and the time that it gets."""
    rounds = run.spec.rounds
    # The default is left out, so that a trial of an earlier version is the same.
    in_queue = "" if rounds.queue_deadline == RoundsSpec().queue_deadline else f" {rounds.queue_deadline}"
    return f"{basis_of(site).whole} {rounds.deadline}{in_queue}"


def given_up(run: Run, observed: Observed) -> dict[str, str]:
    """The sites whose profile had its whole time before the last plan, and missed the deadline, with the reason.

    It is not tried again with the same; one that had begun late, or waited for a process of this machine, is.
    It is once its EdgeSite or one of the deadlines has changed, or the run was resumed since that plan.
    """
    plan = observed.plan
    if plan is None or observed.resumed_at > plan.started_at:
        return {}
    return {site.name: plan.excluded[site.name] for site in run.sites if plan.given_up.get(site.name) == trial_of(run, site)}


def expired_before(run: Run, observed: Observed) -> dict[str, ExpiredProfile]:
    """The profiles of the current round that are recorded as expired: while nothing has changed, they are not tried again for it."""
    known = observed.expired_profiles
    if known is None or observed.resumed_at > known.at:
        return {}
    return {site.name: one for site in run.sites if (one := known.sites.get(site.name)) and one.trial == trial_of(run, site)}


def _moved(plan: RoundPlan | None, attempts: Mapping[str, int]) -> frozenset[str]:
    """The sites that are planned with another profile than the last plan's."""
    if plan is None or not plan.profiles:
        return frozenset()
    known = plan.profiles.keys() | plan.excluded.keys()
    return frozenset(site for site, attempt in attempts.items() if site in known and plan.profiles.get(site) != attempt)


def _facts(run: Run, observed: Observed, profiles: Mapping[str, SiteProfile]) -> RunFacts:
    """What all sites must agree on. Round 1 fixes it."""
    first = observed.plans[1].facts if 1 in observed.plans else None
    if first is None:
        return facts_of(profiles, run.spec.task)
    return facts_as_fixed(first, profiles)


def _label_problem(run: Run, profiles: Mapping[str, SiteProfile], facts: RunFacts, failed: Mapping[str, str]) -> str:
    """Why the sites with the run's base have too few labels in common, and why others are none of them; empty if they have enough."""
    agreeing = {name: one for name, one in profiles.items() if name not in facts.wrong_base}
    message = too_few_labels(facts.labels, agreeing, run.spec.task)
    notes = _label_notes(run, profiles, facts) if message else ()
    others = [f"{site}: {why}" for site, why in sorted((dict(failed) | dict(facts.wrong_base)).items())]
    return "; ".join((*notes, message, *others)) if message else ""


def _selection(run: Run, round_: int, min_sites: Mapping[str, int]) -> Callable[[Collection[str]], tuple[str, ...]]:
    """What chooses the sites of this round."""
    choose = partial(select, per_round=run.spec.sites.per_round, seed=f"{run.spec.training.seed}/{run.name}", round_=round_)
    return partial(select_mixable, min_sites=min_sites, select=choose, mixed=run.spec.aggregation.mixed)


def _with_dropped_labels(plans: Mapping[str, Plan], profiles: Mapping[str, SiteProfile], facts: RunFacts) -> dict[str, Plan]:
    """The plans, where a site has labels that the run does not have with a sentence that says so."""
    notes = {site: dropped_labels_note(profiles[site], facts.labels) for site in plans}
    return {site: plan.model_copy(update={"why": (*plan.why, notes[site])}) if notes[site] else plan for site, plan in plans.items()}


def _label_notes(run: Run, profiles: Mapping[str, SiteProfile], facts: RunFacts) -> tuple[str, ...]:
    same_base = {name: one for name, one in profiles.items() if name not in facts.wrong_base}
    return label_notes(same_base, run.spec.task, {site.name: site.spec.policy.labels or () for site in run.sites})


def _too_few(run: Run, round_: int, need: int, count: int, excluded: Mapping[str, str]) -> OutOfReach:
    reasons = "; ".join(f"{site}: {why}" for site, why in sorted(excluded.items()))
    message = f"round {round_} needs {need} of {len(run.sites)} sites, and these cannot take part: {reasons or 'none is excluded'}"
    reason, message = out_of_reach(run.spec, matched=len(run.sites), count=count, message=message)
    return OutOfReach(reason=reason, message=message)
