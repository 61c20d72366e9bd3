"""The data owners' consent: which sites allow a run and its model, and which sites may be mixed. Pure.

The policies are evaluated by the functions of the contract, by which each trainer evaluates them again.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

from fedpipe_operator import conversion
from fedpipe_operator.api import DataPolicy, EdgeSite
from fedpipe_operator.api.aggregation import AggregationRule, AggregationSpec
from fedpipe_operator.mixing import Mixed, mixable
from fedpipe_operator.rounds.model_claims import claim_problem
from fedpipe_operator.rounds.observed import Run
from fedpipe_operator.rounds.policies import missing_for_rule, needed_of, needed_updates
from fedpipe_trainer.contract import DataUse, FailureReason, Plan, denial

TOO_FEW_SITES: Final = "TooFewSites"
_DEFAULT: Final = DataPolicy()


def denials(run: Run) -> dict[str, str]:
    """By site that does not allow the run or its model, however many sites there are: the reason."""
    metadata = run.resource.metadata
    use = DataUse(
        run=run.baseline_of or metadata.name,
        run_labels=metadata.labels,
        objective=conversion.objective(run.spec.task),
        contributors=sys.maxsize,
    )
    return {site.name: reason for site in run.sites if (reason := _denial(site, use) or claim_problem(run, site))}


def left_out(run: Run) -> dict[str, str]:
    """By site that takes no part in the next plan: its policy does not allow the run, or asks for more sites than there are.

    A site costs only itself: the others go on without it.
    """
    denied = denials(run)
    if run.baseline_of:
        return denied
    allowed = {site.name: site.spec.policy.min_sites for site in run.sites if site.name not in denied}
    per_round = run.spec.sites.per_round
    content = mixable(allowed, most=per_round, mixed=run.spec.aggregation.mixed)
    count = len(content) if per_round is None else min(per_round, len(content))
    return denied | {site: too_few_reason(least, count, run.spec.aggregation) for site, least in allowed.items() if site not in content}


def missing_sites(run: Run, without: Mapping[str, str]) -> str:
    """Why the policies leave a round fewer sites than it needs; empty if they do not.

    Args:
        run: the run and its sites.
        without: those that are left out, with the reason (`left_out`).
    """
    need = needed_updates(run.spec.sites.quorum, matched=len(run.sites), per_round=run.spec.sites.per_round)
    if not without or len(run.sites) - len(without) >= need:
        return ""
    reasons = "; ".join(f"{site}: {why}" for site, why in sorted(without.items()))
    return f"a round needs {need} of {len(run.sites)} sites, and these may take no part: {reasons}"


def missing_for_rule_of(run: Run, without: Mapping[str, str]) -> str:
    """Why a round has fewer sites than `aggregation.rule` needs, before any of them is profiled; empty if it has as many.

    Args:
        run: the run and its sites.
        without: those that are left out, with the reason (`left_out`).
    """
    count = len(run.sites) - len(without)
    message = missing_for_rule(run.spec.aggregation, min(count, run.spec.sites.per_round or count))
    return "; ".join((message, *(f"{site}: {why}" for site, why in sorted(without.items())))) if message else ""


def select_mixable(
    candidates: Collection[str],
    min_sites: Mapping[str, int],
    select: Callable[[Collection[str]], tuple[str, ...]],
    mixed: Mixed = int,
) -> tuple[str, ...]:
    """The sites of a round that `select` chooses, each of which is content with their number: others are not chosen from."""
    while True:
        selected = select(candidates)
        content = mixable({site: min_sites.get(site, 1) for site in selected}, mixed=mixed)
        if len(content) == len(selected):
            return selected
        candidates = [site for site in candidates if site in content or site not in selected]


def too_few_reason(min_sites: int, count: int, aggregation: AggregationSpec) -> str:
    """Why a site takes no part where so many others do."""
    policy = f"{TOO_FEW_SITES}: policy.minSites of the site is {min_sites}"
    if aggregation.rule is AggregationRule.KRUM:
        return f"{policy}, and aggregation.rule Krum makes the global adapter of one update: name another rule, such as MultiKrum"
    if aggregation.rule is AggregationRule.MULTI_KRUM:
        left_out = f"aggregation.rule MultiKrum leaves out {aggregation.malicious_sites + 2} updates"
        return f"{policy}, without it {count} take part, and {left_out}: add sites, name another rule, or have minSites lowered"
    return f"{policy}, and without it {count} take part: add sites, or have it lowered"


def needed_contributors(needed: int, min_sites: Mapping[str, int], selected: Collection[str], mixed: Mixed) -> int:
    """Updates that a round needs: so many, and as many as the policy of at least one of its sites asks for."""
    least = min((min_sites.get(site, 1) for site in selected), default=1)
    return next((count for count in range(needed, len(selected)) if mixed(count) >= least), max(needed, len(selected)))


def least_contributors(run: Run, site: str) -> int:
    """How many updates, at least, an aggregate with this site's will be made of, as far as that is known before a round is planned."""
    return max(run.spec.aggregation.mixed(needed_of(run)), *(one.spec.policy.min_sites for one in run.sites if one.name == site))


def with_hidden_rows(run: Run, plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans, where a site shows fewer rows than the run asks for with a sentence that says so."""
    asked = run.spec.evaluation.samples
    shown = {site.name: site.spec.policy.max_shown_rows for site in run.sites}
    return {site: _with_hidden_rows(plan, asked, shown.get(site, 0)) for site, plan in plans.items()}


def with_unmixed_weights(plans: Mapping[str, Plan], selected: Collection[str], min_sites: Mapping[str, int]) -> dict[str, Plan]:
    """The plans, where a site trains weights that too few others of the round do with a sentence that says so: it trains them in vain."""
    chosen = {site: plan for site, plan in plans.items() if site in selected}
    trainers: dict[str, dict[str, int]] = {}
    for site, plan in chosen.items():
        for weight in (weight for weight, rank in plan.ranks.items() if rank):
            trainers.setdefault(weight, {})[site] = min_sites.get(site, 1)
    vain = Counter(site for of in trainers.values() for site in of.keys() - mixable(of))
    return dict(plans) | {site: _with_unmixed_weights(chosen[site], count, min_sites[site]) for site, count in vain.items()}


def _with_unmixed_weights(plan: Plan, count: int, least: int) -> Plan:
    trained = sum(1 for rank in plan.ranks.values() if rank)
    reason = f"{count} of its {trained} adapters stay out of the global adapter: too few sites train them for its policy.minSites, {least}"
    return plan.model_copy(update={"why": (*plan.why, reason)})


def _with_hidden_rows(plan: Plan, asked: int, shown: int) -> Plan:
    if shown >= asked:
        return plan
    reason = f"it shows {shown} of the {asked} validation rows that evaluation.samples asks for, by policy.maxShownRows of the site"
    return plan.model_copy(update={"why": (*plan.why, reason)})


def _denial(site: EdgeSite, use: DataUse) -> str:
    if site.spec.policy == _DEFAULT:
        return ""
    reason = denial(conversion.policy(site.spec.policy), use)
    return f"{FailureReason.POLICY_DENIED}: {reason}" if reason else ""
