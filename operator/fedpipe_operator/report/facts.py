"""The content of the page, computed from a record: outcome, headline, rounds, sites, absent sites with the reason. Pure."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from fedpipe_operator.admission import AdmittedProfile, AdmittedUpdate
from fedpipe_operator.api import Condition, ConditionStatus, ConditionType, MetricName, PlanningMode, primary_metric
from fedpipe_operator.formatting import METRIC_TITLES, metric_text, percent, ranges_text
from fedpipe_operator.planning import forecast_text, rank_lines
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.report.tables import best_value
from fedpipe_operator.rounds.policies import metric_value
from fedpipe_operator.rounds.records import Comparison
from fedpipe_operator.sites import Efficiency, efficiency_of, granularity
from fedpipe_trainer.contract import Outcome, Plan, Sample

_SHOWN_SITES: Final = 3
"""For each weight."""
NO_UPDATE = "no update arrived before the round was aggregated"

PLANNING_SENTENCES: Final = {
    PlanningMode.AUTO: "Each site was profiled; its plan is the one with which it contributes most, so that all sites finish together.",
    PlanningMode.UNIFORM: "All sites have the same plan, which most of them can run; for comparison.",
    PlanningMode.UNIFORM_WEAKEST: "All sites have the same plan, which the weakest of them can run; for comparison.",
    PlanningMode.PROPORTIONAL: "All sites have the weakest one's plan, but as many steps as fit into the same time; for comparison.",
    PlanningMode.MANUAL: "The plans are those of the spec.",
}
"""What the plans of each mode are, in one sentence."""


@dataclass(frozen=True)
class RunOutcome:
    """The state of the run: a label, its tone (a colour on the page), and a message."""

    label: str
    tone: Literal["good", "bad", "open"]
    message: str = ""


@dataclass(frozen=True)
class RoundRow:
    """One committed round: seconds from its plan to its commit, bytes sent by its sites, the largest truncated energy of any weight."""

    round: int
    updates: int
    selected: int | None
    needed: int | None
    metric: float | None
    loss: float | None
    seconds: float | None
    uploaded: int
    truncated: float | None


@dataclass(frozen=True)
class SiteRow:
    """One site: its profile and its plan. Either may be missing."""

    site: str
    profile: AdmittedProfile | None
    plan: Plan | None
    rank_lines: tuple[str, ...] = ()
    """Which weights have which rank; empty without a plan."""
    dropped_rows: int = 0
    """Training and validation rows that it left out because the run does not have their label."""

    @property
    def forecast(self) -> str:
        """What the plan is predicted to need, in words; empty without a plan."""
        return forecast_text(self.plan) if self.plan else ""

    @property
    def ranks(self) -> str:
        """The range of the ranks of its adapters."""
        used = sorted({rank for rank in self.plan.ranks.values() if rank}) if self.plan else []
        return "none" if not used else f"{used[0]}" if used[0] == used[-1] else f"{used[0]} to {used[-1]}"

    @property
    def adapters(self) -> int:
        """The number of weights with an adapter."""
        return sum(rank > 0 for rank in self.plan.ranks.values()) if self.plan else 0

    @property
    def batch(self) -> str:
        """Samples per step, and in how many micro-batches they are computed if it takes more than one."""
        if self.plan is None:
            return ""
        micro_batches = math.ceil(self.plan.batch_size / self.plan.micro_batch)
        whole = f"{self.plan.batch_size}"
        return whole if micro_batches == 1 else f"{whole} ({micro_batches} × {self.plan.micro_batch})"

    @property
    def layers(self) -> str:
        """Which layers are trained, and how memory and time are saved."""
        if self.plan is None:
            return ""
        depth = f"{self.plan.lowest_layer} and up" if self.plan.lowest_layer else "all"
        saving = {"checkpointing": self.plan.gradient_checkpointing, "cached": self.plan.cache_activations}
        return ", ".join([depth, *(name for name, used in saving.items() if used)])


@dataclass(frozen=True)
class MeasuredRow:
    """What was measured at one site, beside what its plan needs. None: not measured."""

    site: str
    up: float | None
    """Bits per second to the store."""
    down: float | None
    memory_bandwidth: float | None
    """Bytes per second."""
    mfu: float | None
    tokens_per_joule: float | None
    energy_source: str
    """What counted the energy; empty: nothing did, or it is not known."""
    granularity: float | None
    """Of the measured bandwidth; see `sites.granularity`."""
    padding: float | None
    """The padded share of the tokens that its trainings computed, over all rounds."""


@dataclass(frozen=True)
class TrainingRow:
    """How well one site used what it has in its trainings: means over those that measured it, but for sums of bytes. None: none did."""

    site: str
    trainings: int
    tokens_per_second: float | None
    """Without padding."""
    padded_tokens_per_second: float | None
    """With it."""
    mfu: float | None
    tokens_per_joule: float | None
    energy_source: str
    """What counted the energy; empty: nothing did, or it is not known."""
    granularity: float | None
    """Seconds of the steps over those of the transfers."""
    bits_per_second: float | None
    """Of both directions, while the site transferred."""
    codecs: str
    """Tensors of the updates by the codec that they travelled with; empty without a codec."""
    update_cosine: float | None
    """Between what was trained and what arrived, with a codec."""
    uploaded: int
    """Bytes of all trainings."""
    downloaded: int


@dataclass(frozen=True)
class ContributionRow:
    """What one site contributed over the rounds that aggregated its updates."""

    site: str
    rounds: int
    steps: int
    """Optimiser steps in all these rounds."""
    share: float
    """Its weight p_k in the average over a round's updates, averaged over these rounds."""
    norm: float
    """Frobenius norm of its update, averaged over these rounds."""
    alignment: float | None
    """Mean cosine between its update and the aggregate, -1 to 1; None if no round measured it."""
    loss_change: float | None
    """First-order estimate of its part in the change of the validation loss, summed over these rounds; None if there is none."""
    loss: float | None
    """The validation loss after these rounds, on average; None as above."""
    loss_without: float | None
    """First-order estimate of the same if the site's update had been zero in each."""
    clipped: int
    """Increments of weights and head tensors that were shortened, over these rounds."""
    smallest_clip: float
    """The smallest factor by which one was; 1: none."""


