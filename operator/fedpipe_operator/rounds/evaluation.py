"""The federated evaluation: the sites' results on their own validation data as aggregated (weighted) metrics.

Their mean depends on who evaluates. With `sites.perRound`, or when an evaluator is missing, the sites change from round to round, and
`held_means` makes the rounds comparable.
"""

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from fractions import Fraction
from statistics import median
from typing import Final, NamedTuple

from fedpipe_operator.admission import AdmittedEvaluation
from fedpipe_operator.rounds.records import RoundEvaluation, SiteEvaluation, SiteValues
from fedpipe_operator.shares import bounded_shares
from fedpipe_trainer.contract import perplexity_of

_ENOUGH: Final = 3
"""Sites of which one can be told from the others."""
_NORMAL: Final = 1.4826
"""Standard deviation of a normal distribution, in median distances from its median."""
_DEVIATIONS: Final = 3.0
_LEAST_DEVIATION: Final = 0.05
_MOST_TARGETS: Final = 3
"""Targets of a sample of one site that count, in medians over the sites. The admission lets a site state as many as a sample has tokens."""


class SiteBounds(NamedTuple):
    """On how much a site counts in what a run reports, as its spec says."""

    max_samples: int
    """`evaluation.maxSamples`: it is not asked to evaluate more."""
    max_site_weight: float | None = None
    """`aggregation.maxSiteWeight`."""


def aggregate_metrics(
    round_: int, results: Mapping[str, AdmittedEvaluation], missing: Mapping[str, str], *, bounds: SiteBounds, now: float
) -> RoundEvaluation:
    """One evaluation from the sites' own, which a site moves by its bounded share at most, whatever it says of its data.

    The loss is a mean over targets (tokens or labels) and is weighted by them; perplexity is its exponential. Other metrics are
    weighted by samples: that is exact for accuracy and slot errors per prompt, and only a mean of the sites' values for metrics of a
    whole set (macro-F1, BLEU).

    A site counts with `maxSamples`, and of three or more with three times the median of targets per sample, at most; its share in each
    figure is bounded as that in a round is (`shares.bounded_shares`). So a site that honestly has more than half of all samples or targets
    counts for half: nothing tells it from one that only says so. Where no bound is exceeded, each counts exactly as it says.

    Args:
        round_: of the adapter; 0 is the base.
        results: of the sites that evaluated.
        missing: the others, with the reason.
        bounds: on what a site counts.
        now: Unix seconds.
    """
    measured = RoundEvaluation(round=round_, finished_at=now, sites=_sites(results, bounds.max_samples), missing=dict(missing))
    names = {"loss"}.union(*(site.metrics for site in measured.sites.values()))
    by_metric = {name: values for name in sorted(names) if (values := measured.by_site(name)).sites}
    metrics = {name: _mean(values, bounds.max_site_weight) for name, values in by_metric.items()}
    loss = metrics.pop("loss", None)
    if "perplexity" in metrics and loss is not None:
        metrics["perplexity"] = perplexity_of(loss)
    return measured.model_copy(update={"loss": loss, "metrics": metrics})


def held_means(rounds: Mapping[int, SiteValues], sites: AbstractSet[str]) -> dict[int, float]:
    """The robust mean over these sites by round, in ascending order, where a site's last value counts until it evaluates again.

    Before its first evaluation a site has the value of that one. So a round changes the mean by what its evaluators have gained or lost
    since they evaluated last, and a round by easier sites is not better for that. What other sites would have measured shows when they
    evaluate: with few sites a round, a turn for the worse is seen late.

    Args:
        rounds: what each site's evaluation gave, by round.
        sites: those that count, at least one; each has evaluated in one of the rounds.
    """
    held: dict[str, tuple[float, int]] = {}

    def hold(round_: int) -> None:
        for site, value, weight in zip(*rounds[round_], strict=True):
            if site in sites:
                held[site] = value, weight

    for round_ in sorted(rounds, reverse=True):
        hold(round_)
    means = {}
    for round_ in sorted(rounds):
        hold(round_)
        means[round_] = robust_mean(SiteValues(tuple(held), *zip(*held.values(), strict=True)))
    return means


def robust_mean(values: SiteValues) -> float:
    """The mean over at least one site by which a round is judged.

    Of three sites or more, none has more than half of the weight, or counts with a value more than three deviations from the middle of all.
    A site that reports what it likes moves the mean of honest sites by its weight and their own spread, and no further. The deviation is
    the median distance from the median, scaled to that of a normal distribution (Hampel 1974), or 5 % of the median if that is more: sites
    that nearly agree would be cut for nothing.
    """
    found, reach = values.values, math.inf
    middle = median(found)
    if len(found) >= _ENOUGH:
        deviation = max(_NORMAL * median(abs(value - middle) for value in found), _LEAST_DEVIATION * abs(middle))
        reach = _DEVIATIONS * deviation
    return _mean(values._replace(values=tuple(min(max(value, middle - reach), middle + reach) for value in found)), None)


def _sites(results: Mapping[str, AdmittedEvaluation], max_samples: int) -> dict[str, SiteEvaluation]:
    """What is stored of the results, and counts, by site."""
    most_targets = _most_targets(results.values())
    return {site: _site(result, max_samples, most_targets) for site, result in sorted(results.items())}


def _most_targets(results: Iterable[AdmittedEvaluation]) -> Fraction | None:
    """Targets per sample that count, at most. None: fewer than three sites have any, and a median would tell nobody from the others."""
    rates = [Fraction(one.targets, one.samples) for one in results if one.samples > 0 and one.targets > 0]
    return _MOST_TARGETS * median(rates) if len(rates) >= _ENOUGH else None


def _site(result: AdmittedEvaluation, max_samples: int, most_targets: Fraction | None) -> SiteEvaluation:
    samples = min(result.samples, max_samples)
    targets = result.targets * samples // max(1, result.samples)
    if most_targets is not None:
        # Rounded up: a site of few samples with a target among them would count for nothing.
        targets = min(targets, math.ceil(most_targets * samples))
    return SiteEvaluation(
        samples=samples, targets=targets, loss=result.loss, metrics=dict(result.metrics), dropped_rows=result.dropped_rows
    )


def _mean(values: SiteValues, max_site_weight: float | None) -> float:
    """The mean over at least one site by bounded shares. Values are multiplied by these, so that even the largest have a finite mean."""
    shares = bounded_shares(values.weights, max_site_weight)
    return math.fsum(value * share for value, share in zip(values.values, shares, strict=True))
