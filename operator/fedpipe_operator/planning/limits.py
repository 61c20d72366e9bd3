"""What limits a site's plan of mode Auto, and what a quarter more of each resource would buy. Pure.

What binds is found by asking, not by rules: the site's problem is solved again with more memory, time and bandwidth, and the resource
whose increase brings most is the one that limits it. Seconds serve transfers as well, so that more of them would always buy at least as
much as more bandwidth: time is increased by a share of the seconds that the site does not spend on transfers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fedpipe_operator.formatting import bytes_text, counted, passes_text, percent, rate_text, seconds_text, whole_percent
from fedpipe_operator.planning.batches import with_batch
from fedpipe_operator.planning.choices import Choice, seconds_of_steps, transfer_seconds
from fedpipe_operator.planning.fleet import FleetSolution, longer_by
from fedpipe_operator.planning.passes import passes
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.site_problem import SiteProblem, Solution
from fedpipe_operator.sites import Correction, SiteProfile, carried_over

_MORE: Final = 0.25
"""By how much each resource is increased to find the one that limits."""
_NOTICEABLE: Final = 0.01
"""Gains of predicted progress below 1 % are not offered."""
_SHOWN: Final = 0.005
"""Figures that differ by a smaller share are not told."""
_FLEET_EXPLAINED: Final = 50
"""In larger fleets the limits are not computed: each takes four more solutions a site."""


@dataclass(frozen=True)
class Limit:
    """What limits a site's contribution."""

    name: str
    """`Memory`, `Time`, `Bandwidth`, `Data` or `Spec`; empty if it is not known."""
    sentence: str


class _Trial(NamedTuple):
    """The site's problem with more of one resource."""

    name: str
    """As in `Limit`."""
    resource: str
    """Its name in a sentence."""
    amount: str
    """How much more, in words."""
    request: PlanRequest
    site: SiteProfile
    seconds: float
    """The length of the round."""
    most_steps: float
    """Of the site of the fleet that takes most."""


class _Offer(NamedTuple):
    """What more of a resource would buy."""

    name: str
    """As in `Limit`."""
    resource: str
    gain: float
    """Relative, of predicted progress."""
    text: str


def limit_of(request: PlanRequest, site: SiteProfile, *, fleet: FleetSolution, solution: Solution) -> Limit:
    """The constraint that binds, with what more of each resource would buy."""
    has_all_steps = solution.steps >= request.wanted_steps(site, solution.choice.batch)
    if has_all_steps and _has_all_ranks(request, site, solution):
        return _no_more_is_wanted(request, site, solution)
    if len(fleet.problems) > _FLEET_EXPLAINED:
        return Limit("", f"what limits it is not computed in fleets of more than {_FLEET_EXPLAINED} sites")
    trials = _trials(request, site, fleet, solution)
    offers = sorted((_offer(trial, fleet, site, solution) for trial in trials), key=lambda offer: -offer.gain)
    if offers[0].gain >= _NOTICEABLE:
        return Limit(offers[0].name, f"limited by {offers[0].name.lower()}: {_told(offers)}")
    if has_all_steps:
        return _no_more_is_wanted(request, site, solution)
    # So few steps that a quarter more time is not enough for one more.
    step = seconds_of_steps(request, site, solution.choice, solution.steps) / solution.steps
    longer = longer_by(request, fleet, fleet.length.seconds + step)
    return Limit("Time", f"limited by time: one more step, of {seconds_text(step)}, would need a longer round ({longer})")


def _told(offers: Sequence[_Offer]) -> str:
    """What each resource would buy, and at the end those that would buy next to nothing."""
    *others, last = sorted(offer.resource for offer in offers if offer.gain < _NOTICEABLE) or [""]
    little = f"{', '.join(others)} or {last}" if others else last
    rest = [f"{whole_percent(_MORE)} more {little} would bring less than {whole_percent(_NOTICEABLE)}"] if little else []
    return "; ".join([*(offer.text for offer in offers if offer.gain >= _NOTICEABLE), *rest])


def _no_more_is_wanted(request: PlanRequest, site: SiteProfile, solution: Solution) -> Limit:
    """The limit of a site that has all steps that the run allows, and of ranks all or nearly all that would help."""
    training = request.spec.training
    if training.max_steps is not None and solution.steps == training.max_steps:
        return Limit("Spec", f"limited by the spec: training.maxSteps is {training.max_steps}")
    if training.epochs is not None:
        return Limit("Spec", f"limited by the spec: training.epochs is {training.epochs:g}")
    made = passes(site.train_samples, solution.steps, solution.choice.batch)
    over = f"{passes_text(made)} over its {counted(site.train_samples, 'sample')}"
    return Limit("Data", f"limited by its data: a round makes {over}; more of the same would teach it little")