@dataclass(frozen=True)
class LeftOut:
    """A site that did not take part in some rounds, or sent no result, with the reason."""

    site: str
    when: str
    reason: str


def metric_of(record: RunRecord) -> MetricName:
    """The run's primary metric."""
    return primary_metric(record.run.spec)


def outcome_of(record: RunRecord) -> RunOutcome:
    """From the run's conditions; without them, from its store."""
    if failed := _condition(record, ConditionType.FAILED):
        return RunOutcome("Failed", "bad", failed.message)
    if complete := _condition(record, ConditionType.COMPLETE):
        return RunOutcome("Complete", "good", complete.message)
    if record.export is not None:
        failure = record.export.failure
        return RunOutcome("Export failed", "bad", failure.message) if failure else RunOutcome("Complete", "good")
    label = "Suspended" if record.run.spec.suspend else "Unfinished"
    return RunOutcome(label, "open", f"{len(record.rounds)} of {record.run.spec.rounds.count} rounds are committed.")


def _condition(record: RunRecord, kind: ConditionType) -> Condition | None:
    conditions = record.run.status.conditions
    return next((found for found in conditions if found.type == kind and found.status is ConditionStatus.TRUE), None)


def headline(record: RunRecord) -> str:
    """The result in a sentence, with its figures, and which round it is of."""
    exported, rounds = record.result.round if record.result is not None else 0, sum(round_ > 0 for round_ in record.evaluations)
    which = f" Round {exported} is the best of {rounds} rounds: its adapter is the result." if exported and rounds > 1 else ""
    return _result(record) + which


def _result(record: RunRecord) -> str:
    if record.comparison is not None:
        return _comparison_headline(record.comparison, metric_of(record))
    metric = metric_of(record)
    if record.result is None:
        return "No round has been evaluated yet."
    base = record.evaluations.get(0)
    before = f", against {metric_text(metric, metric_value(base, metric))} for the base model" if base else ""
    value = metric_text(metric, metric_value(record.result, metric))
    return f"After round {record.result.round} the federated model has {METRIC_TITLES[metric]} {value}{before}."


def _comparison_headline(comparison: Comparison, metric: MetricName) -> str:
    baselines = {site: metric_value(evaluation, metric) for site, evaluation in comparison.local_only.items()}
    best = best_value(metric, baselines.values())
    site = next((site for site, value in baselines.items() if value is not None and value == best), None)
    best_baseline = f"{metric_text(metric, best)} for the best local-only baseline ({site}) and " if site is not None else ""
    federated, base = (metric_text(metric, metric_value(evaluation, metric)) for evaluation in (comparison.federated, comparison.base))
    return f"The federated model has {METRIC_TITLES[metric]} {federated}, against {best_baseline}{base} for the base model."


def round_rows(record: RunRecord) -> list[RoundRow]:
    """The committed rounds in order."""
    return [_round_row(record, round_) for round_ in sorted(record.rounds)]


