"""What must be known of all updates before the first is aggregated: lengths of increments and, where the rule selects sites, distances.

One weight of all sites is read at a time, and only numbers are kept: one for each site and weight, and one for each pair of sites.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from fedpipe_operator.admission import RefusalReason
from fedpipe_operator.aggregation import distances
from fedpipe_operator.aggregation.accepted import Accepted, RoundContext, combination_of, counted_steps, factors_in, readers_of, updates_of
from fedpipe_operator.aggregation.clipping import ENOUGH_SITES, clip_factors
from fedpipe_operator.aggregation.config import AggregationConfig
from fedpipe_operator.aggregation.factors import Factors, Float64, WeightUpdates
from fedpipe_operator.aggregation.krum import closest
from fedpipe_operator.aggregation.lengths import OF_A
from fedpipe_operator.aggregation.methods import METHODS
from fedpipe_operator.aggregation.parallel import ordered_parallel_map
from fedpipe_operator.aggregation.rules import RULES, require_enough_updates
from fedpipe_operator.api.aggregation import Clipping
from fedpipe_operator.rounds.records import Verdict

ByTensor = Mapping[str, Mapping[str, float]]
"""By weight, or by key of a head tensor, then by site."""


@dataclass(frozen=True)
class Survey:
    """The measurements of a round."""

    weights: Mapping[str, Mapping[str, tuple[float, ...]]]
    """By weight and site that trained it: the lengths per effective step of its increment of everything that the method averages."""
    head: ByTensor
    """The same of tensors trained as a whole; in round 1, where only the sites know their start, of the tensors as they are."""
    squared_distances: Float64 | None = None
    """Between the sites in their order, over all tensors; None if the rule selects none."""


_NOTHING: Final = Survey({}, {})


@dataclass(frozen=True)
class Limits:
    """What follows from it."""

    clips: ByTensor
    """The factors below 1 of the increments that are too long."""
    refused: dict[str, Verdict]
    """With `clipping: Refuse`, the sites that sent one."""
    selected: frozenset[str]
    """The sites whose updates the rule combines; none if too few are left for the round."""


class _Measured(NamedTuple):
    lengths: dict[str, tuple[float, ...]]
    squared_distances: Float64 | None


def survey(context: RoundContext, accepted: Accepted) -> Survey:
    """Read all accepted updates once; with distances, twice."""
    plan, config, previous = context.plan, context.config, context.previous
    selects = RULES[config.rule].keep is not None

    def of_weight(weight: str) -> _Measured:
        updates = updates_of(weight, accepted, context)
        start = factors_in(previous, updates.weight)
        found = distances.of_products(updates, readers_of(updates, accepted), start) if selects and updates.sites else None
        return _Measured(_lengths(updates, start, context, accepted), found)

    total = np.zeros((len(accepted),) * 2) if selects else None
    weights, names = {}, sorted(plan.weights)
    for weight, measured in zip(names, ordered_parallel_map(of_weight, names, config.threads), strict=True):
        weights[weight] = measured.lengths
        if total is not None and measured.squared_distances is not None:
            total += _among_all(measured.squared_distances, list(measured.lengths), list(accepted))
    paces = combination_of(accepted, context).paces
    head = {}
    for key in sorted(plan.head):
        head[key] = _head_lengths(key, accepted, context)
        if total is not None:
            tensors = [update.tensors.read(key) for update in accepted.values()]
            total += distances.of_tensors(tensors, paces, previous.read(key) if previous else None)
    return Survey(weights, head, total)


def limits_of(context: RoundContext, accepted: Accepted) -> Limits:
    """Which of the accepted updates are refused after all, which increments are shortened, and which sites the rule selects.

    Raises:
        CannotAggregateError: enough are left for the round and too few for the rule.
    """
    config = context.config
    clips = config.clipping is not Clipping.NONE and len(accepted) >= ENOUGH_SITES
    found = survey(context, accepted) if clips or RULES[config.rule].keep else _NOTHING
    factors = _clip_factors(found, config) if clips else {}
    refused = _refusals(factors, config) if config.clipping is Clipping.REFUSE else {}
    left = [site for site in accepted if site not in refused]
    return Limits(factors, refused, _selected(found, list(accepted), left, config) if len(left) >= context.plan.needed else frozenset())


def _clip_factors(found: Survey, config: AggregationConfig) -> dict[str, dict[str, float]]:
    """By weight or head tensor and site: the factors of the increments that are too long, by the length that is furthest out."""
    factors = clip_factors(found.head, config.clip_multiple)
    kinds = max((len(one) for of_sites in found.weights.values() for one in of_sites.values()), default=0)
    for kind in range(kinds):
        of_kind = {weight: {site: one[kind] for site, one in of_sites.items()} for weight, of_sites in found.weights.items()}
        for weight, clips in clip_factors(of_kind, config.clip_multiple).items():
            known = factors.setdefault(weight, {})
            known |= {site: min(factor, known.get(site, 1.0)) for site, factor in clips.items()}
    return factors


def _refusals(factors: ByTensor, config: AggregationConfig) -> dict[str, Verdict]:
    """The verdicts on the sites that sent an increment that is too long; each names the one that is so most."""
    worst: dict[str, tuple[float, str]] = {}
    for name, of_sites in factors.items():
        for site, factor in of_sites.items():
            worst[site] = min(worst.get(site, (math.inf, "")), (factor, name))
    return {site: _too_long(site, name, factor, config) for site, (factor, name) in sorted(worst.items())}


def _selected(found: Survey, sites: list[str], left: list[str], config: AggregationConfig) -> frozenset[str]:
    """Those of the sites that are left that the rule selects; the survey is of all of them."""
    require_enough_updates(config.rule, len(left), config.malicious_sites)
    keep = RULES[config.rule].keep
    if keep is None or found.squared_distances is None:
        return frozenset(left)
    among = [sites.index(site) for site in left]
    chosen = closest(found.squared_distances[np.ix_(among, among)], config.malicious_sites, keep(len(left), config.malicious_sites))
    return frozenset(left[index] for index in chosen)


def _lengths(updates: WeightUpdates, start: Factors | None, context: RoundContext, accepted: Accepted) -> dict[str, tuple[float, ...]]:
    found = {}
    for one, read in zip(updates.sites, readers_of(updates, accepted), strict=True):
        update, steps = read(), counted_steps(accepted[one.site].result, context)
        own_start = None if start is None else Factors(b=start.b[:, : one.rank], a=start.a[: one.rank])
        squares = METHODS[context.config.method].squared_lengths(update.factors, update.scale, own_start)
        found[one.site] = tuple(
            math.sqrt(square) / (1.0 if kind == OF_A and start is None else steps) for kind, square in enumerate(squares)
        )
    return found


def _head_lengths(key: str, accepted: Accepted, context: RoundContext) -> dict[str, float]:
    tensors = ((site, update, update.tensors.read(key).astype(np.float64)) for site, update in accepted.items())
    if context.previous is None:
        return {site: float(np.linalg.norm(tensor)) for site, _, tensor in tensors}
    start = context.previous.read(key)
    return {site: float(np.linalg.norm(tensor - start)) / counted_steps(update.result, context) for site, update, tensor in tensors}


def _among_all(squared_distances: Float64, trained: list[str], sites: list[str]) -> Float64:
    """Over all sites, n × n; the matrix is of those that trained the weight, and last of an increment of zero."""
    position = {site: index for index, site in enumerate(trained)}
    rows = [position.get(site, len(trained)) for site in sites]
    return squared_distances[np.ix_(rows, rows)]


def _too_long(site: str, name: str, factor: float, config: AggregationConfig) -> Verdict:
    found, allowed = f"{config.clip_multiple / factor:.3g}", f"{config.clip_multiple:g}"
    what = f"adapter of site {site}: length of the increment of {name}"
    message = f"{what}: found {found} times what is usual in the round, expected at most {allowed}"
    return Verdict(accepted=False, reason=RefusalReason.INCREMENT_TOO_LONG, message=message)