def _trials(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> list[_Trial]:
    """The problems to solve."""
    seconds, most, correction = fleet.length.seconds, fleet.most_steps, request.correction(site)
    longer = _MORE * max(0.0, seconds - transfer_seconds(request, site, request.update_bytes(site, solution.ranks)))
    # A longer round has more steps of all sites that want more: this one's are not compared with those that the fastest takes today.
    wants_more = solution.steps < request.wanted_steps(site, solution.choice.batch)
    most_of_longer = most * (1 + wants_more * longer / seconds_of_steps(request, site, solution.choice, solution.steps))
    larger = replace(site, memory_bytes=int(site.memory_bytes * (1 + _MORE)))
    # More memory raises what a plan may use, also after another has run out of it.
    raised = carried_over(correction, site.resources, larger.resources)
    of_larger = replace(request, corrections={**request.corrections, site.name: raised})
    memory, up, down = bytes_text(_MORE * site.memory_bytes), _more_bandwidth(site.up, correction), _more_bandwidth(site.down, correction)
    sends_faster, receives_faster = replace(site, up=site.up * (1 + _MORE)), replace(site, down=site.down * (1 + _MORE))
    time = f"{seconds_text(longer)} more a round ({longer_by(request, fleet, seconds + longer)})"
    return [
        _Trial("Memory", "memory", f"{memory} more memory", of_larger, larger, seconds, most),
        _Trial("Bandwidth", "upload bandwidth", f"{up} more upload bandwidth", request, sends_faster, seconds, most),
        _Trial("Bandwidth", "download bandwidth", f"{down} more download bandwidth", request, receives_faster, seconds, most),
        _Trial("Time", "time a round", time, request, site, seconds + longer, most_of_longer),
    ]


def _more_bandwidth(claimed: float, correction: Correction) -> str:
    """How much more a site is tried with, of the bandwidth that its transfers have shown."""
    return rate_text(_MORE * claimed / correction.transfers)


def _offer(trial: _Trial, fleet: FleetSolution, site: SiteProfile, solution: Solution) -> _Offer:
    # What too few sites or samples would train is left out here as well: it is no gain of more resources.
    more = SiteProblem.of(trial.request, trial.site, fleet.frontiers).solve(trial.seconds)
    if more is None:
        return _Offer(trial.name, trial.resource, 0.0, "")
    better = with_batch(trial.request, trial.site, more, trial.most_steps, trial.seconds)
    gain = better.value / solution.value - 1
    text = f"{trial.amount} would buy {_difference(site, solution, better)} (predicted progress +{percent(gain)})"
    return _Offer(trial.name, trial.resource, gain, text)


def _difference(site: SiteProfile, now: Solution, better: Solution) -> str:
    """All that another solution changes, in words: what it has more of, then what it gives up for that."""
    changes = [*_changed_figures(site, now, better), *_changed_techniques(now.choice, better.choice)]
    gains, losses = ([text for is_gain, text in changes if is_gain is wanted] for wanted in (True, False))
    parts = [", ".join(part) for part in (gains, losses) if part]
    return ", but ".join(parts) or "other ranks"


def _changed_figures(site: SiteProfile, now: Solution, better: Solution) -> list[tuple[bool, str]]:
    """The figures that differ, as new instead of old, and whether they grow."""
    old, new, layers = now.choice, better.choice, site.base.layers
    figures: list[tuple[str, float, float]] = [
        ("{} steps", now.steps, better.steps),
        ("steps of {} samples", old.batch, new.batch),
        ("{} trained layers", layers - old.lowest_layer, layers - new.lowest_layer),
        ("{} bits", old.bits, new.bits),
        ("a mean rank of {}", _mean_rank(now), _mean_rank(better)),
    ]
    if (old.micro_batch, new.micro_batch) != (old.batch, new.batch):
        figures.append(("micro-batches of {} samples", old.micro_batch, new.micro_batch))
    differ = [(noun, before, after) for noun, before, after in figures if abs(after - before) > _SHOWN * before]
    return [(after > before, noun.format(f"{_figure(after)} instead of {_figure(before)}")) for noun, before, after in differ]


def _changed_techniques(old: Choice, new: Choice) -> list[tuple[bool, str]]:
    """Recomputed and cached activations, where the choices differ in them, and whether the change is a gain."""
    changes = []
    if old.checkpointing != new.checkpointing:
        changes.append((old.checkpointing, f"{'no ' if old.checkpointing else ''}recomputed activations"))
    if old.cached != new.cached:
        changes.append((new.cached, f"{'no ' if old.cached else ''}cached activations"))
    return changes


def _figure(value: float) -> str:
    """A whole number, or another with three digits."""
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def _has_all_ranks(request: PlanRequest, site: SiteProfile, solution: Solution) -> bool:
    largest = max(request.spec.planning.ranks)
    return all(solution.ranks.get(weight.name, 0) == largest for weight in site.base.weights)


def _mean_rank(solution: Solution) -> float:
    """Of the weights of the trained layers."""
    return sum(solution.ranks.values()) / max(1, len(solution.ranks))