def _round_row(record: RunRecord, round_: int) -> RoundRow:
    commit, plan, evaluation = record.rounds[round_], record.plans.get(round_), record.evaluations.get(round_)
    return RoundRow(
        round=round_,
        updates=len(commit.contributions),
        selected=len(plan.selected) if plan else None,
        needed=plan.needed if plan else None,
        metric=metric_value(evaluation, metric_of(record)) if evaluation else None,
        loss=evaluation.loss if evaluation else None,
        seconds=commit.finished_at - plan.started_at if plan and commit.finished_at else None,
        uploaded=sum(update.measured.uploaded_bytes for update in record.updates.get(round_, {}).values()),
        truncated=max(commit.truncated_energy.values(), default=None),
    )


def total_seconds(record: RunRecord) -> float | None:
    """The sum of the known seconds of the rounds; None when none is known."""
    known = [row.seconds for row in round_rows(record) if row.seconds is not None]
    return sum(known) if known else None


def site_rows(record: RunRecord) -> list[SiteRow]:
    """Every site, with its profile and its newest plan."""
    newest = record.newest_plan
    lines = {site: rank_lines(plan.ranks, newest.importance) for site, plan in newest.plans.items()} if newest else {}
    plans = newest.plans if newest else {}
    return [
        SiteRow(site, record.profiles.get(site), plans.get(site), lines.get(site, ()), _dropped_rows(record, site)) for site in record.sites
    ]


def _dropped_rows(record: RunRecord, site: str) -> int:
    """Of its last update and its last evaluation."""
    trained = [one.dropped_rows for _, commit in sorted(record.rounds.items()) for one in commit.contributions if one.site == site]
    evaluated = [one.sites[site].dropped_rows for _, one in sorted(record.evaluations.items()) if site in one.sites]
    return sum(counts[-1] for counts in (trained, evaluated) if counts)


def measured_rows(record: RunRecord) -> list[MeasuredRow]:
    """Every site with a completed profile."""
    profiles = {site: one for site in record.sites if (one := record.profiles.get(site)) and one.outcome is Outcome.COMPLETED}
    return [
        MeasuredRow(
            site,
            one.up_bits_per_second,
            one.down_bits_per_second,
            one.memory_bytes_per_second,
            one.mfu,
            one.tokens_per_joule,
            one.energy_source or "",
            _granularity(one),
            _padding(record, site),
        )
        for site, one in profiles.items()
    ]


def training_rows(record: RunRecord) -> list[TrainingRow]:
    """Every site with a completed training."""
    updates = {site: [results[site] for results in record.updates.values() if site in results] for site in record.sites}
    completed = {site: [one for one in found if one.outcome is Outcome.COMPLETED] for site, found in updates.items()}
    return [_training_row(site, found) for site, found in completed.items() if found]


def _training_row(site: str, updates: list[AdmittedUpdate]) -> TrainingRow:
    found = [efficiency_of(update) for update in updates]

    def mean(name: str) -> float | None:
        return _mean([value for one in found if (value := getattr(one, name)) is not None])

    return TrainingRow(
        site=site,
        trainings=len(updates),
        tokens_per_second=mean("tokens_per_second"),
        padded_tokens_per_second=mean("padded_tokens_per_second"),
        mfu=mean("mfu"),
        tokens_per_joule=mean("tokens_per_joule"),
        energy_source=", ".join(sorted({one.energy_source for one in found if one.energy_source})),
        granularity=mean("granularity"),
        bits_per_second=mean("bits_per_second"),
        codecs=", ".join(f"{count} {name}" for name, count in sorted(_codecs(found).items())),
        update_cosine=mean("update_cosine"),
        uploaded=sum(update.measured.uploaded_bytes for update in updates),
        downloaded=sum(update.measured.downloaded_bytes for update in updates),
    )


def _codecs(found: list[Efficiency]) -> Counter[str]:
    """Tensors by codec."""
    return sum((Counter(one.codecs) for one in found), Counter())


def _granularity(profile: AdmittedProfile) -> float | None:
    up, down = profile.up_bits_per_second, profile.down_bits_per_second
    return granularity(profile, up=up, down=down) if up and down else None


def _padding(record: RunRecord, site: str) -> float | None:
    updates = [results[site] for results in record.updates.values() if site in results]
    padded = sum(update.padded_tokens for update in updates)
    computed = padded + sum(update.tokens for update in updates)
    return padded / computed if computed else None


def contribution_rows(record: RunRecord) -> list[ContributionRow]:
    """Every site with an aggregated update."""
    rows = []
    for site in record.sites:
        parts = [part for commit in record.rounds.values() for part in commit.contributions if part.site == site]
        alignments = [part.alignment for part in parts if part.alignment is not None]
        if parts:
            share, norm = fmean(part.share for part in parts), fmean(part.norm for part in parts)
            steps, estimates = sum(part.steps for part in parts), _loss_figures(record, site)
            clips = sum(part.clipped for part in parts), min(part.smallest_clip for part in parts)
            rows.append(ContributionRow(site, len(parts), steps, share, norm, _mean(alignments), *estimates, *clips))
    return rows


