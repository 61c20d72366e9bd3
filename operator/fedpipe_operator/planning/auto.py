"""Mode `Auto`: each site gets what its hardware can carry. Only the choice is here.

Greedy: of what fits the site's memory and trains all wanted steps before the deadline, the highest bits, then the
largest batch, then the largest rank, one for all weights. Where nothing trains all of them, samples come first:
FedPipe wants the share that the deadline cuts (the under-training rate) near 0.

An optimiser over which weight gets which rank replaces `_choose`; the models, candidates and reasons stay.
"""

from collections.abc import Mapping

from fedpipe_operator.planning.candidates import Candidate, Request, plan_of, uniform_candidates
from fedpipe_operator.planning.plans import Plans
from fedpipe_operator.planning.preference import preference
from fedpipe_operator.planning.reasons import why, why_excluded
from fedpipe_operator.sites.profile import SiteProfile


def auto(request: Request, sites: Mapping[str, SiteProfile]) -> Plans:
    """Plan every site for itself."""
    plans, excluded = {}, {}
    for name, site in sorted(sites.items()):
        candidates = uniform_candidates(request, site)
        chosen = _choose(site, candidates)
        if chosen is None:
            excluded[name] = why_excluded(request, site, candidates)
        else:
            plans[name] = plan_of(request, chosen, why(request, site, chosen=chosen, candidates=candidates))
    return Plans(plans=plans, excluded=excluded)


def _choose(site: SiteProfile, candidates: tuple[Candidate, ...]) -> Candidate | None:
    return max((candidate for candidate in candidates if candidate.is_possible(site)), key=preference, default=None)
