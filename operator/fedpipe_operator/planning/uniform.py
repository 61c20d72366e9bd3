"""Mode `Uniform`: every site gets what the weakest can carry; the comparison that `Auto` is held against.

The one choice is what most sites can carry (all that can hold anything, unless their devices share no bit width);
of those, what is best at the site where it is worst. Steps still differ, with the sites' samples.
"""

from collections.abc import Mapping

from fedpipe_operator.planning.candidates import Candidate, Request, plan_of, uniform_candidates
from fedpipe_operator.planning.plans import Plans
from fedpipe_operator.planning.preference import preference
from fedpipe_operator.planning.reasons import why_excluded, why_not_like_the_others, why_uniform
from fedpipe_operator.sites.profile import SiteProfile

_Key = tuple[int, int, int]
"""Bits, batch, rank: what is the same at all sites."""


def uniform(request: Request, sites: Mapping[str, SiteProfile]) -> Plans:
    """Plan all sites alike."""
    candidates = {name: uniform_candidates(request, site) for name, site in sorted(sites.items())}
    possible = {name: {_key(one): one for one in candidates[name] if one.is_possible(sites[name])} for name in candidates}
    common, weakest = _choose(list(possible.values())), _weakest(possible)
    plans, excluded = {}, {}
    for name, choices in possible.items():
        if common is None or not choices:
            excluded[name] = why_excluded(request, sites[name], candidates[name])
        elif common in choices:
            why = why_uniform(request, sites[name], chosen=choices[common], weakest=weakest)
            plans[name] = plan_of(request, choices[common], why)
        else:
            excluded[name] = why_not_like_the_others(*common)
    return Plans(plans=plans, excluded=excluded)


def _choose(possible: list[dict[_Key, Candidate]]) -> _Key | None:
    keys = {key for choices in possible for key in choices}
    return max(keys, key=lambda key: _worth(key, possible), default=None)


def _worth(key: _Key, possible: list[dict[_Key, Candidate]]) -> tuple[int, tuple[int, int, int, int]]:
    """How many sites can carry it, and how good it is where it is worst."""
    carried = [choices[key] for choices in possible if key in choices]
    return len(carried), min(preference(candidate) for candidate in carried)


def _weakest(possible: Mapping[str, dict[_Key, Candidate]]) -> str:
    """The site whose own best choice is the worst: the one that all are held to."""
    best = {name: max(map(preference, choices.values())) for name, choices in possible.items() if choices}
    return min(best, key=lambda name: (best[name], name), default="")


def _key(candidate: Candidate) -> _Key:
    return candidate.bits, candidate.batch, candidate.rank
