"""The accepted updates of a round, weight by weight: who trained it, with which share, and readers of its factors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation.config import AggregationConfig
from fedpipe_operator.aggregation.encoded import Tensors
from fedpipe_operator.aggregation.factors import Factors, SiteFactorReaders, SiteFactors, SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.normalization import Combination, LocalWork
from fedpipe_operator.aggregation.rules import RULES
from fedpipe_operator.aggregation.tensors import TensorFile, factor_keys
from fedpipe_operator.mixing import mixable
from fedpipe_operator.rounds.records import NO_STATE, OptimizerState, RoundPlan
from fedpipe_operator.shares import max_share
from fedpipe_trainer.contract import effective_steps

NOT_CLIPPED: Final[Mapping[str, float]] = {}


@dataclass(frozen=True)
class AcceptedUpdate:
    """An update that passed the gate."""

    result: AdmittedUpdate
    tensors: Tensors


@dataclass(frozen=True)
class RoundContext:
    """What all weights of a round have in common."""

    plan: RoundPlan
    config: AggregationConfig
    previous: TensorFile | None
    """The global adapter that the round started from; None in round 1."""
    before: TensorFile | None = None
    """The one before that; None in rounds 1 and 2, and where the optimizer needs none."""
    state: OptimizerState = NO_STATE
    """Of the round before."""

    @cached_property
    def fewest_steps(self) -> int:
        """Those of the round's slowest plan. Looked up once: it is asked for every update of every weight."""
        return min(plan.steps for plan in self.plan.plans.values())


Accepted = Mapping[str, AcceptedUpdate]
"""By site, in order of site."""


def samples_of(result: AdmittedUpdate, plan: RoundPlan) -> int:
    """The training samples that the site's weight rests on: its profile's without those that it dropped, at least one.

    Without its profile's, those trained on, at most as many as planned.
    """
    own = plan.plans[result.site]
    samples = plan.samples.get(result.site)
    return max(1, samples - result.dropped_rows) if samples else min(result.samples, own.steps * own.batch_size)


def counted_steps(result: AdmittedUpdate, context: RoundContext) -> float:
    """The effective steps by which the site's increment is divided: those that it took, and no fewer than the round's slowest plan has.

    By fewer, the increment of a site that was cut short near its deadline would count as if it were that of all its steps, and as the limit
    of the server's rate then scales down what the others learned, most of the round would be lost (`benchmarks/normalization.py --cut`).
    """
    return effective_steps(max(context.fewest_steps, result.steps), context.config.warmup_steps)


def combination_of(accepted: Accepted, context: RoundContext) -> Combination:
    """The shares of these sites, bounded, and what makes their increments comparable. A rule by coordinates counts the sites equally."""
    if not accepted:
        return Combination((), ())
    plan, config = context.plan, context.config
    is_equal = RULES[config.rule].reduce is not None
    results = [update.result for update in accepted.values()]
    work = [LocalWork(1 if is_equal else samples_of(one, plan), counted_steps(one, context)) for one in results]
    return config.normalization(work).limited(max_share(len(work), config.max_site_weight))


def updates_of(weight: str, accepted: Accepted, context: RoundContext, clips: Mapping[str, float] = NOT_CLIPPED) -> WeightUpdates:
    """The updates of one weight by those of these sites that trained it with as many others as they ask for (`policy.minSites`).

    `clips` has the factors of the clipped ones.
    """
    d_out, d_in = context.plan.weights[weight]
    trained = sites_among(accepted, _mixable_in(weight, accepted, context.plan))
    combination = combination_of(trained, context)
    sites = tuple(
        SiteWeight(site=site, rank=update.result.ranks[weight], share=share, clip=clips.get(site, 1.0), pace=pace)
        for (site, update), share, pace in zip(trained.items(), combination.shares, combination.paces, strict=True)
    )
    global_rank = rank_in(context.previous, weight)
    return WeightUpdates(weight=weight, d_out=d_out, d_in=d_in, sites=sites, global_rank=global_rank, server_rate=combination.server_rate)


def _mixable_in(weight: str, accepted: Accepted, plan: RoundPlan) -> frozenset[str]:
    """A weight that one site alone trained would be that site's, however many others are in the round."""
    return mixable({site: plan.min_sites.get(site, 1) for site, update in accepted.items() if update.result.ranks.get(weight, 0)})


def with_left_out(updates: WeightUpdates, accepted: Accepted) -> WeightUpdates:
    """The same with the sites that trained the weight and were not selected: share 0, so that they are measured as well."""
    chosen = {one.site: one for one in updates.sites}
    trained = {site: update.result.ranks.get(updates.weight, 0) for site, update in accepted.items()}
    return replace(updates, sites=tuple(chosen.get(site) or SiteWeight(site, rank, 0.0) for site, rank in trained.items() if rank))


def readers_of(updates: WeightUpdates, accepted: Accepted) -> SiteFactorReaders:
    """One for each site of `updates`."""
    return [partial(_read_site_factors, updates.weight, one.coefficient, accepted[one.site]) for one in updates.sites]


def factors_in(adapter: TensorFile | None, weight: str) -> Factors | None:
    """The weight's factors in a global adapter; None if it has none, or if there is no adapter."""
    return read_factors(adapter, weight) if rank_in(adapter, weight) and adapter else None


def rank_in(adapter: TensorFile | None, weight: str) -> int:
    """The rank of the weight's factors in a global adapter; 0 if it has none, or if there is no adapter."""
    entry = adapter.entries.get(factor_keys(weight)[0]) if adapter else None
    return entry.shape[0] if entry else 0


def read_factors(tensors: Tensors, weight: str) -> Factors:
    """Both factors of a weight."""
    a, b = (tensors.read(key) for key in factor_keys(weight))
    return Factors(b=b, a=a)


def sites_among(accepted: Accepted, chosen: Collection[str]) -> Accepted:
    """Those of the accepted updates that are of these sites."""
    return {site: update for site, update in accepted.items() if site in chosen}


def _read_site_factors(weight: str, coefficient: float, update: AcceptedUpdate) -> SiteFactors:
    return SiteFactors(coefficient, update.result.scales[weight], read_factors(update.tensors, weight))
