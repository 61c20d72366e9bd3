"""One round's aggregation from end to end: gate every update, merge the accepted ones weight by weight, say what was done.

Pure: readers and a writer are arguments, and so is everything else. A thread holds one weight of all sites at a time. What is written
depends on the set of updates only, not on their order, nor on the number of threads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from fedpipe_operator.aggregation import gate
from fedpipe_operator.aggregation.dense import average
from fedpipe_operator.aggregation.keys import factor_keys
from fedpipe_operator.aggregation.methods import METHODS
from fedpipe_operator.aggregation.parallel import ordered_parallel_map
from fedpipe_operator.aggregation.tensors import Sink, Source, TensorFile, TensorWriter, open_tensors
from fedpipe_operator.aggregation.values import Factors, Merged, Method, Outline, Part, Share
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundPlan, Verdict
from fedpipe_trainer.contract import Artifact, RunRef, TrainResult

MAX_NORM: Final = 1e4
"""Default bound on an update's increment (Frobenius norm over all its tensors); a 7B base itself has a norm of some thousands."""
ADAPTER_NAME: Final = "adapter.safetensors"


@dataclass(frozen=True)
class Candidate:
    """A site's update as it lies in the store: the attempt it is filed under, its result, its adapter's bytes."""

    attempt: int
    result: TrainResult
    source: Source


@dataclass(frozen=True)
class RoundInput:
    """What a round's aggregation is made from. `previous` is the global adapter that the round started from; None in round 1."""

    run: RunRef
    plan: RoundPlan
    candidates: Mapping[str, Candidate]
    """By site."""
    previous: Source | None = None


@dataclass(frozen=True)
class Rule:
    """How updates are judged and merged."""

    method: str
    """A key of `METHODS`."""
    max_rank: int
    """Components of the global adapter per weight, at most."""
    max_norm: float = MAX_NORM
    """Bound on an update's increment: see `gate.Expected`."""
    threads: int = 1
    """Updates judged, and weights merged, at a time; what is written does not depend on it."""


@dataclass(frozen=True)
class RoundResult:
    """The gate's verdict on every candidate, and the round's commit; None if too few were accepted (nothing is written then)."""

    verdicts: dict[str, Verdict]
    commit: RoundCommit | None


@dataclass(frozen=True)
class Accepted:
    """An update that passed the gate."""

    result: TrainResult
    tensors: TensorFile


@dataclass(frozen=True)
class Written:
    """The new global adapter: its bytes, the rank of each weight (0: no factors), and what the cut to rank lost."""

    adapter: Artifact
    ranks: dict[str, int]
    truncated_energy: dict[str, float]


def aggregate_round(given: RoundInput, rule: Rule, sink: Sink) -> RoundResult:
    """Gate the candidates, and if at least `plan.needed` pass, write the new global adapter to `sink`.

    The result's `seconds` is left at 0: the caller has the clock.

    Raises:
        CannotAggregateError: the method cannot take these updates (nothing was written).
        MalformedError: the previous global adapter is no safetensors file.
        OSError: a source or the sink failed.
    """
    before = open_tensors(given.previous) if given.previous else None
    sites = sorted(given.candidates)
    verdicts = dict(zip(sites, ordered_parallel_map(lambda site: _judged(site, given, rule, before), sites, rule.threads), strict=True))
    accepted = {
        site: Accepted(given.candidates[site].result, open_tensors(given.candidates[site].source))
        for site, verdict in verdicts.items()
        if verdict.accepted
    }
    if len(accepted) < given.plan.needed:
        return RoundResult(verdicts, None)
    written = merge_adapters(given.plan, rule, accepted, before=before, sink=sink)
    return RoundResult(verdicts, _round_commit(plan=given.plan, rule=rule, accepted=accepted, verdicts=verdicts, written=written))


