"""The federated evaluation: the sites' results on their own validation data as aggregated (weighted) metrics.

Their mean depends on who evaluates. With `sites.perRound`, or when an evaluator is missing, the sites change from round to round, and
`held_means` makes the rounds comparable.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from statistics import median
from typing import Final

from fedpipe_operator.admission import AdmittedEvaluation
from fedpipe_operator.rounds.records import RoundEvaluation, SiteEvaluation, SiteValues
from fedpipe_operator.shares import capped, max_share
from fedpipe_trainer.contract import perplexity_of

_ENOUGH: Final = 3
"""Sites of which one can be told from the others."""
_NORMAL: Final = 1.4826
"""Standard deviation of a normal distribution, in median distances from its median."""
_DEVIATIONS: Final = 3.0
_LEAST_DEVIATION: Final = 0.05


def aggregate_metrics(
    round_: int, results: Mapping[str, AdmittedEvaluation], missing: Mapping[str, str], *, most_samples: int, now: float
) -> RoundEvaluation:
    """One evaluation from the sites' own, of which none counts for more than `most_samples`, whatever it says.

    The loss is a mean over targets (tokens or labels) and is weighted by them; perplexity is its exponential. Other metrics are
    weighted by samples: that is exact for accuracy and slot errors per prompt, and only a mean of the sites' values for metrics of a
    whole set (macro-F1, BLEU).
    """
    sites = {site: _site(result, most_samples) for site, result in sorted(results.items())}
    loss = _mean((site.loss, site.targets) for site in sites.values())
    names = sorted({name for site in sites.values() for name in site.metrics})
    metrics = {name: _mean((site.metrics.get(name), site.samples) for site in sites.values()) for name in names}
    if "perplexity" in metrics and loss is not None:
        metrics["perplexity"] = perplexity_of(loss)
    return RoundEvaluation(
        round=round_,
        finished_at=now,
        loss=loss,
        metrics={name: value for name, value in metrics.items() if value is not None},
        sites=sites,
        missing=dict(missing),
    )


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
    shares = capped([weight / sum(values.weights) for weight in values.weights], max_share(len(found), None))
    return math.fsum(min(max(value, middle - reach), middle + reach) * share for value, share in zip(found, shares, strict=True))


def _site(result: AdmittedEvaluation, most_samples: int) -> SiteEvaluation:
    """What is stored of a result, and counts."""
    samples = min(result.samples, most_samples)
    targets = result.targets * samples // max(1, result.samples)
    return SiteEvaluation(
        samples=samples, targets=targets, loss=result.loss, metrics=dict(result.metrics), dropped_rows=result.dropped_rows
    )


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    """The weighted mean of the finite values; None if there is none. A NaN or an infinity would make the mean useless."""
    known = [(value, weight) for value, weight in weighted if value is not None and math.isfinite(value) and weight > 0]
    return _weighted_mean(known) if known else None


def _weighted_mean(weighted: Collection[tuple[float, int]]) -> float:
    """The mean of at least one finite value. Values are multiplied by their shares, so that even the largest have a finite mean."""
    total = sum(weight for _, weight in weighted)
    return math.fsum(value * (weight / total) for value, weight in weighted)
