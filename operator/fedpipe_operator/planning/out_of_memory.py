"""What a site's next plans may use after one ran out of memory. Pure.

The limit is below the forecast of the smallest pass that ran out of memory, so that no plan that did is made again. It is at least the
forecast of the next smaller plan: the same one with half as many samples a pass, with which the site has trained after all or which it has
not tried yet; where the passes were of one sample, the smallest plan of the site. So it leaves a site out only when its smallest plan
failed. It is of the memory of training: loading the base needs the same whatever is trained, and often more than the smaller plans.
"""

from math import ceil

import numpy as np

from fedpipe_operator.api import PlanningMode
from fedpipe_operator.planning.choices import choices_of
from fedpipe_operator.planning.forecast import choice_of, training_peak_of
from fedpipe_operator.planning.memory_model import Float64
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.sizes import rank_parameters
from fedpipe_operator.sites import SiteProfile
from fedpipe_operator.sites.corrections import LESS_MEMORY
from fedpipe_trainer.contract import Plan, halved


def limit_after(request: PlanRequest, site: SiteProfile, plan: Plan, too_large: int) -> int:
    """Bytes that the forecasts of training of the site's next plans may reach.

    Args:
        request: the run, with the correction that the plan was made with.
        site: the site.
        plan: what ran out of memory.
        too_large: samples of the smallest pass that did.
    """
    failed = _peak(request, site, plan, too_large)
    smaller = _peak(request, site, plan, halved(too_large)) if too_large > 1 else _smallest_peak(request, site)
    less = int(LESS_MEMORY * failed)
    # A byte for the rounding of whichever sum is compared with it.
    return max(less, ceil(smaller) + 1) if smaller < failed - 1 else less


def _peak(request: PlanRequest, site: SiteProfile, plan: Plan, micro_batch: int) -> float:
    """The forecast of the memory of training, with passes of so many samples."""
    return training_peak_of(request, site, choice_of(plan)._replace(micro_batch=micro_batch), plan.ranks)


def _smallest_peak(request: PlanRequest, site: SiteProfile) -> float:
    """The forecast of training of the smallest plan that the run's mode can make for the site; infinite if it can make none."""
    weights, rank = site.base.weights, min(rank for rank in request.spec.planning.ranks if rank)
    if request.spec.planning.mode is not PlanningMode.AUTO:
        choices = choices_of(request, site, lowest=(0,))
        return _least(choices.training_peak(np.full(len(choices.rows), float(rank * rank_parameters(weights)))))
    choices = choices_of(request, site)
    smallest = {
        lowest: min(rank * rank_parameters([one]) for one in weights if one.layer >= lowest)
        for lowest in {row.lowest_layer for row in choices.rows}
    }
    return _least(choices.training_peak(np.array([float(smallest[row.lowest_layer]) for row in choices.rows])))


def _least(peaks: Float64) -> float:
    return float(np.min(peaks, initial=np.inf))
