"""Aggregation of one round from end to end: check every update in the gate, aggregate the accepted ones weight by weight, make the commit.

Pure: the readers, the writer and everything else are arguments. A thread holds one weight of all sites at a time. The bytes written
depend on the set of updates only, not on their order or on the number of threads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation import gate
from fedpipe_operator.aggregation.accepted import Accepted, AcceptedUpdate, RoundContext, samples_of
from fedpipe_operator.aggregation.config import AggregationConfig
from fedpipe_operator.aggregation.encoded import open_update
from fedpipe_operator.aggregation.global_adapter import GlobalAdapter, aggregate_adapters
from fedpipe_operator.aggregation.methods import METHODS
from fedpipe_operator.aggregation.parallel import ordered_parallel_map
from fedpipe_operator.aggregation.survey import ByTensor, limits_of
from fedpipe_operator.aggregation.tensors import Sink, Source, TensorFile, open_tensors
from fedpipe_operator.rounds.records import NO_STATE, Contribution, OptimizerState, RoundCommit, RoundPlan, Verdict
from fedpipe_operator.sites import measurement


@dataclass(frozen=True)
class Candidate:
    """A site's update as it is in the store: its result, and a reader of its adapter."""

    result: AdmittedUpdate
    source: Source


@dataclass(frozen=True)
class RoundInput:
    """The inputs of a round's aggregation."""

    plan: RoundPlan
    candidates: Mapping[str, Candidate]
    """By site."""
    refused: Mapping[str, Verdict] = field(default_factory=dict)
    """By site: updates that were refused before their adapter was read."""
    previous: Source | None = None
    """The global adapter that the round started from; None in round 1."""
    before: Source | None = None
    """The one before that, if the server's optimizer needs it."""
    state: OptimizerState = NO_STATE
    """Of the optimizer, from the commit of the round before."""


@dataclass(frozen=True)
class RoundResult:
    """The gate's verdict on every candidate, and the round's commit; None if too few were accepted (nothing is written then)."""

    verdicts: dict[str, Verdict]
    commit: RoundCommit | None


def aggregate_round(round_input: RoundInput, config: AggregationConfig, sink: Sink) -> RoundResult:
    """Check the candidates and, if at least `plan.needed` are accepted, write the new global adapter to `sink`.

    The commit's `seconds` is left at 0: the caller measures the time.

    Raises:
        CannotAggregateError: the method or the rule cannot aggregate these updates (nothing was written).
        MalformedError: the previous global adapter is not a safetensors file.
        OSError: a source or the sink failed.
    """
    plan = round_input.plan
    most = gate.max_global_header_bytes(plan)
    previous = open_tensors(round_input.previous, most) if round_input.previous else None
    before = open_tensors(round_input.before, most) if round_input.before else None
    context = RoundContext(plan, config, previous, before, round_input.state)
    verdicts = gate.refuse_unmixed(_check_updates(round_input, config, previous), plan.min_sites, config.mixed)
    while True:
        accepted = _accepted(round_input, verdicts, previous)
        if len(accepted) < plan.needed:
            return RoundResult(verdicts, None)
        limits = limits_of(context, accepted)
        left = gate.refuse_unmixed(verdicts | limits.refused, plan.min_sites, config.mixed)
        if left == verdicts:
            break
        verdicts = left  # with fewer updates, other lengths are usual, and other sites may be content
    adapter = aggregate_adapters(context, accepted, limits, sink)
    return RoundResult(verdicts, _make_commit(context, accepted, verdicts, adapter, limits.clips))


def _accepted(round_input: RoundInput, verdicts: Mapping[str, Verdict], previous: TensorFile | None) -> dict[str, AcceptedUpdate]:
    candidates = {site: round_input.candidates[site] for site, verdict in verdicts.items() if verdict.accepted}
    opened = {
        site: open_update(open_tensors(one.source), round_input.plan, site, one.result.scales, previous) for site, one in candidates.items()
    }
    return {site: AcceptedUpdate(one.result, opened[site]) for site, one in candidates.items()}


def _check_updates(round_input: RoundInput, config: AggregationConfig, previous: TensorFile | None) -> dict[str, Verdict]:
    """The verdicts by site, in order of site."""

    def check(site: str) -> Verdict:
        candidate = round_input.candidates[site]
        expected = gate.Expected(
            plan=round_input.plan,
            site=site,
            max_norm=config.max_norm,
            previous=previous,
            squared_lengths=METHODS[config.method].squared_lengths,
        )
        return gate.check(candidate.result, candidate.source, expected)

    sites = sorted(round_input.candidates)
    verdicts = dict(zip(sites, ordered_parallel_map(check, sites, config.threads), strict=True))
    return dict(sorted((verdicts | dict(round_input.refused)).items()))


def _make_commit(
    context: RoundContext, accepted: Accepted, verdicts: Mapping[str, Verdict], adapter: GlobalAdapter, clips: ByTensor
) -> RoundCommit:
    plan, config = context.plan, context.config
    return RoundCommit(
        round=plan.round,
        method=config.method,
        rule=config.rule,
        adapter=adapter.artifact,
        ranks=adapter.ranks,
        head=plan.head,
        contributions=tuple(_contribution(update.result, plan, adapter, clips) for _, update in sorted(accepted.items())),
        refused={site: verdict for site, verdict in verdicts.items() if not verdict.accepted},
        truncated_energy=adapter.truncated_energy,
        learned=adapter.learned,
        learned_by={weight: sites for weight, sites in adapter.learned_by.items() if sites},
        optimizer=None if config.optimizer.is_plain else OptimizerState(optimizer=config.optimizer, second_moments=adapter.second_moments),
        bytes_read=sum(update.tensors.source.size for update in accepted.values()),
    )


def _contribution(result: AdmittedUpdate, plan: RoundPlan, adapter: GlobalAdapter, clips: ByTensor) -> Contribution:
    site = result.site
    factors = [of_sites[site] for of_sites in clips.values() if site in of_sites]
    return Contribution(
        site=site,
        attempt=result.attempt,
        sha256=result.adapter.sha256 if result.adapter else "",
        samples=samples_of(result, plan),
        trained_samples=result.samples,
        steps=result.steps,
        share=adapter.shares[site],
        clipped=len(factors),
        smallest_clip=min(factors, default=1.0),
        dropped_rows=result.dropped_rows,
        norm=adapter.alignments.norm(site),
        alignment=adapter.alignments.cosine(site),
        progress=adapter.progress.part(site),
        measured=measurement(result, plan.plans[site]),
    )
