"""Which weights matter: the sites' scores, combined and checked, and what is kept for exploration. Pure.

Honest effect sizes are small (rank allocation brings 0 to 1 point), and a wrong order is worse than none. So a score counts only
where it is stable: the two halves of a site's batches must agree on the order of the weights, and so must the sites,
and the sites with such scores must have half of the samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, fsum, sqrt
from operator import mul
from typing import Final

import numpy as np

from fedpipe_operator.formatting import excerpt, whole_percent
from fedpipe_operator.planning.memory_model import Float64
from fedpipe_operator.planning.samples import counted_train_samples
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Importance, ImportanceMethod, WeightShape

STABLE_WITHIN: Final = 0.8
"""Spearman's rank correlation that the two halves of a site's batches must have."""
STABLE_BETWEEN: Final = 0.6
"""Spearman's rank correlation that a site's scores must have with the other sites', on average (`_agreement`)."""
_ROTATION: Final = 4
"""The exploring share of the budget goes to every fourth weight, to others in each round."""
_SMALLEST: Final = 0.01
"""The least score, of a mean of 1: a weight that looks useless on a few batches may still get an adapter where there is room."""
STABLE_SHARE: Final = 0.5
"""The least share of the samples that sites with stable scores must have: fewer would decide for the fleet."""
_NAMED: Final = 3
"""Sites whose scores do not count, in a sentence."""
_DIGITS: Final = 9
"""To which correlations are compared: further ones depend on the order of adding."""
_LONGEST_PROBLEM: Final = 200
"""Characters of a site's own sentence."""
_LEARNED_SHARE: Final = 0.5
"""How much the updates of the last round count beside the scores from before training."""
_RANK_EXPONENT: Final = 0.25
"""Increments grow by about this power of the rank: 0.13 after 12 and 0.36 after 60 AdamW steps of a rank-stabilised regression, 2 to 32."""


@dataclass(frozen=True)
class CombinedImportance:
    """The scores of a run."""

    scores: dict[str, float]
    """By weight, of mean 1."""
    note: str
    """Where they come from and how far they are trusted, as a sentence."""
    is_uniform: bool = False


def combine(
    sites: Mapping[str, SiteProfile],
    weights: Sequence[WeightShape],
    *,
    learned: Mapping[str, float] | None = None,
    ranks: Mapping[str, float] | None = None,
) -> CombinedImportance:
    """The sites' scores weighted by their samples; uniform where they are missing or not stable.

    Args:
        sites: by name.
        weights: those that may get an adapter.
        learned: Frobenius norm of the last round's aggregated increment, by weight; None before round 2.
        ranks: mean rank of the adapters that made it, by weight; 1 where it is not known.
    """
    names = [weight.name for weight in weights]
    measured = {site: _scores(profile, names) for site, profile in sorted(sites.items())}
    stable = {site: scores for site, scores in measured.items() if not isinstance(scores, str)}
    left_out = {site: problem for site, problem in measured.items() if isinstance(problem, str)}
    problem = _why_uniform(sites, stable, left_out)
    if problem:
        return CombinedImportance(dict.fromkeys(names, 1.0), f"every weight counts as equally important: {problem}", is_uniform=True)
    mean = np.maximum(_SMALLEST, _mean_by_samples(sites, stable))
    mean /= mean.mean()
    note = f"importance by {_method(sites, stable)} scores of {len(stable)} of {len(sites)} sites"
    refreshed = _refresh(mean, _changes(weights, learned or {}, ranks or {}))
    if refreshed is not mean:
        note += " and what the last round changed"
    if left_out:
        note += f"; without {_named(left_out)}"
    return CombinedImportance(dict(zip(names, (float(score) for score in refreshed), strict=True)), note)


def _mean_by_samples(sites: Mapping[str, SiteProfile], scores: Mapping[str, Float64]) -> Float64:
    """By weight. Summed exactly and not by BLAS, whose last digits depend on the processor: plans are the same on every machine."""
    samples = counted_train_samples(sites, scores)
    total = sum(samples.values())
    shares = [samples[site] / total for site in scores]
    return np.array([fsum(map(mul, shares, column)) for column in zip(*(one.tolist() for one in scores.values()), strict=True)])


def explore(scores: Mapping[str, float], share: float, round_: int) -> dict[str, float]:
    """The scores with a share of the budget given to every fourth weight in turn, whatever its score; the mean stays 1."""
    boosted = {name for index, name in enumerate(scores) if index % _ROTATION == round_ % _ROTATION}
    if not boosted:
        return dict(scores)
    bonus = len(scores) / len(boosted)
    return {name: (1 - share) * score + share * bonus * (name in boosted) for name, score in scores.items()}


def rank_correlation(first: Float64, second: Float64) -> float:
    """Spearman's: Pearson's correlation of the ranks, equal values sharing their mean rank; 0 where one of them is constant."""
    a, b = _ranks(first), _ranks(second)
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0


def exploring(share: float, *, has_scores: bool) -> str:
    """The share that rotates (`explore`), as a clause; empty if none does."""
    if not share:
        return ""
    if has_scores:
        return (
            f"; {100 * share:.3g} % of the importance is given to other weights, a quarter of them each round, in case the scores are wrong"
        )
    return f"; {100 * share:.3g} % of the importance is given to a quarter of the weights, to others each round, so that all are tried"


