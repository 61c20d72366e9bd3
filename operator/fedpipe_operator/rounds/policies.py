"""The policies of a run, one section for each field of the spec that decides something. Pure.

`sites.perRound` selects a round's sites · `sites.quorum` and `aggregation.rule` say how many updates a round needs · `rounds.target`
and `rounds.patience` end a run early · an attempt that ran out of memory is retried with a smaller micro-batch. The deadlines are in
`deadlines`.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from fedpipe_operator.api import LOWER_IS_BETTER, FineTuneSpec, Reason, Target, primary_metric
from fedpipe_operator.api.aggregation import AggregationSpec
from fedpipe_operator.rounds.evaluation import held_means, robust_mean
from fedpipe_operator.rounds.observed import Run
from fedpipe_operator.rounds.records import RoundPlan, SiteValues
from fedpipe_trainer.contract import FailureReason, Result, halved, perplexity_of

_STALL_ROUNDS: Final = 2
_STALL_SHARE: Final = 0.02

# --- sites.perRound


def select(candidates: Iterable[str], *, per_round: int | None, seed: str, round_: int) -> tuple[str, ...]:
    """The sites of a round: a seeded choice, sorted by name, independent of the order of the candidates.

    Each site's rank is a hash of seed, round and name, so a site that joins or leaves does not change the others' ranks.
    """
    ranked = sorted(candidates, key=lambda site: hashlib.sha256(f"{seed}/{round_}/{site}".encode()).hexdigest())
    return tuple(sorted(ranked if per_round is None else ranked[:per_round]))


# --- sites.quorum


def needed_updates(quorum: float, *, matched: int, per_round: int | None) -> int:
    """Updates that a round needs: the share `quorum` of the sites that the spec asks for, at least one.

    The share is of the sites that match the selector, not of those that turn out to be able to train: a fleet of which too many sites
    cannot hold the model fails with their reasons, instead of training on with the rest.
    """
    requested = matched if per_round is None else min(per_round, matched)
    # Rounded first: 0.8 * 5 must be 4 sites, and not 5 because of a rounding error.
    return max(1, math.ceil(round(quorum * requested, 9)))


# --- aggregation.rule


def with_planned_rule(spec: FineTuneSpec, plan: RoundPlan) -> FineTuneSpec:
    """The spec with the rule that the round was planned for: the spec may have been edited since."""
    if plan.rule is None:
        return spec
    planned = spec.aggregation.model_copy(update={"rule": plan.rule, "malicious_sites": plan.malicious_sites})
    return spec.model_copy(update={"aggregation": planned})


def missing_for_rule(aggregation: AggregationSpec, count: int) -> str:
    """Why so many updates are too few for the rule to withstand `maliciousSites`; empty if they are enough, or any one would be."""
    if count >= aggregation.least_updates or aggregation.least_updates == 1:
        return ""
    rule = f"aggregation.rule {aggregation.rule.value} with maliciousSites {aggregation.malicious_sites}"
    advice = "add sites, lower aggregation.maliciousSites, or set aggregation.rule to Median or Mean"
    return f"{rule} needs the updates of {aggregation.least_updates} sites, and {count} can send one: {advice}"


def needed_of(run: Run) -> int:
    """Updates that a round needs, for the quorum and for the rule."""
    quorum = needed_updates(run.spec.sites.quorum, matched=len(run.sites), per_round=run.spec.sites.per_round)
    return max(quorum, run.spec.aggregation.least_updates)


def out_of_reach(spec: FineTuneSpec, *, matched: int, count: int, message: str) -> tuple[Reason, str]:
    """What a round ends with whose needed updates cannot arrive.

    Args:
        spec: the run's.
        matched: the sites that match the selector.
        count: those of the round that can send an update.
        message: why the others cannot.
    """
    for_rule = missing_for_rule(spec.aggregation, count)
    has_quorum = count >= needed_updates(spec.sites.quorum, matched=matched, per_round=spec.sites.per_round)
    reason = Reason.RULE_OUT_OF_REACH if has_quorum and for_rule else Reason.QUORUM_OUT_OF_REACH
    return reason, "; ".join(filter(None, (message, for_rule)))


# --- rounds.target; as for patience and the best round, what fewer sites than the quorum measured of a metric decides nothing


class MetricValues(Protocol):
    """An evaluation of a round or of a site, or a summary of one."""

    @property
    def loss(self) -> float | None:
        """The loss; None if it was not reported."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The other metrics by name."""