def merge_adapters(plan: RoundPlan, rule: Rule, accepted: Mapping[str, Accepted], *, before: TensorFile | None, sink: Sink) -> Written:
    """Write the new global adapter to `sink`: head tensors averaged, then each weight's factors merged, each in order of name.

    A weight that nobody trained keeps its global factors. Raises as `aggregate_round` does.
    """
    method, sites = METHODS[rule.method], dict(sorted(accepted.items()))
    outlines = [_outline(weight, plan, sites, before) for weight in sorted(plan.weights)]
    ranks = {outline.weight: method.rank(outline, rule.max_rank) if outline.shares else outline.global_rank for outline in outlines}
    writer = TensorWriter(sink, _shapes(plan, ranks))
    for key in sorted(plan.head):
        writer.write(key, average((site.result.samples, site.tensors.read(key)) for site in sites.values()))
    truncated = {}
    adapted = [outline for outline in outlines if ranks[outline.weight]]
    merges = ordered_parallel_map(lambda outline: _merged(outline, method, ranks[outline.weight], sites, before), adapted, rule.threads)
    for outline, merged in zip(adapted, merges, strict=True):
        for key, factor in zip(factor_keys(outline.weight), (merged.factors.a, merged.factors.b), strict=True):
            writer.write(key, factor)
        truncated[outline.weight] = merged.truncated_energy
    return Written(writer.close(ADAPTER_NAME), ranks, truncated)


def _judged(site: str, given: RoundInput, rule: Rule, before: TensorFile | None) -> Verdict:
    candidate = given.candidates[site]
    expected = gate.Expected(run=given.run, plan=given.plan, site=site, attempt=candidate.attempt, max_norm=rule.max_norm, previous=before)
    return gate.check(candidate.result, candidate.source, expected)


def _outline(weight: str, plan: RoundPlan, sites: Mapping[str, Accepted], before: TensorFile | None) -> Outline:
    d_out, d_in = plan.weights[weight]
    shares = tuple(
        Share(site=name, samples=site.result.samples, rank=rank)
        for name, site in sites.items()
        if (rank := site.result.ranks.get(weight, 0))
    )
    held = before.entries.get(factor_keys(weight)[0]) if before else None
    return Outline(weight=weight, d_out=d_out, d_in=d_in, shares=shares, global_rank=held.shape[0] if held else 0)


def _shapes(plan: RoundPlan, ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    shapes = {key: plan.head[key] for key in sorted(plan.head)}
    for weight, rank in ranks.items():
        d_out, d_in = plan.weights[weight]
        if rank:
            shapes |= dict(zip(factor_keys(weight), ((rank, d_in), (d_out, rank)), strict=True))
    return shapes


def _merged(outline: Outline, method: Method, rank: int, sites: Mapping[str, Accepted], before: TensorFile | None) -> Merged:
    held = _factors(before, outline.weight) if before and outline.global_rank else None
    if held and not outline.shares:
        return Merged(held)
    parts = [partial(_part, outline, share, sites[share.site]) for share in outline.shares]
    return method.merge(outline, parts, held, rank)


def _part(outline: Outline, share: Share, site: Accepted) -> Part:
    return Part(share.samples, site.result.scales[outline.weight], _factors(site.tensors, outline.weight))


def _factors(tensors: TensorFile, weight: str) -> Factors:
    a, b = (tensors.read(key) for key in factor_keys(weight))
    return Factors(b=b, a=a)


def _round_commit(
    *, plan: RoundPlan, rule: Rule, accepted: Mapping[str, Accepted], verdicts: Mapping[str, Verdict], written: Written
) -> RoundCommit:
    total = sum(site.result.samples for site in accepted.values())
    return RoundCommit(
        round=plan.round,
        method=rule.method,
        adapter=written.adapter,
        ranks=written.ranks,
        head=plan.head,
        contributions=tuple(_contribution(name, site.result, total) for name, site in sorted(accepted.items())),
        refused={site: verdict for site, verdict in verdicts.items() if not verdict.accepted},
        truncated_energy=written.truncated_energy,
        bytes_read=sum(site.tensors.source.size for site in accepted.values()),
    )


def _contribution(site: str, result: TrainResult, total: int) -> Contribution:
    sha256 = result.adapter.sha256 if result.adapter else ""
    return Contribution(site=site, attempt=result.attempt, sha256=sha256, samples=result.samples, share=result.samples / total)
