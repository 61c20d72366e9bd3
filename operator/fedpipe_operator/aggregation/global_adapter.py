"""The new global adapter from the accepted updates: weight by weight, streamed into a file."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.aggregation import coordinates, increments
from fedpipe_operator.aggregation.accepted import (
    NOT_CLIPPED,
    Accepted,
    RoundContext,
    combination_of,
    factors_in,
    readers_of,
    sites_among,
    updates_of,
    with_left_out,
)
from fedpipe_operator.aggregation.config import AggregationConfig
from fedpipe_operator.aggregation.factors import AggregatedFactors, Float64, WeightUpdates
from fedpipe_operator.aggregation.increments import UNCHANGED, Alignments, WeightIncrements
from fedpipe_operator.aggregation.methods import METHODS
from fedpipe_operator.aggregation.parallel import ordered_parallel_map
from fedpipe_operator.aggregation.progress import Progress
from fedpipe_operator.aggregation.rules import RULES
from fedpipe_operator.aggregation.server_step import HeadStep, largest_rank, step, step_of_head
from fedpipe_operator.aggregation.survey import Limits
from fedpipe_operator.aggregation.tensors import Float32, Sink, TensorWriter, factor_keys
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import Artifact

ADAPTER_NAME: Final = "adapter.safetensors"


@dataclass(frozen=True)
class GlobalAdapter:
    """The new global adapter: its file, the rank of each weight (0: no factors), and the energy lost by truncation to that rank."""

    artifact: Artifact
    ranks: dict[str, int]
    truncated_energy: dict[str, float]
    learned: dict[str, float]
    """Frobenius norm of each weight's increment from the previous global adapter."""
    learned_by: dict[str, dict[str, float]]
    """By weight: the sites that moved it most, with their shares; see `increments.learned_by`."""
    shares: dict[str, float]
    """Weight of each site's increment in the average over all sites; the shares add up to 1. 0: the rule left the site out."""
    alignments: Alignments
    progress: Progress
    second_moments: dict[str, float]
    """Of the server's optimizer, by weight and by head tensor."""


class _Aggregated(NamedTuple):
    """One weight: its new factors, the increments that were aggregated, and the optimizer's second moment."""

    result: AggregatedFactors
    changes: WeightIncrements
    second_moment: float | None = None


def aggregate_adapters(context: RoundContext, accepted: Accepted, limits: Limits, sink: Sink) -> GlobalAdapter:
    """Write the new global adapter to `sink`: the combined head tensors, then each weight's aggregated factors, both in order of name.

    A weight that no selected site trained keeps its global factors. What is measured of the increments is before the step of the server's
    optimizer: what the sites' updates were aggregated to. Raises as `round.aggregate_round` does.
    """
    plan, config, accepted = context.plan, context.config, dict(sorted(accepted.items()))
    sites = sites_among(accepted, limits.selected)
    all_updates = [updates_of(weight, sites, context, limits.clips.get(weight, NOT_CLIPPED)) for weight in sorted(plan.weights)]
    ranks = {updates.weight: largest_rank(updates, _aggregated_rank(updates, config), context) for updates in all_updates}
    writer = TensorWriter(sink, _shapes(plan, ranks))
    whole = combination_of(sites, context)
    moments = dict(context.state.second_moments)
    for key in sorted(plan.head):
        head = _new_head(key, sites, context, limits.clips.get(key, NOT_CLIPPED))
        writer.write(key, head.tensor)
        moments |= _moment(key, head.second_moment)
    truncated_energy, learned, by, alignments, progress = {}, {}, {}, Alignments(), Progress()
    with_factors = [updates for updates in all_updates if ranks[updates.weight]]
    results = ordered_parallel_map(
        lambda updates: _aggregate_weight(updates, ranks[updates.weight], context, accepted), with_factors, config.threads
    )
    for updates, (result, changes, moment) in zip(with_factors, results, strict=True):
        moments |= _moment(updates.weight, moment)
        for key, factor in zip(factor_keys(updates.weight), (result.factors.a, result.factors.b), strict=True):
            writer.write(key, factor)
        truncated_energy[updates.weight] = result.truncated_energy
        learned[updates.weight] = math.sqrt(changes.squared_norm)
        by[updates.weight] = increments.learned_by(updates, changes)
        alignments.add(changes)
        progress.add(updates, changes.inner_products)
    shares = dict.fromkeys(accepted, 0.0) | dict(zip(sites, whole.shares, strict=True))
    return GlobalAdapter(writer.close(ADAPTER_NAME), ranks, truncated_energy, learned, by, shares, alignments, progress, moments)


