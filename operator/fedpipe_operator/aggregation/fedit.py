"""FedIT (Zhang et al., arXiv 2305.05644): average A and B apart. For comparison; mean(B)·mean(A) is not mean(B·A).

All ranks must be equal. The scale is folded into B before the average, so that the result obeys the scale-1 convention. Frozen tail:
global components that no site trained (the global rank is larger than the sites') are kept as they are.
"""

from fedpipe_operator.aggregation import zeropad
from fedpipe_operator.aggregation.values import CannotAggregateError, Factors, Merged, Method, Outline, Parts


def rank(outline: Outline, max_rank: int) -> int:
    """The sites' common rank, or that of the global factors if it is larger.

    Raises:
        CannotAggregateError: ranks differ between the sites, or exceed `max_rank`.
    """
    if len({share.rank for share in outline.shares}) > 1:
        ranks = ", ".join(f"{share.site} {share.rank}" for share in outline.shares)
        raise CannotAggregateError(
            f"FedIT needs equal ranks, weight {outline.weight} has {ranks}: plan with mode Uniform, or use the method Exact"
        )
    return zeropad.rank(outline, max_rank)


def merge(outline: Outline, parts: Parts, before: Factors | None, rank: int) -> Merged:
    """B = Σ p_k s_k B_k and A = Σ p_k A_k, then the untrained components of `before`: zero-padding with nothing to pad."""
    return zeropad.merge(outline, parts, before, rank)


METHOD = Method(rank=rank, merge=merge)
