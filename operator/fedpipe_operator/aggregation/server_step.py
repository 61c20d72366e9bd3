"""The step of the server's optimizer on one tensor of the global adapter, after its updates were aggregated.

A weight's new product is a weighted sum of three of low rank (`server_optimizers`), reduced to the global rank as in `exact`; no
d_out × d_in matrix is formed. A head tensor is summed as it is, element by element.
"""

from typing import NamedTuple

import numpy as np

from fedpipe_operator.aggregation import server_optimizers
from fedpipe_operator.aggregation.accepted import RoundContext, factors_in, rank_in
from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, WeightUpdates
from fedpipe_operator.aggregation.server_optimizers import Weights
from fedpipe_operator.aggregation.stacked_factors import LazyFactors, StackShape, WeightedFactors
from fedpipe_operator.aggregation.tensors import Float32
from fedpipe_operator.aggregation.truncated_svd import truncated_svd


class Step(NamedTuple):
    """What the optimizer makes of a weight, and its new second moment; None if the optimizer has none."""

    result: AggregatedFactors
    second_moment: float | None


class HeadStep(NamedTuple):
    """Likewise of a head tensor."""

    tensor: Float32
    second_moment: float | None


def largest_rank(updates: WeightUpdates, aggregated: int, context: RoundContext) -> int:
    """The rank of a weight after the step: as many components as are summed, limited by the configuration and by the weight's shape.

    Args:
        updates: of the weight.
        aggregated: the rank that its updates are aggregated to.
        context: of the round.
    """
    if context.config.optimizer.is_plain or not updates.sites:
        return aggregated
    components = aggregated + updates.global_rank + rank_in(context.before, updates.weight)
    return max(aggregated, min(context.config.max_rank, components, updates.d_out, updates.d_in))


def step(  # noqa: PLR0913 -- a weight before and after its aggregation
    updates: WeightUpdates, aggregated: AggregatedFactors, start: Factors | None, *, squared_norm: float, rank: int, context: RoundContext
) -> Step:
    """The new factors of a weight, of this rank.

    Args:
        updates: of the weight.
        aggregated: what its updates were aggregated to.
        start: the global factors before; None for a product of zero.
        squared_norm: of the increment from `start` to `aggregated`.
        rank: see `largest_rank`.
        context: of the round.
    """
    optimizer, known = context.config.optimizer, context.state.second_moments.get(updates.weight)
    if optimizer.is_plain:
        return Step(aggregated, None)
    v = server_optimizers.second_moment(optimizer, known, squared_norm / (updates.d_out * updates.d_in))
    # Without an adapter before the last one, which is round 2's case, the weight's product was zero then.
    weights = server_optimizers.weights(optimizer, v, context.state.optimizer, known)
    if start is None and weights.aggregated == 1:
        return Step(aggregated, v)  # round 1 of FedAvgM
    summed = zip(weights, (aggregated.factors, start, factors_in(context.before, updates.weight)), strict=True)
    summands = [_weighted(weight, factors) for weight, factors in summed if factors is not None]
    shape = StackShape(d_out=updates.d_out, d_in=updates.d_in, components=sum(one.components for one in summands), rank=rank)
    b, a, lost = truncated_svd(summands, shape)
    return Step(AggregatedFactors(Factors(b=b, a=a), 1 - (1 - aggregated.truncated_energy) * (1 - lost)), v)


def step_of_head(key: str, aggregated: Float32, start: Float32 | None, context: RoundContext) -> HeadStep:
    """A new head tensor. In round 1 what it was before is not known: it is what the sites' tensors were aggregated to."""
    optimizer, known = context.config.optimizer, context.state.second_moments.get(key)
    if optimizer.is_plain or start is None:
        return HeadStep(aggregated, None)
    mean_square = float(np.mean(np.square(np.subtract(aggregated, start, dtype=np.float64))))
    v = server_optimizers.second_moment(optimizer, known, mean_square)
    before = context.before.read(key) if context.before else None
    weights = server_optimizers.weights(optimizer, v, context.state.optimizer if before is not None else None, known)
    return HeadStep(_sum(weights, aggregated, start, before), v)


def _sum(weights: Weights, aggregated: Float32, current: Float32, before: Float32 | None) -> Float32:
    total = weights.aggregated * aggregated.astype(np.float64) + weights.current * current.astype(np.float64)
    if before is not None:
        total += weights.before * before.astype(np.float64)
    return total.astype(np.float32)


def _weighted(weight: float, factors: Factors) -> LazyFactors:
    weighted = WeightedFactors(np.full(len(factors.a), weight), factors)
    return LazyFactors(len(factors.a), lambda: weighted)
