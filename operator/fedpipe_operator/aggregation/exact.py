"""Exact: average the increments of the products, so that unequal ranks lose nothing but what the last cut to rank takes.

The global update of a weight is ΔW = B_g·A_g, components in singular-value order. Site k of rank r_k trained the first r_k of them and
kept the rest frozen but active, so its increment is D_k = s_k·B_k·A_k − B_g[:, :r_k]·A_g[:r_k], and

    ΔW ← ΔW + Σ p_k D_k,   p_k = n_k / Σ n over the sites that trained this weight.

As one factor pair that is L = [B_g | B_k …], R = [diag(c)·A_g ; p_k s_k·A_k …] with c_j = 1 − Σ_{k: r_k > j} p_k, components of
c_j = 0 left out; then the compact form of methods in `factorise`. (FlexLoRA, arXiv 2402.11505, averages products; the increments with a
frozen tail are ours.)
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from fedpipe_operator.aggregation.factorise import factorise
from fedpipe_operator.aggregation.stack import Lazy, Piece, Size
from fedpipe_operator.aggregation.values import Factors, Float64, Merged, Method, Outline, Part, Parts


def rank(outline: Outline, max_rank: int) -> int:
    """The number of stacked components, as far as `max_rank` and the shape of the weight allow."""
    return min(max_rank, _components(outline), outline.d_out, outline.d_in)


def kept_shares(outline: Outline) -> Float64:
    """c_j for each global component: the share of the samples at sites that did not train it; exactly 0 if all did."""
    kept = [sum(share.samples for share in outline.shares if share.rank <= j) for j in range(outline.global_rank)]
    return np.array(kept, dtype=np.float64) / outline.samples


def merge(outline: Outline, parts: Parts, before: Factors | None, rank: int) -> Merged:
    """ΔW + Σ p_k D_k as factors of this rank."""
    size = Size(d_out=outline.d_out, d_in=outline.d_in, components=_components(outline), rank=rank)
    b, a, truncated = factorise(pieces(outline, parts, before), size)
    return Merged(Factors(b=b, a=a), truncated)


def pieces(outline: Outline, parts: Parts, before: Factors | None) -> list[Lazy]:
    """What adds up to the new update before any cut."""
    found = []
    if before is not None:
        kept = kept_shares(outline)
        alive = kept != 0
        frozen = Piece(kept[alive], Factors(b=before.b[:, alive], a=before.a[alive]))
        found.append(Lazy(len(frozen.weights), lambda: frozen))
    total = outline.samples
    return found + [Lazy(share.rank, partial(_piece, part, total)) for share, part in zip(outline.shares, parts, strict=True)]


def _piece(read: Callable[[], Part], total: int) -> Piece:
    part = read()
    weight = part.samples / total * part.scale
    return Piece(np.full(len(part.factors.a), weight), part.factors)


def _components(outline: Outline) -> int:
    return int(np.count_nonzero(kept_shares(outline))) + sum(share.rank for share in outline.shares)


METHOD = Method(rank=rank, merge=merge)
