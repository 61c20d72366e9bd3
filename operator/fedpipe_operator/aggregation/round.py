"""Aggregation of one round from end to end: check every update in the gate, aggregate the accepted ones weight by weight, make the commit.

Pure: the readers, the writer and everything else are arguments. A thread holds one weight of all sites at a time. The bytes written
depend on the set of updates only, not on their order or on the number of threads.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from fedpipe_operator.aggregation import gate, increments
from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, Float64, SiteFactors, SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.increments import UNCHANGED, Alignments, WeightIncrements
from fedpipe_operator.aggregation.methods import METHODS, Method
from fedpipe_operator.aggregation.normalization import Combination, LocalWork, Normalization, by_effective_steps
from fedpipe_operator.aggregation.parallel import ordered_parallel_map
from fedpipe_operator.aggregation.progress import Progress
from fedpipe_operator.aggregation.tensors import Float32, Sink, Source, TensorFile, TensorWriter, factor_keys, open_tensors
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundPlan, Verdict
from fedpipe_operator.sites import measurement
from fedpipe_trainer.contract import Artifact, RunRef, TrainResult, effective_steps

MAX_NORM: Final = 1e4
"""Default bound on the Frobenius norm of a whole update's increment; the norm of a 7B base model itself is several thousand."""
ADAPTER_NAME: Final = "adapter.safetensors"


@dataclass(frozen=True)
class Candidate:
    """A site's update as it is in the store: the attempt it is stored under, its result, and a reader of its adapter."""

    attempt: int
    result: TrainResult
    source: Source


@dataclass(frozen=True)
class RoundInput:
    """The inputs of a round's aggregation."""

    run: RunRef
    plan: RoundPlan
    candidates: Mapping[str, Candidate]
    """By site."""
    previous: Source | None = None
    """The global adapter that the round started from; None in round 1."""


@dataclass(frozen=True)
class AggregationConfig:
    """How updates are checked and aggregated."""

    method: str
    """A key of `METHODS`."""
    max_rank: int
    """Maximum rank of the global adapter, the same for every weight."""
    normalization: Normalization = by_effective_steps
    """How the increments of sites that took different numbers of steps are combined."""
    warmup_steps: int = 0
    """Of each training in the round."""
    max_norm: float = MAX_NORM
    """Upper bound on the norm of a whole update's increment, over all weights together: see `gate.Expected`."""
    threads: int = 1
    """Updates checked, and weights aggregated, at a time; the bytes written do not depend on it."""


@dataclass(frozen=True)
class RoundResult:
    """The gate's verdict on every candidate, and the round's commit; None if too few were accepted (nothing is written then)."""

    verdicts: dict[str, Verdict]
    commit: RoundCommit | None


@dataclass(frozen=True)
class AcceptedUpdate:
    """An update that passed the gate."""

    result: TrainResult
    tensors: TensorFile


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
    """Weight of each site's increment in the average over all sites; the shares add up to 1."""
    alignments: Alignments
    progress: Progress


def aggregate_round(round_input: RoundInput, config: AggregationConfig, sink: Sink) -> RoundResult:
    """Check the candidates and, if at least `plan.needed` are accepted, write the new global adapter to `sink`.

    The commit's `seconds` is left at 0: the caller measures the time.

    Raises:
        CannotAggregateError: the method cannot aggregate these updates (nothing was written).
        MalformedError: the previous global adapter is not a safetensors file.
        OSError: a source or the sink failed.
    """
    plan = round_input.plan
    previous = open_tensors(round_input.previous) if round_input.previous else None
    verdicts = gate.refuse_unmixed(_check_updates(round_input, config, previous), plan.min_sites)
    accepted = {
        site: AcceptedUpdate(round_input.candidates[site].result, open_tensors(round_input.candidates[site].source))
        for site, verdict in verdicts.items()
        if verdict.accepted
    }
    if len(accepted) < plan.needed:
        return RoundResult(verdicts, None)
    adapter = aggregate_adapters(plan, config, accepted, previous=previous, sink=sink)
    return RoundResult(verdicts, _make_commit(plan=plan, config=config, accepted=accepted, verdicts=verdicts, adapter=adapter))


