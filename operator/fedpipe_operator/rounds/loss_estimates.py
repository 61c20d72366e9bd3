"""What each site's update did to the validation loss of its round: a first-order estimate. Pure.

Measured are the loss L₋ of the adapter that the round started from, the loss L of the one it ended with, and the increment D between the
two (`aggregation.progress` relates each site's update to it). To first order the loss changed by ΔL = L − L₋ ≈ ⟨g, D⟩ with the gradient g
of the loss. That is one equation for all of g; its smallest solution is g = ΔL · D / ‖D‖², which is also what one expects of a gradient
about whose other directions nothing is known. With it, an update u would have changed the loss by ⟨g, u⟩ = ΔL · ⟨u, D⟩ / ‖D‖², so

    part of site k in the change = part of the progress · ΔL      they add up to ΔL
    loss without site k          = L − part of site k in the change

That is the loss if the site's update had been zero and those of the others had counted as they did. It does not say what a fleet without
the site would have learned, where the others would have had its weight too: see docs/decisions/contributions.md.

What an update did across the direction of D, and the curvature of the loss, are not seen: a site that alone holds rare data may be worth
more than this says. To know it, each site would have to evaluate an adapter without each other site, every round.
"""

import math
from collections.abc import Iterable

from fedpipe_operator.rounds.records import LARGEST_LOSS, Contribution, LossEstimate, RoundEvaluation
from fedpipe_operator.shares import bounded_shares


def loss_estimates(
    contributions: Iterable[Contribution], before: RoundEvaluation, after: RoundEvaluation, max_site_weight: float | None = None
) -> dict[str, LossEstimate]:
    """The estimates by site, of the sites whose updates are in the round.

    Args:
        contributions: of the round's commit.
        before: the federated evaluation of the adapter that the round started from.
        after: that of the round's own adapter.
        max_site_weight: `aggregation.maxSiteWeight`, by which the two losses are means.

    Returns:
        The estimates; none if no site evaluated both adapters, and none of a site of which the commit does not tell its progress.
    """
    change, loss = _change(before, after, max_site_weight), after.loss
    if change is None or loss is None:
        return {}
    estimates = {one.site: _estimate(one, change, loss) for one in contributions}
    return {site: estimate for site, estimate in estimates.items() if estimate is not None}


def _estimate(contribution: Contribution, change: float, loss: float) -> LossEstimate | None:
    if contribution.progress is None:
        return None
    part = contribution.progress * change
    without = max(0.0, loss - part)
    is_bounded = abs(part) <= LARGEST_LOSS and without <= LARGEST_LOSS
    return LossEstimate(change=part, loss_without=without) if is_bounded else None


def _change(before: RoundEvaluation, after: RoundEvaluation, max_site_weight: float | None) -> float | None:
    """ΔL over the validation data of the sites that evaluated both adapters, as the loss is reported; None if there are none."""
    then, now = before.by_site("loss"), after.by_site("loss")
    earlier = dict(zip(then.sites, then.values, strict=True))
    changes = [(loss - earlier[site], targets) for site, loss, targets in zip(*now, strict=True) if site in earlier]
    if not changes:
        return None
    shares = bounded_shares([targets for _, targets in changes], max_site_weight)
    return math.fsum(change * share for (change, _), share in zip(changes, shares, strict=True))