class Metrics(MetricValues, Protocol):
    """The evaluation of a round by several sites, or its summary."""

    @property
    def needed(self) -> int:
        """Sites that must have measured a metric for it to decide anything."""

    def by_site(self, metric: str) -> SiteValues:
        """What each site measured of this metric."""


def metric_value(evaluation: MetricValues, metric: str) -> float | None:
    """The evaluation's value of this metric; None if it was not reported."""
    return evaluation.loss if metric == "loss" else evaluation.metrics.get(metric)


def robust_value(evaluation: Metrics, metric: str) -> float | None:
    """The evaluation's value of this metric as it decides something: one site of many does not (`evaluation.robust_mean`)."""
    values = _values_of(evaluation, metric)
    if not values.sites:
        return metric_value(evaluation, metric)
    mean = robust_mean(values)
    return perplexity_of(mean) if metric == "perplexity" else mean


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether `value` is strictly better than `than`."""
    return value < than if metric in LOWER_IS_BETTER else value > than


def has_quorum(evaluation: Metrics, metric: str) -> bool:
    """Whether as many sites measured this metric as its round needed updates."""
    return count_of(evaluation, metric) >= evaluation.needed


def count_of(evaluation: Metrics, metric: str) -> int:
    """How many sites measured this metric."""
    return len(_values_of(evaluation, metric).sites)


def _values_of(evaluation: Metrics, metric: str) -> SiteValues:
    """What each site measured of this metric, of a perplexity its logarithm, the loss."""
    return evaluation.by_site("loss" if metric == "perplexity" else metric)


def _counting(evaluations: Mapping[int, Metrics], metric: str) -> dict[int, Metrics]:
    """The evaluations whose value of this metric may decide something, by round, ascending."""
    return {at: one for at, one in sorted(evaluations.items()) if has_quorum(one, metric)}


def is_target_reached(target: Target | None, evaluation: Metrics) -> bool:
    """Whether this round's metric is at least as good as the target."""
    if target is None or not has_quorum(evaluation, target.metric):
        return False
    value = robust_value(evaluation, target.metric)
    return value is not None and not is_better(target.metric, target.value, value)


# --- rounds.patience


def best_round(evaluations: Mapping[int, Metrics], metric: str) -> int:
    """The round with the best metric, the earliest of equals; the last round if none has the metric of enough sites; 0 before round 1."""
    return min(_best_rounds(_comparable(evaluations, metric), metric), default=max(evaluations, default=0))


def exported_round(spec: FineTuneSpec, evaluations: Mapping[int, Metrics]) -> int:
    """The round whose global adapter is the run's result: the best by the run's metric, of equals the lowest loss; 0 before round 1.

    A metric of few samples, or near its best value, is the same in many rounds in which the model still learns.
    """
    metric = primary_metric(spec)
    best = _best_rounds(_comparable(evaluations, metric), metric)
    losses = _comparable(evaluations, "loss") if len(best) > 1 else {}
    return min(best, key=lambda round_: (losses.get(round_, math.inf), round_), default=max(evaluations, default=0))


def _best_rounds(values: Mapping[int, float], metric: str) -> list[int]:
    """The rounds with the best of these values."""
    best = (min if metric in LOWER_IS_BETTER else max)(values.values(), default=None)
    return [round_ for round_, value in values.items() if value == best]


def _comparable(evaluations: Mapping[int, Metrics], metric: str) -> dict[int, float]:
    """By round from 1 on, ascending: the value by which rounds are compared.

    Of rounds that other sites evaluated, means are compared in which each site has the last value that it measured (`held_means`).
    """
    counting = _counting(evaluations, metric)
    by_site = _by_site(counting, metric)
    if _are_alike(by_site):
        values = {at: value for at, one in counting.items() if (value := robust_value(one, metric)) is not None}
    else:
        values = dict(held_means(by_site, {site for one in by_site.values() for site in one.sites}))
    return {at: value for at, value in sorted(values.items()) if at > 0}


def _by_site(evaluations: Mapping[int, Metrics], metric: str) -> dict[int, SiteValues]:
    """What each site measured of this metric, by round, of the rounds in which any did."""
    return {at: values for at, one in sorted(evaluations.items()) if (values := _values_of(one, metric)).sites}