def aggregate_adapters(
    plan: RoundPlan, config: AggregationConfig, accepted: Mapping[str, AcceptedUpdate], *, previous: TensorFile | None, sink: Sink
) -> GlobalAdapter:
    """Write the new global adapter to `sink`: the averaged head tensors, then each weight's aggregated factors, both in order of name.

    A weight that no site trained keeps its global factors. Raises as `aggregate_round` does.
    """
    method, sites = METHODS[config.method], dict(sorted(accepted.items()))
    all_updates = [_weight_updates(weight, plan, config, accepted=sites, previous=previous) for weight in sorted(plan.weights)]
    ranks = {updates.weight: _global_rank(updates, method, config.max_rank) for updates in all_updates}
    writer = TensorWriter(sink, _shapes(plan, ranks))
    whole = _combination({site: update.result for site, update in sites.items()}, plan, config)
    for key in sorted(plan.head):
        tensors = (update.tensors.read(key) for update in sites.values())
        writer.write(key, combine(zip(whole.shares, tensors, strict=True), previous.read(key) if previous else None, whole.server_rate))
    truncated_energy, learned, by, alignments, progress = {}, {}, {}, Alignments(), Progress()
    with_factors = [updates for updates in all_updates if ranks[updates.weight]]
    results = ordered_parallel_map(
        lambda updates: _aggregate_weight(updates, method, ranks[updates.weight], sites, previous), with_factors, config.threads
    )
    for updates, (result, changes) in zip(with_factors, results, strict=True):
        for key, factor in zip(factor_keys(updates.weight), (result.factors.a, result.factors.b), strict=True):
            writer.write(key, factor)
        truncated_energy[updates.weight] = result.truncated_energy
        learned[updates.weight] = math.sqrt(changes.squared_norm)
        by[updates.weight] = increments.learned_by(updates, changes)
        alignments.add(changes)
        progress.add(updates, changes.inner_products)
    shares = dict(zip(sites, whole.shares, strict=True))
    return GlobalAdapter(writer.close(ADAPTER_NAME), ranks, truncated_energy, learned, by, shares, alignments, progress)


def combine(tensors: Iterable[tuple[float, Float32]], previous: Float32 | None = None, server_rate: float = 1.0) -> Float32:
    """The previous tensor x moved to x + γ Σ p_k (x_k − x) for (p_k, x_k); in round 1, where x is not known, the average Σ p_k x_k.

    Summed in float64 in the given order; one x_k is in memory at a time.
    For tensors that are trained and sent as they are (a classification head).

    Raises:
        ValueError: there are no tensors.
    """
    weighted_sum = None
    for share, tensor in tensors:
        term: Float64 = tensor.astype(np.float64) * share
        weighted_sum = term if weighted_sum is None else weighted_sum + term
    if weighted_sum is None:
        raise ValueError("no tensor to average")
    if previous is not None and server_rate != 1:
        weighted_sum += (server_rate - 1) * (weighted_sum - previous)
    return weighted_sum.astype(np.float32)


def _combination(results: Mapping[str, TrainResult], plan: RoundPlan, config: AggregationConfig) -> Combination:
    work = [LocalWork(_samples(result, plan), effective_steps(result.steps, config.warmup_steps)) for result in results.values()]
    return config.normalization(work) if work else Combination(())


def _samples(result: TrainResult, plan: RoundPlan) -> int:
    return plan.samples.get(result.site, result.samples)


def _check_updates(round_input: RoundInput, config: AggregationConfig, previous: TensorFile | None) -> dict[str, Verdict]:
    """The verdicts by site, in order of site."""

    def check(site: str) -> Verdict:
        candidate = round_input.candidates[site]
        expected = gate.Expected(
            run=round_input.run,
            plan=round_input.plan,
            site=site,
            attempt=candidate.attempt,
            max_norm=config.max_norm,
            previous=previous,
        )
        return gate.check(candidate.result, candidate.source, expected)

    sites = sorted(round_input.candidates)
    return dict(zip(sites, ordered_parallel_map(check, sites, config.threads), strict=True))


