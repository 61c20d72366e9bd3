"""How a round is aggregated: `spec.aggregation` as the aggregation reads it."""

from dataclasses import dataclass
from typing import Final

from fedpipe_operator.aggregation.clipping import MULTIPLE
from fedpipe_operator.aggregation.normalization import Normalization, by_effective_steps
from fedpipe_operator.api.aggregation import FEDAVG, AggregationRule, Clipping, ServerOptimizer, mixed_updates

MAX_NORM: Final = 1e4
"""Default bound on the Frobenius norm of a whole update's increment; the norm of a 7B base model itself is several thousand."""


@dataclass(frozen=True)
class AggregationConfig:
    """How updates are checked and aggregated."""

    method: str
    """A key of `METHODS`."""
    max_rank: int
    """Maximum rank of the global adapter, the same for every weight."""
    rule: str = "Mean"
    """A key of `RULES`."""
    malicious_sites: int = 1
    """How many the rule is to withstand, where it must be told."""
    normalization: Normalization = by_effective_steps
    """How the increments of sites that took different numbers of steps are combined."""
    max_site_weight: float | None = None
    """Upper bound on a site's share, in the round and in each weight: see `shares.max_share`."""
    clipping: Clipping = Clipping.CLIP
    """What happens to an increment of one weight that is longer than `clip_multiple` times what is usual in the round."""
    clip_multiple: float = MULTIPLE
    optimizer: ServerOptimizer = FEDAVG
    """What the global adapter makes of the aggregated increment."""
    warmup_steps: int = 0
    """Of each training in the round."""
    max_norm: float = MAX_NORM
    """Upper bound on the norm of a whole update's increment, over all weights together: see `gate.Expected`."""
    threads: int = 1
    """Updates checked, and weights aggregated, at a time; the bytes written do not depend on it."""

    def mixed(self, updates: int) -> int:
        """How many of so many updates the aggregate is made of."""
        return mixed_updates(AggregationRule(self.rule), updates, self.malicious_sites)
