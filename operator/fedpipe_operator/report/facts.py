"""What a record says, in the words and rows of the page: outcome, headline, rounds, sites, who was left out and why. Pure."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedpipe_operator.api import Condition, ConditionStatus, ConditionType, MetricName, primary_metric
from fedpipe_operator.report.closing import best_value
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.rounds.policies import metric_value
from fedpipe_operator.rounds.records import Comparison
from fedpipe_operator.units import TITLES, metric_text, spans
from fedpipe_trainer.contract import Outcome, Plan, ProfileResult, Sample

NO_UPDATE = "no update came before the round went on"


@dataclass(frozen=True)
class Ending:
    """How the run stands: a word, its tone (a colour on the page), and a sentence."""

    word: str
    tone: Literal["good", "bad", "open"]
    sentence: str = ""


@dataclass(frozen=True)
class RoundRow:
    """One committed round. Seconds from its plan to its evaluation, bytes as its sites sent them, energy as the largest of any weight."""

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
    """One site: what was measured there and what was planned for it. Either may be missing."""

    site: str
    profile: ProfileResult | None
    plan: Plan | None

    @property
    def ranks(self) -> str:
        """The ranks of the adapters in use, as a span."""
        used = sorted({rank for rank in self.plan.ranks.values() if rank}) if self.plan else []
        return "none" if not used else f"{used[0]}" if used[0] == used[-1] else f"{used[0]} to {used[-1]}"

    @property
    def adapters(self) -> int:
        """Weights with an adapter."""
        return sum(rank > 0 for rank in self.plan.ranks.values()) if self.plan else 0


@dataclass(frozen=True)
class LeftOut:
    """A site that did not take part in some rounds, or did not report, and why."""

    site: str
    when: str
    reason: str


def metric_of(record: RunRecord) -> MetricName:
    """The metric the run is judged by."""
    return primary_metric(record.run.spec)


def ending(record: RunRecord) -> Ending:
    """As the run's own conditions say, else as its store shows."""
    if failed := _condition(record, ConditionType.FAILED):
        return Ending("Failed", "bad", failed.message)
    if complete := _condition(record, ConditionType.COMPLETE):
        return Ending("Complete", "good", complete.message)
    if record.export is not None:
        failure = record.export.failure
        return Ending("Export failed", "bad", failure.message) if failure else Ending("Complete", "good")
    word = "Suspended" if record.run.spec.suspend else "Unfinished"
    return Ending(word, "open", f"{len(record.rounds)} of {record.run.spec.rounds.count} rounds are committed.")


def _condition(record: RunRecord, kind: ConditionType) -> Condition | None:
    conditions = record.run.status.conditions
    return next((found for found in conditions if found.type == kind and found.status is ConditionStatus.TRUE), None)


def headline(record: RunRecord) -> str:
    """The result in a sentence or two, with nothing but the numbers."""
    if record.comparison is not None:
        return _worth(record.comparison, metric_of(record))
    metric = metric_of(record)
    if record.result is None:
        return "No round has been evaluated yet."
    base = record.evaluations.get(0)
    before = f", against {metric_text(metric, metric_value(base, metric))} for the untouched base model" if base else ""
    value = metric_text(metric, metric_value(record.result, metric))
    return f"After round {record.result.round} the federated model has {TITLES[metric]} {value}{before}."


def _worth(comparison: Comparison, metric: MetricName) -> str:
    alone = {site: metric_value(evaluation, metric) for site, evaluation in comparison.alone.items()}
    best = best_value(metric, alone.values())
    site = next((site for site, value in alone.items() if value is not None and value == best), None)
    rival = f"{metric_text(metric, best)} for the best site alone ({site}) and " if site is not None else ""
    federated, base = (metric_text(metric, metric_value(it, metric)) for it in (comparison.federated, comparison.base))
    return f"The federated model has {TITLES[metric]} {federated}, against {rival}{base} for the untouched base model."


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
        seconds=evaluation.finished_at - plan.started_at if evaluation and plan else None,
        uploaded=sum(update.measured.uploaded_bytes for update in record.updates.get(round_, {}).values()),
        truncated=max(commit.truncated_energy.values(), default=None),
    )


def total_seconds(record: RunRecord) -> float | None:
    """The rounds' seconds together, as far as they are known; None when none is."""
    known = [row.seconds for row in round_rows(record) if row.seconds is not None]
    return sum(known) if known else None


def site_rows(record: RunRecord) -> list[SiteRow]:
    """Every site, with its profile and its newest plan."""
    plans = record.newest_plan.plans if record.newest_plan else {}
    return [SiteRow(site, record.profiles.get(site), plans.get(site)) for site in record.sites]


def left_out(record: RunRecord) -> list[LeftOut]:
    """Every site, round and reason, rounds of one reason together."""
    rounds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for what, site, round_, reason in _absences(record):
        rounds[site, what, reason].append(round_)
    return [
        LeftOut(site, f"{what} of round{'s' if len(set(when)) > 1 else ''} {spans(when)}", reason)
        for (site, what, reason), when in sorted(rounds.items())
    ]


def _absences(record: RunRecord) -> Iterator[tuple[str, str, int, str]]:
    """What the site missed, the site, the round, the reason."""
    for round_, plan in record.plans.items():
        yield from (("planning", site, round_, reason) for site, reason in plan.excluded.items())
    for round_ in record.rounds:
        yield from (("training", site, round_, reason) for site, reason in _without_update(record, round_).items())
    for round_, evaluation in record.evaluations.items():
        yield from (("evaluation", site, round_, reason) for site, reason in evaluation.missing.items())


def _without_update(record: RunRecord, round_: int) -> dict[str, str]:
    """The selected sites that did not contribute to this committed round: as the commit, the run's status, or the site itself says."""
    commit, plan = record.rounds[round_], record.plans.get(round_)
    contributed = {part.site for part in commit.contributions}
    told = next((row.left_out for row in record.run.status.history if row.round == round_), {})
    reasons = dict.fromkeys(plan.selected if plan else (), NO_UPDATE)
    for site, update in record.updates.get(round_, {}).items():
        if update.failure is not None:
            reasons[site] = f"{update.failure.reason}: {update.failure.message}"
    refused = {site: f"refused, {verdict.reason}: {verdict.message}" for site, verdict in commit.refused.items()}
    return {site: reason for site, reason in (reasons | told | refused).items() if site not in contributed}


def shown_samples(record: RunRecord) -> list[tuple[str, Sample]]:
    """The documents sites were asked to show, with the site, as the exported round answered them; none before round 1."""
    results = record.site_evaluations.get(record.result.round, {}) if record.result else {}
    return [(site, sample) for site, result in sorted(results.items()) for sample in result.examples]


def train_samples(record: RunRecord) -> dict[str, int]:
    """Training samples by site, as profiled."""
    done = {site: profile for site, profile in record.profiles.items() if profile.outcome is Outcome.COMPLETED}
    return {site: profile.train_samples for site, profile in done.items()}
