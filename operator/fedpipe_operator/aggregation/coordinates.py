"""Rules that combine the sites' increments coordinate by coordinate, in the space of the products: Median and TrimmedMean.

    ΔW ← ΔW + rule over the sites of (pace_k D_k),      D_k = s_k·B_k·A_k − B_g[:, :r_k]·A_g[:r_k]

Each D_k is of low rank, their median is not: so the matrix of one weight is formed, in float32 (64 MB at 4096 × 4096) and in blocks of
rows, and reduced to the global rank as in `exact`. `pace_k` makes each increment one of the same number of steps (`normalization`).
The sites count equally, whatever their samples: these rules hold as long as less than half of the values are malicious, and samples are
what a site says of itself (Yin et al., arXiv 1803.01498, whose rules are unweighted as well).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from fedpipe_operator.aggregation.dense_svd import truncated_svd_of
from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, SiteFactorReaders, SiteFactors, SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.tensors import Float32

Reduce = Callable[[Float32], Float32]
"""From n × rows × columns values of the n sites to rows × columns."""
_BLOCK_BYTES: Final = 8 * 2**20
"""Of the values of all sites that are held at a time, beside the weight's matrix and its factors."""


def median(values: Float32) -> Float32:
    """Of each coordinate; the mean of the two in the middle of an even number."""
    return trimmed_mean(values, len(values))


def trimmed_mean(values: Float32, malicious: int) -> Float32:
    """The mean of each coordinate without its `malicious` largest and as many smallest values.

    Of a weight that too few sites trained for that, the median: as many are left out as leave one or two.
    """
    cut = min(malicious, (len(values) - 1) // 2)
    ordered = np.sort(values, axis=0)[cut : len(values) - cut]
    return np.asarray(ordered.mean(axis=0, dtype=np.float64), np.float32)


def aggregate(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None, rank: int, reduce: Reduce) -> AggregatedFactors:
    """ΔW moved by what `reduce` makes of the increments, as factors of this rank."""
    dense = np.empty((updates.d_out, updates.d_in), np.float32)
    sites = [(site, read()) for site, read in zip(updates.sites, readers, strict=True)]
    for rows in _row_blocks(dense.shape, len(sites)):
        dense[rows] = reduce(np.stack([_increment(site, update, previous, rows) for site, update in sites]))
        if previous is not None:
            dense[rows] += previous.b[rows] @ previous.a
    b, a, truncated_energy = truncated_svd_of(dense, rank)
    return AggregatedFactors(Factors(b=b, a=a), truncated_energy)


def combine(tensors: Sequence[Float32], coefficients: Sequence[float], start: Float32 | None, reduce: Reduce) -> Float32:
    """The same for a tensor that is trained as a whole; without `start`, what `reduce` makes of the tensors themselves.

    Args:
        tensors: one for each site.
        coefficients: of their increments.
        start: where the sites started from; None in round 1, where only they know.
        reduce: the rule.
    """
    if start is None:
        return _reduced([np.atleast_2d(tensor) for tensor in tensors], reduce).reshape(tensors[0].shape)
    increments = [np.atleast_2d(np.float32(factor) * (one - start)) for factor, one in zip(coefficients, tensors, strict=True)]
    return np.asarray(start + _reduced(increments, reduce).reshape(start.shape), np.float32)


def _reduced(matrices: Sequence[Float32], reduce: Reduce) -> Float32:
    found = np.empty(matrices[0].shape, np.float32)
    for rows in _row_blocks(found.shape, len(matrices)):
        found[rows] = reduce(np.stack([one[rows] for one in matrices]))
    return found


def _increment(site: SiteWeight, update: SiteFactors, previous: Factors | None, rows: slice) -> Float32:
    """pace_k c_k D_k of these rows."""
    factor = site.pace * site.clip
    left, right = update.factors.b[rows] * np.float32(factor * update.scale), update.factors.a
    if previous is not None:
        left = np.hstack([left, np.float32(-factor) * previous.b[rows, : site.rank]])
        right = np.vstack([right, previous.a[: site.rank]])
    return np.asarray(left @ right, np.float32)


def _row_blocks(shape: tuple[int, ...], sites: int) -> Iterator[slice]:
    height = max(1, _BLOCK_BYTES // (4 * sites * shape[1]))
    return (slice(start, start + height) for start in range(0, shape[0], height))
