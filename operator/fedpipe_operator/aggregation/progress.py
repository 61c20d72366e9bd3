"""How far a round moved along its own increment D, and the part of each site.

With shares p_k (of a clipped increment: p_k c_k) and the server's rate γ (`normalization`), both of each weight, D = γ Σ p_k D_k but for
what truncation to the global rank cuts. The progress of the round is P = Σ ⟨γ p_k D_k, D⟩ over sites and weights, and

    part of site k  = Σ_weights ⟨γ p_k D_k, D⟩ / P          the parts add up to 1; below 0, the site moved against the aggregate

So 1 − part is how far the round would have moved without the site's term, the others counting as they did. These are ratios of inner
products of what was aggregated, so they are exact for a method that averages increments (`Exact` with the rule Mean, Krum or MultiKrum)
whose truncation cuts nothing; what they say about the loss is a first-order estimate (`rounds.loss_estimates`). A head that is trained in
full is left out, because in round 1 only the sites know where it started.
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

    def add(self, updates: WeightUpdates, inner_products: Mapping[str, float]) -> None:
        """Add a weight; `inner_products` are ⟨D_k, D⟩ by site, empty for a weight that no site trained."""
        for one in updates.sites:
            part = updates.server_rate * one.coefficient * inner_products[one.site]
            self._parts[one.site] = self._parts.get(one.site, 0.0) + part
            self._whole += part

    def part(self, site: str) -> float | None:
        """The site's part of the round's progress; None if the updates cancel each other (nearly), so that there is none."""
        value = self._parts.get(site, 0.0)
        return value / self._whole if self._whole > 0 and abs(value) <= LARGEST_PROGRESS * self._whole else None
