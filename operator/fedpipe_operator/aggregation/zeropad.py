"""ZeroPad (the naive rule of HetLoRA, Cho et al., arXiv 2401.06432): pad to the largest rank with zeros, average A and B apart.

For comparison; it is not exact. The scale is folded into B before the average, so that the result obeys the scale-1 convention.
Frozen tail: a site of low rank keeps the tail active while it trains, yet sends nothing for it, and the rule counts that as zeros:
the tail shrinks each round by the share of such sites. That is the rule's fault, and left in. Only components that no site at all
trained are kept as they are. The result is not in singular-value order; its first components are the ones that most sites trained.
"""

import numpy as np

from fedpipe_operator.aggregation.values import CannotAggregateError, Factors, Merged, Method, Outline, Parts


def rank(outline: Outline, max_rank: int) -> int:
    """The largest rank of the sites and the global factors.

    Raises:
        CannotAggregateError: it exceeds `max_rank` (averaged factors are in no order in which they could be cut).
    """
    largest = max(outline.global_rank, *(share.rank for share in outline.shares), 0)
    if largest > max_rank:
        raise CannotAggregateError(
            f"weight {outline.weight} has rank {largest} above the largest rank allowed, {max_rank}: allow it, or use the method Exact"
        )
    return largest


def merge(outline: Outline, parts: Parts, before: Factors | None, rank: int) -> Merged:
    """B = Σ p_k s_k [B_k 0] and A = Σ p_k [A_k; 0], then the components of `before` beyond every site's rank."""
    left, right = np.zeros((outline.d_out, rank)), np.zeros((rank, outline.d_in))
    for read in parts:
        part = read()
        share, r = part.samples / outline.samples, len(part.factors.a)
        left[:, :r] += share * part.scale * part.factors.b.astype(np.float64)
        right[:r] += share * part.factors.a.astype(np.float64)
    if before is not None:
        trained = max(share.rank for share in outline.shares)
        left[:, trained:] = before.b[:, trained:]
        right[trained:] = before.a[trained:]
    return Merged(Factors(b=left.astype(np.float32), a=right.astype(np.float32)))


METHOD = Method(rank=rank, merge=merge)
