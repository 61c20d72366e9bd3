"""Exact: average the increments of the products, so that different ranks lose nothing but what the final truncation to rank removes.

The global update of a weight is ΔW = B_g·A_g, components in singular-value order. Site k of rank r_k trained the first r_k of them and
kept the rest frozen but active (the frozen residual), so its increment is D_k = s_k·B_k·A_k − B_g[:, :r_k]·A_g[:r_k], and

    ΔW ← ΔW + γ Σ p_k D_k,

where the shares p_k of the sites that trained this weight add up to 1, and γ is the server's rate (`normalization`). A clipped increment
counts with p_k c_k in place of p_k (`clipping`).

As one factor pair that is L = [B_g | B_k …], R = [diag(f)·A_g ; γ p_k s_k·A_k …] with f_j = 1 − γ Σ_{k: r_k > j} p_k, where components with
f_j = 0 are left out; `truncated_svd` reduces it to the wanted rank. (FlexLoRA, arXiv 2402.11505, averages products; the increments with
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


def kept_fractions(updates: WeightUpdates) -> Float64:
    """f_j for each global component: what is kept of it beside the sites' factors.

    Exactly 0 if γ is 1, all sites trained it, and none was clipped.
    """
    frozen = [sum(site.share * (1 - site.clip if site.rank > j else 1.0) for site in updates.sites) for j in range(updates.global_rank)]
    return 1 - updates.server_rate + updates.server_rate * np.array(frozen, dtype=np.float64)


def aggregate(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None, rank: int) -> AggregatedFactors:
    """ΔW + γ Σ p_k D_k as factors of this rank."""
    shape = StackShape(d_out=updates.d_out, d_in=updates.d_in, components=_component_count(updates), rank=rank)
    b, a, truncated_energy = truncated_svd(summands(updates, readers, previous), shape)
    return AggregatedFactors(Factors(b=b, a=a), truncated_energy)


def summands(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None) -> list[LazyFactors]:
    """The factors whose sum is the new update before truncation: what is kept of the previous one, if any, then each site's."""
    kept = [_kept(kept_fractions(updates), previous)] if previous is not None else []
    sites = zip(updates.sites, readers, strict=True)
    return kept + [LazyFactors(site.rank, partial(_weighted_factors, updates.server_rate, read)) for site, read in sites]


def _kept(fractions: Float64, previous: Factors) -> LazyFactors:
    chosen = fractions != 0
    kept = WeightedFactors(fractions[chosen], Factors(b=previous.b[:, chosen], a=previous.a[chosen]))
    return LazyFactors(len(kept.weights), lambda: kept)


def _weighted_factors(server_rate: float, read: Callable[[], SiteFactors]) -> WeightedFactors:
    site = read()
    return WeightedFactors(np.full(len(site.factors.a), server_rate * site.share * site.scale), site.factors)


def _component_count(updates: WeightUpdates) -> int:
    return int(np.count_nonzero(kept_fractions(updates))) + sum(site.rank for site in updates.sites)
