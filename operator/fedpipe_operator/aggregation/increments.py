"""What a round changed: the norm of each weight's increment, and how far each site's own increment points the same way.

In the space of the products, where equal updates are equal whatever their factors, from r × r inner products of the factors:
⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ). No d_out × d_in matrix is formed, and one site's factors are in memory at a time.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedpipe_operator.aggregation.factors import Factors, Float64, SiteFactorReaders, SiteFactors, WeightUpdates


@dataclass(frozen=True)
class WeightIncrements:
    """The increments of one weight: of the global adapter, D, and of each site that trained the weight, D_k."""

    squared_norm: float
    """‖D‖²_F, after truncation to the global rank."""
    site_squared_norms: dict[str, float]
    """‖D_k‖²_F by site."""
    inner_products: dict[str, float]
    """⟨D_k, D⟩ by site."""


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
    """The increments of a weight from `previous` to `new`, and from `previous` to each site's factors."""
    whole = _Increment(new, 1.0, previous)
    norms, inner_products = {}, {}
    for site, read in zip(updates.sites, readers, strict=True):
        own = _increment_of(read(), previous)
        norms[site.site] = own.inner_product(own)
        inner_products[site.site] = own.inner_product(whole)
    return WeightIncrements(whole.inner_product(whole), norms, inner_products)


class _Increment:
    """scale · B·A − start, as one factor pair in float64."""

    def __init__(self, factors: Factors, scale: float, start: Factors | None) -> None:
        self.left: Float64 = factors.b * np.float64(scale)
        self.right: Float64 = factors.a.astype(np.float64)
        if start is not None:
            self.left = np.hstack([self.left, -start.b])
            self.right = np.vstack([self.right, start.a])

    def inner_product(self, other: "_Increment") -> float:
        return float(np.vdot(self.left.T @ other.left, self.right @ other.right.T))


def _increment_of(site: SiteFactors, previous: Factors | None) -> _Increment:
    rank = len(site.factors.a)
    start = None if previous is None else Factors(b=previous.b[:, :rank], a=previous.a[:rank])
    return _Increment(site.factors, site.scale, start)


def _add(sums: dict[str, float], site: str, value: float) -> None:
    sums[site] = sums.get(site, 0.0) + value
