"""Exact: average the increments of the products, so that different ranks lose nothing but what the final truncation to rank removes.

The global update of a weight is ΔW = B_g·A_g, components in singular-value order. Site k of rank r_k trained the first r_k of them and
kept the rest frozen but active (the frozen residual), so its increment is D_k = s_k·B_k·A_k − B_g[:, :r_k]·A_g[:r_k], and

    ΔW ← ΔW + Σ p_k D_k,   p_k = n_k / Σ n over the sites that trained this weight.

As one factor pair that is L = [B_g | B_k …], R = [diag(c)·A_g ; p_k s_k·A_k …] with c_j = 1 − Σ_{k: r_k > j} p_k, where components with
c_j = 0 are left out; `truncated_svd` reduces it to the wanted rank. (FlexLoRA, arXiv 2402.11505, averages products; the increments with
a frozen residual are ours.)
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, Float64, SiteFactorReaders, SiteFactors, WeightUpdates
from fedpipe_operator.aggregation.stacked_factors import LazyFactors, StackShape, WeightedFactors
from fedpipe_operator.aggregation.truncated_svd import truncated_svd


def rank(updates: WeightUpdates, max_rank: int) -> int:
    """The number of stacked components, limited by `max_rank` and by the shape of the weight."""
    return min(max_rank, _component_count(updates), updates.d_out, updates.d_in)


def frozen_fractions(updates: WeightUpdates) -> Float64:
    """c_j for each global component: the fraction of the samples at sites that did not train it; exactly 0 if all sites did."""
    frozen = [sum(site.samples for site in updates.sites if site.rank <= j) for j in range(updates.global_rank)]
    return np.array(frozen, dtype=np.float64) / updates.samples


def aggregate(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None, rank: int) -> AggregatedFactors:
    """ΔW + Σ p_k D_k as factors of this rank."""
    shape = StackShape(d_out=updates.d_out, d_in=updates.d_in, components=_component_count(updates), rank=rank)
    b, a, truncated_energy = truncated_svd(summands(updates, readers, previous), shape)
    return AggregatedFactors(Factors(b=b, a=a), truncated_energy)


def summands(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None) -> list[LazyFactors]:
    """The factors whose sum is the new update before truncation: the frozen residual, if any, then each site's."""
    residual = [_frozen_residual(frozen_fractions(updates), previous)] if previous is not None else []
    total = updates.samples
    sites = zip(updates.sites, readers, strict=True)
    return residual + [LazyFactors(site.rank, partial(_weighted_factors, read, total)) for site, read in sites]


def _frozen_residual(fractions: Float64, previous: Factors) -> LazyFactors:
    frozen = fractions != 0
    residual = WeightedFactors(fractions[frozen], Factors(b=previous.b[:, frozen], a=previous.a[frozen]))
    return LazyFactors(len(residual.weights), lambda: residual)


def _weighted_factors(read: Callable[[], SiteFactors], total_samples: int) -> WeightedFactors:
    site = read()
    weight = site.samples / total_samples * site.scale
    return WeightedFactors(np.full(len(site.factors.a), weight), site.factors)


def _component_count(updates: WeightUpdates) -> int:
    return int(np.count_nonzero(frozen_fractions(updates))) + sum(site.rank for site in updates.sites)
