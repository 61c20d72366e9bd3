"""Exact: average the increments of the products, so that unequal ranks lose nothing but what the last cut to rank takes.

The global update of a weight is ΔW = B_g·A_g, components in singular-value order. Site k of rank r_k trained the first r_k of them and
kept the rest frozen but active, so its increment is D_k = s_k·B_k·A_k − B_g[:, :r_k]·A_g[:r_k], and

    ΔW ← ΔW + Σ p_k D_k,   p_k = n_k / Σ n over the sites that trained this weight.

As one factor pair that is L = [B_g·diag(c) | p_k s_k B_k …], R = [A_g ; A_k …] with c_j = 1 − Σ_{k: r_k > j} p_k, components of
c_j = 0 left out; then the compact form of methods in `factorise`. (FlexLoRA, arXiv 2402.11505, averages products; the increments with a
frozen tail are ours.)
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fedpipe_operator.aggregation.factorise import factorise
from fedpipe_operator.aggregation.values import Factors, Float64, Merged, Method, Outline, Part


def rank(outline: Outline, max_rank: int) -> int:
    """The number of stacked components, as far as `max_rank` and the shape of the weight allow."""
    ranks = [share.rank for share in outline.shares]
    samples = [share.samples for share in outline.shares]
    kept = int(np.count_nonzero(kept_shares(ranks, samples, outline.global_rank)))
    return min(max_rank, kept + sum(ranks), outline.d_out, outline.d_in)


def kept_shares(ranks: Sequence[int], samples: Sequence[int], global_rank: int) -> Float64:
    """c_j for each global component: the share of the samples at sites that did not train it; exactly 0 if all did."""
    total = sum(samples)
    trained = (sum(n for r, n in zip(ranks, samples, strict=True) if r > j) for j in range(global_rank))
    return np.array([float(Fraction(total - n, total)) for n in trained])


def merge(parts: Sequence[Part], before: Factors | None, rank: int) -> Merged:
    """ΔW + Σ p_k D_k as factors of this rank."""
    b, a, truncated = factorise(*stacked(parts, before), rank)
    return Merged(Factors(b=b, a=a), truncated)


def stacked(parts: Sequence[Part], before: Factors | None) -> tuple[Float64, Float64]:
    """L (d_out × n) and R (n × d_in) in float64, with L @ R the new update before any cut."""
    total = sum(part.samples for part in parts)
    pieces = [(part.factors.b, part.factors.a, part.samples / total * part.scale) for part in parts]
    if before is not None:
        kept = kept_shares([len(a) for _, a, _ in pieces], [part.samples for part in parts], len(before.a))
        alive = kept != 0
        pieces.insert(0, (before.b[:, alive], before.a[alive], 1.0))
    count = sum(len(a) for _, a, _ in pieces)
    left, right = np.empty((len(pieces[0][0]), count)), np.empty((count, pieces[0][1].shape[1]))
    start = 0
    for b, a, share in pieces:
        end = start + len(a)
        left[:, start:end], right[start:end] = b, a
        left[:, start:end] *= share
        start = end
    if before is not None:
        left[:, : alive.sum()] *= kept[alive]
    return left, right


METHOD = Method(rank=rank, merge=merge)
