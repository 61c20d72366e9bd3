"""How far a round moved along its own increment D: the part of each site, and how far it would have moved without it.

With shares p_k and the server's rate γ (`normalization`), both of each weight, D = γ Σ p_k D_k but for what truncation to the global rank
cuts. The progress of the round is P = Σ ⟨γ p_k D_k, D⟩ over sites and weights, and

    part of site k  = Σ_weights ⟨γ p_k D_k, D⟩ / P          the parts add up to 1; below 0, the site moved against the aggregate
    without site k  = Σ_weights ⟨D₋ₖ, D⟩ / P                1: the round would have moved as far

where D₋ₖ is what the round would have aggregated without the site: shares p_j / (1 − p_k) and the rate γ₋ₖ of the others. A weight that
no other site trained would not have changed. These are ratios of inner products of what was aggregated, so they are exact for a method
that averages increments (`Exact`) whose truncation cuts nothing; what they say about the loss is a first-order estimate
(`rounds.loss_estimates`). A head that is trained in full is left out, because in round 1 only the sites know where it started.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator.aggregation.factors import WeightUpdates
from fedpipe_operator.rounds.records import LARGEST_PROGRESS


@dataclass
class Progress:
    """Sums over the weights."""

    _whole: float = 0.0
    _parts: dict[str, float] = field(default_factory=dict)
    _changes: dict[str, float] = field(default_factory=dict)
    """By site: how much further the round would have moved without it."""

    def add(self, updates: WeightUpdates, inner_products: Mapping[str, float]) -> None:
        """Add a weight; `inner_products` are ⟨D_k, D⟩ by site, empty for a weight that no site trained."""
        rate = updates.server_rate
        parts = {one.site: rate * one.share * inner_products[one.site] for one in updates.sites}
        whole = sum(parts.values())
        self._whole += whole
        for one in updates.sites:
            others = one.rate_without / rate * (whole - parts[one.site]) / (1 - one.share) if one.share < 1 else 0.0
            self._parts[one.site] = self._parts.get(one.site, 0.0) + parts[one.site]
            self._changes[one.site] = self._changes.get(one.site, 0.0) + others - whole

    def part(self, site: str) -> float | None:
        """The site's part of the round's progress; None if the updates cancel each other (nearly), so that there is none."""
        return self._relative(self._parts.get(site, 0.0))

    def without(self, site: str) -> float | None:
        """The round's progress without the site, relative to what it was; None as above."""
        return self._relative(self._whole + self._changes.get(site, 0.0))

    def _relative(self, value: float) -> float | None:
        return value / self._whole if self._whole > 0 and abs(value) <= LARGEST_PROGRESS * self._whole else None