def _loss_figures(record: RunRecord, site: str) -> tuple[float | None, float | None, float | None]:
    """The site's part in the change of the loss, the mean loss of its rounds, and the same without its updates.

    The last is made from the changes, because earlier versions meant something else by the loss without a site.
    """
    rounds = (one for one in record.evaluations.values() if site in one.first_order_estimates)
    figures = [(one.first_order_estimates[site].change, one.loss) for one in rounds if one.loss is not None]
    if not figures:
        return None, None, None
    without = fmean(max(0.0, loss - change) for change, loss in figures)
    return sum(change for change, _ in figures), fmean(loss for _, loss in figures), without


def learned(record: RunRecord) -> dict[str, float]:
    """By weight, the sum over the rounds of the norm of what the federation learned there."""
    commits = record.rounds.values()
    return {weight: sum(commit.learned.get(weight, 0.0) for commit in commits) for commit in commits for weight in commit.learned}


def learned_by(record: RunRecord) -> dict[str, str]:
    """By weight, the sites that moved it most, in words: their shares of each round's change, weighted by its norm, over all rounds.

    Each round names its three sites with the largest shares. Empty for commits of earlier versions, which name none.
    """
    parts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    norms: dict[str, float] = defaultdict(float)
    for commit in record.rounds.values():
        for weight, shares in commit.learned_by.items():
            norms[weight] += commit.learned.get(weight, 0.0)
            for site, share in shares.items():
                parts[weight][site] += share * commit.learned.get(weight, 0.0)
    return {weight: _largest_shares(sites, norms[weight]) for weight, sites in parts.items() if norms[weight] > 0}


def _largest_shares(parts: Mapping[str, float], whole: float) -> str:
    """`clinic 61.0 %, ward 30.2 %`, of the largest parts."""
    largest = sorted(parts, key=lambda site: (-parts[site], site))[:_SHOWN_SITES]
    return ", ".join(f"{site} {percent(parts[site] / whole)}" for site in largest)


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def left_out(record: RunRecord) -> list[LeftOut]:
    """Every absence of a site; the rounds with the same reason are one row."""
    rounds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for phase, site, round_, reason in _absences(record):
        rounds[site, phase, reason].append(round_)
    return [
        LeftOut(site, f"{phase} of round{'s' if len(set(when)) > 1 else ''} {ranges_text(when)}", reason)
        for (site, phase, reason), when in sorted(rounds.items())
    ]


def _absences(record: RunRecord) -> Iterator[tuple[str, str, int, str]]:
    """The phase that the site missed, the site, the round, the reason."""
    for round_, plan in record.plans.items():
        yield from (("planning", site, round_, reason) for site, reason in plan.excluded.items())
    for round_ in record.rounds:
        yield from (("training", site, round_, reason) for site, reason in _without_update(record, round_).items())
    for round_, evaluation in record.evaluations.items():
        yield from (("evaluation", site, round_, reason) for site, reason in evaluation.missing.items())


def _without_update(record: RunRecord, round_: int) -> dict[str, str]:
    """By selected site whose update is not in this committed round: the reason, from the commit, the run's status, or the site's result."""
    commit, plan = record.rounds[round_], record.plans.get(round_)
    contributed = {update.site for update in commit.contributions}
    reported = next((row.left_out for row in record.run.status.history if row.round == round_), {})
    reasons = dict.fromkeys(plan.selected if plan else (), NO_UPDATE)
    for site, update in record.updates.get(round_, {}).items():
        if update.failure is not None:
            reasons[site] = f"{update.failure.reason}: {update.failure.message}"
    refused = {site: f"refused, {verdict.reason}: {verdict.message}" for site, verdict in commit.refused.items()}
    unselected = {
        one.site: f"NotSelected: aggregation.rule {commit.rule} left the update out" for one in commit.contributions if one.share == 0
    }
    return {site: reason for site, reason in (reasons | reported | refused).items() if site not in contributed} | unselected


def shown_samples(record: RunRecord) -> list[tuple[str, Sample]]:
    """The sample documents by site, with the answers of the exported round; none before round 1."""
    results = record.site_evaluations.get(record.result.round, {}) if record.result else {}
    return [(site, sample) for site, result in sorted(results.items()) for sample in result.examples]


def train_samples(record: RunRecord) -> dict[str, int]:
    """Training samples by site, from its profile."""
    completed = {site: profile for site, profile in record.profiles.items() if profile.outcome is Outcome.COMPLETED}
    return {site: profile.train_samples for site, profile in completed.items()}