def _weight_updates(
    weight: str, plan: RoundPlan, config: AggregationConfig, *, accepted: Mapping[str, AcceptedUpdate], previous: TensorFile | None
) -> WeightUpdates:
    d_out, d_in = plan.weights[weight]
    trained = {site: update.result for site, update in accepted.items() if update.result.ranks.get(weight, 0)}
    combination = _combination(trained, plan, config)
    sites = tuple(
        SiteWeight(site=site, rank=result.ranks[weight], share=share)
        for (site, result), share in zip(trained.items(), combination.shares, strict=True)
    )
    entry = previous.entries.get(factor_keys(weight)[0]) if previous else None
    global_rank = entry.shape[0] if entry else 0
    return WeightUpdates(weight=weight, d_out=d_out, d_in=d_in, sites=sites, global_rank=global_rank, server_rate=combination.server_rate)


def _global_rank(updates: WeightUpdates, method: Method, max_rank: int) -> int:
    return method.rank(updates, max_rank) if updates.sites else updates.global_rank


def _shapes(plan: RoundPlan, ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    shapes = {key: plan.head[key] for key in sorted(plan.head)}
    for weight, rank in ranks.items():
        d_out, d_in = plan.weights[weight]
        if rank:
            shapes |= dict(zip(factor_keys(weight), ((rank, d_in), (d_out, rank)), strict=True))
    return shapes


def _aggregate_weight(
    updates: WeightUpdates, method: Method, rank: int, accepted: Mapping[str, AcceptedUpdate], previous: TensorFile | None
) -> tuple[AggregatedFactors, WeightIncrements]:
    previous_factors = _read_factors(previous, updates.weight) if previous and updates.global_rank else None
    if previous_factors and not updates.sites:
        return AggregatedFactors(previous_factors), UNCHANGED
    readers = [partial(_read_site_factors, updates.weight, site.share, accepted[site.site]) for site in updates.sites]
    result = method.aggregate(updates, readers, previous_factors, rank)
    return result, increments.measure(updates, readers, previous_factors, result.factors)


def _read_site_factors(weight: str, share: float, update: AcceptedUpdate) -> SiteFactors:
    return SiteFactors(share, update.result.scales[weight], _read_factors(update.tensors, weight))


def _read_factors(tensors: TensorFile, weight: str) -> Factors:
    a, b = (tensors.read(key) for key in factor_keys(weight))
    return Factors(b=b, a=a)


def _make_commit(
    *,
    plan: RoundPlan,
    config: AggregationConfig,
    accepted: Mapping[str, AcceptedUpdate],
    verdicts: Mapping[str, Verdict],
    adapter: GlobalAdapter,
) -> RoundCommit:
    return RoundCommit(
        round=plan.round,
        method=config.method,
        adapter=adapter.artifact,
        ranks=adapter.ranks,
        head=plan.head,
        contributions=tuple(_contribution(update.result, plan, adapter) for _, update in sorted(accepted.items())),
        refused={site: verdict for site, verdict in verdicts.items() if not verdict.accepted},
        truncated_energy=adapter.truncated_energy,
        learned=adapter.learned,
        learned_by={weight: sites for weight, sites in adapter.learned_by.items() if sites},
        bytes_read=sum(update.tensors.source.size for update in accepted.values()),
    )


def _contribution(result: TrainResult, plan: RoundPlan, adapter: GlobalAdapter) -> Contribution:
    site = result.site
    return Contribution(
        site=site,
        attempt=result.attempt,
        sha256=result.adapter.sha256 if result.adapter else "",
        samples=_samples(result, plan),
        trained_samples=result.samples,
        steps=result.steps,
        share=adapter.shares[site],
        norm=adapter.alignments.norm(site),
        alignment=adapter.alignments.cosine(site),
        progress=adapter.progress.part(site),
        measured=measurement(result, plan.plans[site]),
    )
