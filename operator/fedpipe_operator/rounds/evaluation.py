"""The federated evaluation: the sites' results on their own validation data as aggregated (weighted) metrics."""

import math
from collections.abc import Iterable, Mapping

from fedpipe_operator.rounds.records import RoundEvaluation, SiteEvaluation
from fedpipe_trainer.contract import EvaluateResult, perplexity_of


def aggregate_metrics(round_: int, results: Mapping[str, EvaluateResult], missing: Mapping[str, str], now: float) -> RoundEvaluation:
    """One evaluation from the sites' own.

    The loss is a mean over targets (tokens or labels) and is weighted by them; perplexity is its exponential. Other metrics are
    weighted by samples: that is exact for accuracy and slot errors per prompt, and only a mean of the sites' values for metrics of a
    whole set (macro-F1, BLEU).
    """
    sites = {site: _site(result) for site, result in sorted(results.items())}
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


def _site(result: EvaluateResult) -> SiteEvaluation:
    """What is stored of a result: without metrics that are no numbers, which JSON has no words for."""
    metrics = {name: value for name, value in result.metrics.items() if math.isfinite(value)}
    return SiteEvaluation(samples=result.samples, targets=result.targets, loss=result.loss, metrics=metrics)


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    """The weighted mean of the finite values; None if there is none. A NaN or an infinity would make the mean useless.

    Values are multiplied by their shares, so that even the largest have a finite mean.
    """
    known = [(value, weight) for value, weight in weighted if value is not None and math.isfinite(value) and weight > 0]
    total = sum(weight for _, weight in known)
    return math.fsum(value * (weight / total) for value, weight in known) if total else None
