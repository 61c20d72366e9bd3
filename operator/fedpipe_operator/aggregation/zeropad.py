"""ZeroPad (the naive rule of HetLoRA, Cho et al., arXiv 2401.06432): pad to the largest rank with zeros, average A and B separately.

For comparison; it is not exact. The scale is folded into B before the average, so that the result has scale 1.
Frozen residual: a site of low rank keeps the residual active while it trains, but sends nothing for it, and this method counts that as
zeros: the residual shrinks each round by the fraction of such sites. This is a known weakness of the method and not corrected here. Only
components that no site trained are kept unchanged. The result is not in singular-value order; its first components are those that most
sites trained.
"""

import numpy as np

from fedpipe_operator.aggregation.factors import AggregatedFactors, CannotAggregateError, Factors, SiteFactorReaders, WeightUpdates


def rank(updates: WeightUpdates, max_rank: int) -> int:
    """The largest rank of the sites and the global factors.

    Raises:
        CannotAggregateError: it exceeds `max_rank` (averaged factors are not in an order that allows truncation).
    """
    largest = max(updates.global_rank, *(site.rank for site in updates.sites), 0)
    if largest > max_rank:
        raise CannotAggregateError(
            f"weight {updates.weight} has rank {largest} above the largest rank allowed, {max_rank}: "
            f"add {largest} to planning.ranks, or set aggregation.method to Exact"
        )
    return largest


def aggregate(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None, rank: int) -> AggregatedFactors:
    """B = Σ p_k s_k [B_k 0] and A = Σ p_k [A_k; 0], then the components of `previous` beyond every site's rank.

    Where `previous` has a component, γ multiplies the step from it; a component without a start is the plain average. A clipped site goes
    the fraction c_k of its way, from `previous` or from zero.
    """
    b, a = np.zeros((updates.d_out, rank)), np.zeros((rank, updates.d_in))
    for read in readers:
        site = read()
        r = len(site.factors.a)
        b[:, :r] += site.share * site.scale * site.factors.b.astype(np.float64)
        a[:r] += site.share * site.factors.a.astype(np.float64)
    if previous is not None:
        for one in updates.sites:
            known, missing = min(one.rank, updates.global_rank), one.share * (1 - one.clip)
            b[:, :known] += missing * previous.b[:, :known]
            a[:known] += missing * previous.a[:known]
        trained = max(site.rank for site in updates.sites)
        known = min(trained, updates.global_rank)
        b[:, :known] += (updates.server_rate - 1) * (b[:, :known] - previous.b[:, :known])
        a[:known] += (updates.server_rate - 1) * (a[:known] - previous.a[:known])
        b[:, trained:] = previous.b[:, trained:]
        a[trained:] = previous.a[trained:]
    return AggregatedFactors(Factors(b=b.astype(np.float32), a=a.astype(np.float32)))
