"""How the increments of sites that took different numbers of steps are combined.

A site that takes more steps moves further from the global adapter, so in an average by data its increment D_k has more influence than its
data justify, and what only slow sites know is lost. FedNova (Wang et al., arXiv 2007.07481) averages increments per step instead, weighted
by the sites' share of the data n_k, and makes up for the division with one common number of steps:

    ΔW ← ΔW + f(τ)_eff Σ n_k D_k / f(τ_k),   f(τ)_eff = Σ n_k f(τ_k).

Here this is ΔW + γ Σ p_k D_k with shares p_k ∝ n_k / f(τ_k) that add up to 1, and the server's rate γ = Σ n_k f(τ_k) · Σ n_k / f(τ_k) ≥ 1.
Where all sites take equally many steps, γ is 1 and the shares are those of the data.

Where they differ much, γ extrapolates: the five steps of a slow site count as if they were 25, and the global adapter overshoots, now
towards one group of sites, now towards another. So γ is at most `MAX_SERVER_RATE`. That departs from FedNova in the length of the update,
never in its direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import numpy as np

from fedpipe_operator.shares import capped

_EXPONENT: Final = 1.0
MAX_SERVER_RATE: Final = 1.5
"""With steps from 70 to 5 (γ of FedNova: 2.6 to 2.9), 1.5 was better than 2, and 2 than no limit, in final accuracy, in loss and on the
classes that slow sites alone hold (benchmarks/README.md, *Uneven steps*)."""


@dataclass(frozen=True)
class LocalWork:
    """What one site trained on in a round, and how much."""

    samples: int
    """Training samples that the site has."""
    effective_steps: float
    """Optimiser steps, each counted by its learning rate relative to the round's highest: τ_k."""


@dataclass(frozen=True)
class Combination:
    """The coefficients of the sites' increments: γ p_k."""

    shares: tuple[float, ...]
    """p_k, in the order of the sites; they add up to 1."""
    paces: tuple[float, ...]
    """γ p_k / n_k: what makes each increment one of the common number of steps, so that the step is their mean by data, Σ n_k (pace_k D_k).
    In this form increments of sites that took different numbers of steps are compared coordinate by coordinate, or by their distances."""
    server_rate: float = 1.0
    """γ."""

    def limited(self, max_share: float) -> "Combination":
        """The same with no share above `max_share` (`shares.capped`): it limits whom the round listens to, not how far it goes."""
        return replace(self, shares=capped(self.shares, max_share))


Normalization = Callable[[Sequence[LocalWork]], Combination]


def by_effective_steps(work: Sequence[LocalWork]) -> Combination:
    """p_k ∝ n_k / τ_k, as in FedNova, and its γ up to a limit."""
    return power_of_steps(work, _EXPONENT, MAX_SERVER_RATE)


def power_of_steps(work: Sequence[LocalWork], exponent: float, max_server_rate: float = inf) -> Combination:
    """FedNova with f(τ) = τ^exponent: 1 if an increment grows like its steps, 0 if it does not depend on them.

    Args:
        work: of each site.
        exponent: of the steps.
        max_server_rate: upper limit of γ; infinite in FedNova as published.
    """
    samples = np.array([site.samples for site in work], dtype=np.float64)
    data, growth = samples / samples.sum(), np.array([site.effective_steps for site in work]) ** exponent
    weights = data / growth
    shares, rate = weights / weights.sum(), max(1.0, float(data @ growth * weights.sum()))
    rate = min(rate, max_server_rate)
    return Combination(tuple(shares.tolist()), tuple((rate / weights.sum() / growth).tolist()), rate)


def by_data(work: Sequence[LocalWork]) -> Combination:
    """FedAvg (McMahan et al., arXiv 1602.05629), for comparison: p_k = n_k."""
    total = sum(site.samples for site in work)
    return Combination(tuple(site.samples / total for site in work), paces=(1.0,) * len(work))


NORMALIZATIONS: Final[dict[str, Normalization]] = {"EffectiveSteps": by_effective_steps, "None": by_data}
"""By the name that `spec.aggregation.normalization` gives them."""
