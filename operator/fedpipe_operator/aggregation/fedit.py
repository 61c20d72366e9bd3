"""FedIT (Zhang et al., arXiv 2305.05644): average A and B separately. For comparison; mean(B)·mean(A) is not mean(B·A).

All ranks must be equal. The scale is folded into B before the average, so that the result has scale 1. Frozen residual: global
components that no site trained (where the global rank is larger than the sites') are kept unchanged.
"""

from fedpipe_operator.aggregation import zeropad
from fedpipe_operator.aggregation.factors import AggregatedFactors, CannotAggregateError, Factors, SiteFactorReaders, WeightUpdates


def rank(updates: WeightUpdates, max_rank: int) -> int:
    """The sites' common rank, or that of the global factors if it is larger.

    Raises:
        CannotAggregateError: the ranks differ between the sites, or exceed `max_rank`.
    """
    if len({site.rank for site in updates.sites}) > 1:
        ranks = ", ".join(f"{site.site} {site.rank}" for site in updates.sites)
        raise CannotAggregateError(
            f"FedIT needs equal ranks, weight {updates.weight} has {ranks}: set planning.mode to Uniform, or aggregation.method to Exact"
        )
    return zeropad.rank(updates, max_rank)


def aggregate(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None, rank: int) -> AggregatedFactors:
    """B = Σ p_k s_k B_k and A = Σ p_k A_k, then the untrained components of `previous`: zero-padding without anything to pad."""
    return zeropad.aggregate(updates, readers, previous, rank)
