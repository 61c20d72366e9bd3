"""What a round changed: the norm of each weight's increment, and how far each site's own increment points the same way.

In the space of the products, where equal updates are equal whatever their factors, from r × r inner products of the factors:
⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ). No d_out × d_in matrix is formed, and one site's factors are in memory at a time.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedpipe_operator.aggregation.factors import Factors, Float64, SiteFactorReaders, WeightUpdates
from fedpipe_operator.aggregation.stacked_factors import inner_products
from fedpipe_operator.aggregation.tensors import Float32


@dataclass(frozen=True)
class WeightIncrements:
    """The increments of one weight: of the global adapter, D, and of each site that trained the weight, D_k."""

    squared_norm: float
    """‖D‖²_F, after truncation to the global rank."""
    site_squared_norms: dict[str, float]
    """‖D_k‖²_F by site."""
    inner_products: dict[str, float]
    """⟨D_k, D⟩ by site."""


LEARNED_BY: Final = 3
"""Sites that a commit names for each weight: with all of them it would grow with weights × sites."""


def learned_by(updates: WeightUpdates, increments: WeightIncrements) -> dict[str, float]:
    """The sites that moved a weight most along its increment D, the largest first: each one's share of all that moved it that way.

    The part of site k is p_k c_k ⟨D_k, D⟩; a site that moved the weight against D has none. The shares of all sites add up to 1.
    """
    parts = {one.site: max(0.0, one.coefficient * increments.inner_products[one.site]) for one in updates.sites}
    whole = sum(parts.values())
    largest = sorted(parts, key=lambda site: (-parts[site], site))[:LEARNED_BY]
    return {site: parts[site] / whole for site in largest if parts[site] > 0}


UNCHANGED: Final = WeightIncrements(0.0, {}, {})
"""Of a weight that no site trained."""


@dataclass
class Alignments:
    """Sums over the weights, by site."""

    squared_norms: dict[str, float] = field(default_factory=dict)
    """‖D_k‖² over all weights that the site trained."""
    _global_squared_norms: dict[str, float] = field(default_factory=dict)
    _inner_products: dict[str, float] = field(default_factory=dict)

    def add(self, increments: WeightIncrements) -> None:
        """Add a weight."""
        for site, inner_product in increments.inner_products.items():
            _add(self.squared_norms, site, increments.site_squared_norms[site])
            _add(self._global_squared_norms, site, increments.squared_norm)
            _add(self._inner_products, site, inner_product)

    def norm(self, site: str) -> float:
        """Frobenius norm of the site's increment over all weights that it trained."""
        return math.sqrt(self.squared_norms.get(site, 0.0))

    def cosine(self, site: str) -> float | None:
        """Cosine between the site's and the global increment over the weights that the site trained; None if one of them is zero."""
        norms = math.sqrt(self.squared_norms.get(site, 0.0) * self._global_squared_norms.get(site, 0.0))
        return max(-1.0, min(1.0, self._inner_products[site] / norms)) if norms > 0 else None


def measure(updates: WeightUpdates, readers: SiteFactorReaders, previous: Factors | None, new: Factors) -> WeightIncrements:
    """The increments of a weight from `previous` to `new`, and from `previous` to each site's factors.

    With C the components of `new` and, after them, of `previous`, D = Σ v_j C_j and D_k = s_k B_k A_k − Σ u_j C_j, where u selects the
    components that the site started from. All inner products are in float64, since an increment can be much smaller than its parts.
    """
    left = new.b if previous is None else np.hstack([new.b, previous.b])
    right = new.a.T if previous is None else np.hstack([new.a.T, previous.a.T])
    gram = _products(left, left) * _products(right, right)
    rank = len(new.a)
    whole = np.where(np.arange(len(gram)) < rank, 1.0, -1.0)
    increments = WeightIncrements(_square(float(whole @ gram @ whole)), {}, {})
    for site, read in zip(updates.sites, readers, strict=True):
        update = read()
        scale, factors = update.scale, update.factors
        start = np.zeros(len(gram))
        start[rank : rank + site.rank] = 1.0
        own = scale**2 * float(np.vdot(_products(factors.b, factors.b), _products(factors.a.T, factors.a.T)))
        cross = scale * (_products(factors.b, left) * _products(factors.a.T, right)).sum(axis=0)
        increments.site_squared_norms[site.site] = _square(own + float((start @ gram - 2 * cross) @ start))
        increments.inner_products[site.site] = float(cross @ whole - start @ gram @ whole)
    return increments


def _products(first: Float32, second: Float32) -> Float64:
    """Xᵀ·Y in float64."""
    return np.asarray(inner_products(first, second, np.float64), np.float64)


def _square(value: float) -> float:
    return max(0.0, value)  # rounding can make it negative


def _add(sums: dict[str, float], site: str, value: float) -> None:
    sums[site] = sums.get(site, 0.0) + value