def _are_alike(by_site: Mapping[int, SiteValues]) -> bool:
    """Whether the same sites evaluated all of these rounds, so that their means are comparable."""
    return len({values.sites for values in by_site.values()}) <= 1


def _incomparable(by_site: Mapping[int, SiteValues]) -> list[int]:
    """The rounds of which no site had evaluated in an earlier one: nothing shows whether they are better."""
    seen, found = set[str](), list[int]()
    for round_, values in by_site.items():
        if seen and seen.isdisjoint(values.sites):
            found.append(round_)
        seen.update(values.sites)
    return found


def is_patience_exhausted(patience: int | None, evaluations: Mapping[int, Metrics], metric: str) -> bool:
    """Whether none of the last `patience` rounds was better than an earlier one; rounds that cannot be compared do not count."""
    if patience is None:
        return False
    best, counting = best_round(evaluations, metric), _counting(evaluations, metric)
    comparable = counting.keys() - _incomparable(_by_site(counting, metric))
    return sum(round_ > best for round_ in comparable) >= patience


# --- planning.depth


def is_stalled(evaluations: Mapping[int, Metrics]) -> bool:
    """Whether two rounds in a row, the last ones or earlier ones, lowered the loss by no more than 2 % of what all rounds until then had.

    Then sites train as many layers as they can, for the rest of the run: training only the top layers is fast at first and reaches less
    in the end (FedAdapter, arXiv 2205.10162, deepens in the same way), and a good round after that is no reason to go back. The loss
    decides, since other metrics are noisy: an accuracy that rose from 0.1 to 0.56 in three rounds stood still for two, while the loss fell.
    Where other sites evaluated, those of the last two rounds are compared with what the same sites measured before. Of earlier rounds
    nothing is said then: their plans tell whether the run had stalled.
    """
    counting = _counting(evaluations, "loss")
    by_site = _by_site(counting, "loss")
    if not _are_alike(by_site):
        return _did_evaluators_stall(by_site)
    losses = [value for one in counting.values() if (value := robust_value(one, "loss")) is not None]
    return any(_brought_little(losses[:end]) for end in range(_STALL_ROUNDS + 2, len(losses) + 1))


def _did_evaluators_stall(by_site: Mapping[int, SiteValues]) -> bool:
    """Whether the last two rounds are a stall at those of their sites that had evaluated before.

    At these sites only: others have no new value, and a small share of all sites evaluates a small share of the improvement.
    """
    rounds = sorted(by_site)
    last, before = ({site for at in some for site in by_site[at].sites} for some in (rounds[-_STALL_ROUNDS:], rounds[:-_STALL_ROUNDS]))
    sites = last & before
    is_known = len(rounds) >= _STALL_ROUNDS + 2 and bool(sites)
    return is_known and _brought_little(list(held_means(by_site, sites).values()))


def _brought_little(values: Sequence[float]) -> bool:
    """Whether the last two of these values, of which lower is better, are a stall; so are values that never improved."""
    before, best = min(values[:-_STALL_ROUNDS]), min(values)
    return before - best <= _STALL_SHARE * (values[0] - best)


# --- out-of-memory retry


def retry_micro_batch(micro_batch: int, out_of_memory: int) -> int | None:
    """The micro-batch after so many attempts that ran out of memory: the plan's, halved each time; None for the plan's itself.

    The plan, and so the mathematics of the step, stays the same.
    """
    return halved(micro_batch, out_of_memory) if out_of_memory else None


def smallest_pass(micro_batch: int, out_of_memory: int, results: Iterable[Result]) -> int:
    """Samples of the smallest pass that ran out of memory in so many attempts, with these results.

    A trainer that says so itself has halved its passes down to one sample; one that the kernel killed is retried with half as many.
    """
    is_told = any(one.failure is not None and one.failure.reason is FailureReason.OUT_OF_MEMORY for one in results)
    return 1 if is_told else halved(micro_batch, out_of_memory - 1)


def is_out_of_retries(micro_batch: int, out_of_memory: int) -> bool:
    """Whether the last of so many attempts that ran out of memory had a micro-batch of one sample: another would be the same again."""
    return out_of_memory > 0 and halved(micro_batch, out_of_memory - 1) == 1