def _moment(name: str, value: float | None) -> dict[str, float]:
    """What a step adds to the second moments: that of a tensor which no site trained stays as it was."""
    return {} if value is None else {name: value}


def combine(
    tensors: Iterable[tuple[float, Float32]], previous: Float32 | None = None, server_rate: float = 1.0, clipped: float = 0.0
) -> Float32:
    """The previous tensor x moved to x + γ Σ q_k (x_k − x) for (q_k, x_k); in round 1, where x is not known, the sum Σ q_k x_k.

    Summed in float64 in the given order; one x_k is in memory at a time.
    For tensors that are trained and sent as they are (a classification head).

    Args:
        tensors: with the coefficients q_k = p_k c_k.
        previous: x.
        server_rate: γ.
        clipped: 1 − Σ q_k, which clipping took: 0 where nothing is clipped.

    Raises:
        ValueError: there are no tensors.
    """
    weighted_sum = None
    for coefficient, tensor in tensors:
        term: Float64 = tensor.astype(np.float64) * coefficient
        weighted_sum = term if weighted_sum is None else weighted_sum + term
    if weighted_sum is None:
        raise ValueError("no tensor to average")
    if previous is not None and (server_rate != 1 or clipped):
        weighted_sum += (server_rate - 1) * (weighted_sum - previous) + server_rate * clipped * previous.astype(np.float64)
    return weighted_sum.astype(np.float32)


def _new_head(key: str, sites: Accepted, context: RoundContext, clips: Mapping[str, float]) -> HeadStep:
    start = context.previous.read(key) if context.previous else None
    return step_of_head(key, _combined_head(key, sites, context, clips, start), start, context)


def _combined_head(key: str, sites: Accepted, context: RoundContext, clips: Mapping[str, float], start: Float32 | None) -> Float32:
    config, whole, factors = context.config, combination_of(sites, context), [clips.get(site, 1.0) for site in sites]
    tensors = (update.tensors.read(key) for update in sites.values())
    reduce = RULES[config.rule].reduce
    if reduce is not None:
        paces = [pace * factor for pace, factor in zip(whole.paces, factors, strict=True)]
        return coordinates.combine(list(tensors), paces, start, reduce(config.malicious_sites))
    shares = [share * factor for share, factor in zip(whole.shares, factors, strict=True)]
    clipped = sum(share * (1 - factor) for share, factor in zip(whole.shares, factors, strict=True))
    return combine(zip(shares, tensors, strict=True), start, whole.server_rate, clipped)


def _aggregated_rank(updates: WeightUpdates, config: AggregationConfig) -> int:
    return METHODS[config.method].rank(updates, config.max_rank) if updates.sites else updates.global_rank


def _shapes(plan: RoundPlan, ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    shapes = {key: plan.head[key] for key in sorted(plan.head)}
    for weight, rank in ranks.items():
        d_out, d_in = plan.weights[weight]
        if rank:
            shapes |= dict(zip(factor_keys(weight), ((rank, d_in), (d_out, rank)), strict=True))
    return shapes


def _aggregate_weight(updates: WeightUpdates, new_rank: int, context: RoundContext, accepted: Accepted) -> _Aggregated:
    config = context.config
    start, reduce = factors_in(context.previous, updates.weight), RULES[config.rule].reduce
    if start and not updates.sites:
        return _Aggregated(AggregatedFactors(start), UNCHANGED)
    readers, rank = readers_of(updates, accepted), _aggregated_rank(updates, config)
    if reduce is not None:
        result = coordinates.aggregate(updates, readers, start, rank, reduce(config.malicious_sites))
    else:
        result = METHODS[config.method].aggregate(updates, readers, start, rank)
    measured = with_left_out(updates, accepted)
    changes = increments.measure(measured, readers_of(measured, accepted), start, result.factors)
    new = step(updates, result, start, squared_norm=changes.squared_norm, rank=new_rank, context=context)
    return _Aggregated(new.result, changes, new.second_moment)