def _scores(profile: SiteProfile, names: Sequence[str]) -> Float64 | str:
    """A site's scores, of mean 1; or why they do not count."""
    measured = profile.importance
    if measured is None or measured.method is ImportanceMethod.NONE:
        return "no scores were measured"
    halves = _halves(measured, names)
    if not any(half.sum() > 0 for half in halves):
        nothing = "every score is 0, so that no gradient reaches the weights: check that the base computes in 16 or 32 bits"
        return excerpt(measured.problem, _LONGEST_PROBLEM) or nothing
    if len(names) == 1:
        return "there is a single weight to score"
    if not any(np.ptp(half) for half in halves):
        return "all weights have the same score"
    if rank_correlation(*halves) < STABLE_WITHIN:
        return f"the two halves of a site's batches disagree on the order of the weights, correlation below {STABLE_WITHIN}"
    mean: Float64 = sum(half / half.mean() for half in halves) / 2
    return mean


def _halves(measured: Importance, names: Sequence[str]) -> tuple[Float64, Float64]:
    """The scores of both halves of a site's batches, in the order of the names."""
    first, second = (np.array([half.get(name, 0.0) for name in names]) for half in (measured.first_half, measured.second_half))
    return first, second


def _why_uniform(sites: Mapping[str, SiteProfile], stable: Mapping[str, Float64], left_out: Mapping[str, str]) -> str:
    measured = [profile.importance for profile in sites.values() if profile.importance is not None]
    if not measured:
        return "no site measured scores"
    if all(one.method is ImportanceMethod.NONE for one in measured):
        return "planning.importance is None"
    if not stable:
        return f"no site has scores that are stable: {_named(left_out)}"
    samples = counted_train_samples(sites, sites)
    share = sum(samples[site] for site in stable) / sum(samples.values())
    if share < STABLE_SHARE:
        few = f"only sites with {whole_percent(share)} of the samples have stable scores, less than {whole_percent(STABLE_SHARE)}"
        return f"{few}; without {_named(left_out)}"
    return _disagreement(counted_train_samples(sites, stable), stable)


def _named(problems: Mapping[str, str]) -> str:
    """Sites with the reason of each, those of one reason together; at most `_NAMED` by name."""
    alike: dict[str, list[str]] = {}
    for site, problem in list(problems.items())[:_NAMED]:
        alike.setdefault(problem, []).append(site)
    named = "; ".join(f"{', '.join(names)} ({problem})" for problem, names in alike.items())
    return f"{named}, and {len(problems) - _NAMED} more" if len(problems) > _NAMED else named


def _disagreement(samples: Mapping[str, int], scores: Mapping[str, Float64]) -> str:
    """That the sites disagree, with those that do so most; empty if they agree well enough.

    The agreement is 1, less what each site's rank correlation with the mean of the others lacks of 1, by its share of the samples, or
    theirs if that is smaller. So it is the mean correlation of sites of equal size, and a site of few samples can change it only a little.
    """
    total = sum(samples.values())
    shares = {site: samples[site] / total for site in scores}
    mean: Float64 = sum((shares[site] * scores[site] for site in scores), np.zeros(len(next(iter(scores.values())))))
    correlations = {site: rank_correlation(scores[site], mean - shares[site] * scores[site]) for site in scores}
    lacking = {site: min(share, 1 - share) * (1 - correlations[site]) for site, share in shares.items()}
    agreement = 1 - fsum(lacking.values())
    if round(agreement, _DIGITS) >= STABLE_BETWEEN:
        return ""
    odd = sorted((site for site in scores if correlations[site] < STABLE_BETWEEN), key=lambda site: -lacking[site])
    named = _named({site: f"correlation {_rounded_down(correlations[site])} with the others" for site in odd})
    told = f"correlation {_rounded_down(agreement)}, below {STABLE_BETWEEN}"
    return f"the sites disagree on the order of the weights ({told}): compare the data of {named}"


def _rounded_down(correlation: float) -> str:
    """A correlation with two decimals, of which none makes it larger: what is below a bound is so as printed."""
    return f"{floor(round(100 * correlation, _DIGITS)) / 100:.2f}"


def _changes(weights: Sequence[WeightShape], learned: Mapping[str, float], ranks: Mapping[str, float]) -> Float64:
    """How much the last round changed each weight, per element as the scores before training are, and as if all had had the same rank.

    Without that a weight would look important for its size, or for the rank that it was given, and be given it again.
    """
    return np.array(
        [
            learned.get(weight.name, 0.0) / sqrt(weight.d_in * weight.d_out) / max(1.0, ranks.get(weight.name, 1.0)) ** _RANK_EXPONENT
            for weight in weights
        ]
    )


def _refresh(scores: Float64, learned: Float64) -> Float64:
    """The scores with those of the last round's changes, where a weight had one; the others keep theirs."""
    trained = learned > 0
    if not trained.any():
        return scores
    moved = np.where(trained, learned * scores[trained].sum() / learned[trained].sum(), scores)
    return (1 - _LEARNED_SHARE) * scores + _LEARNED_SHARE * moved


def _method(sites: Mapping[str, SiteProfile], stable: Mapping[str, Float64]) -> str:
    methods = {importance.method.value.lower() for site in stable if (importance := sites[site].importance) is not None}
    return " and ".join(sorted(methods))


def _ranks(values: Float64) -> Float64:
    order, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - (counts - 1) / 2.0)[inverse]).astype(np.float64) if len(order) else values
