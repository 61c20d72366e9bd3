"""The explanation of a plan: a sentence for each choice, the constraint that binds, and what a little more of each resource would buy.

What binds is found by asking, not by rules: the site's problem is solved again with more memory, time and bandwidth, and the resource
whose increase brings most is the one that limits it. Seconds serve transfers as well, so that more of them would always buy at least as
much as more bandwidth: time is increased by a share of the seconds that the site does not spend on its upload.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

import numpy as np

from fedpipe_operator.api import Depth, parse_duration
from fedpipe_operator.formatting import bytes_text, percent, rate_text, seconds_text
from fedpipe_operator.planning.batches import with_batch
from fedpipe_operator.planning.choices import (
    Choice,
    Choices,
    kept_share_of,
    lowest_layers,
    peak_of,
    seconds_of_steps,
    seconds_per_element,
    step_seconds_of,
)
from fedpipe_operator.planning.fleet import FleetSolution, without
from fedpipe_operator.planning.memory_model import Float64
from fedpipe_operator.planning.request import DEADLINE_FRACTION, MAX_PASSES, PlanRequest
from fedpipe_operator.planning.site_problem import ROUNDING, SiteProblem, Solution
from fedpipe_operator.planning.time_model import upload_seconds, wire_bytes
from fedpipe_operator.sites import SiteProfile

MIB: Final = 2**20
NO_COMMON_CHOICE: Final = (
    "no choice of bits and rank can be run by every site: allow more bits or smaller ranks, or set planning.mode to Auto"
)
_MORE: Final = 0.25
"""By how much each resource is increased to find the one that limits."""
_NOTICEABLE: Final = 0.01
"""Gains of predicted progress below 1 % are not worth a sentence."""
_FLEET_EXPLAINED: Final = 50
"""In larger fleets the limits are not computed: each takes three more solutions a site."""
_EXAMPLES: Final = 3
_UNEQUAL: Final = 1.1
"""Scores within a tenth of each other are not worth a sentence."""


@dataclass(frozen=True)
class Limit:
    """What limits a site's contribution."""

    name: str
    """`Memory`, `Time`, `Bandwidth`, `Data` or `Spec`; empty if it is not known."""
    sentence: str


def plan_reasons(request: PlanRequest, site: SiteProfile, *, fleet: FleetSolution, solution: Solution) -> tuple[str, ...]:
    """The reasons for a plan of mode Auto, one sentence each; empty ones are left out."""
    sentences = (
        _steps_reason(request, site, fleet, solution),
        _depth_reason(request, site, solution),
        _bits_reason(request, site, solution),
        _batch_reason(request, fleet, solution),
        _micro_batch_reason(request, site, solution),
        _ranks_reason(request, site, fleet, solution),
        request.importance_note,
        _basis(site, solution.choice),
    )
    return tuple(sentence for sentence in sentences if sentence)


def limit_of(request: PlanRequest, site: SiteProfile, *, fleet: FleetSolution, solution: Solution) -> Limit:
    """The constraint that binds, with what more of each resource would buy."""
    has_all_steps = solution.steps >= request.wanted_steps(site, solution.choice.batch)
    if has_all_steps and _has_all_ranks(request, site, solution):
        return _no_more_is_wanted(request, site, solution)
    if len(fleet.problems) > _FLEET_EXPLAINED:
        return Limit("", f"what limits it is not computed in fleets of more than {_FLEET_EXPLAINED} sites")
    gains = _gains(request, site, fleet, solution)
    name = max(gains, key=lambda one: gains[one][0])
    offers = [text for gain, text in sorted(gains.values(), key=lambda offer: -offer[0]) if gain >= _NOTICEABLE]
    if not offers and has_all_steps:
        return _no_more_is_wanted(request, site, solution)
    if not offers:
        return Limit("Spec", "no resource of the site limits it noticeably: more memory, time or bandwidth would change little")
    return Limit(name, f"limited by {name.lower()}: {'; '.join(offers)}")


def _no_more_is_wanted(request: PlanRequest, site: SiteProfile, solution: Solution) -> Limit:
    """The limit of a site that has all steps that the run allows, and of ranks all or nearly all that would help."""
    training = request.spec.training
    if training.max_steps is not None and solution.steps == training.max_steps:
        return Limit("Spec", f"limited by the spec: training.maxSteps is {training.max_steps}")
    if training.epochs is not None:
        return Limit("Spec", f"limited by the spec: training.epochs is {training.epochs:g}")
    return Limit("Data", f"limited by its data: its {site.train_samples} samples are passed over {MAX_PASSES:g} times, and no more often")


def common_reasons(bits: int, rank: int, steps: int, *, weakest: str, by_speed: bool) -> tuple[str, ...]:
    """The reasons of a plan of the uniform modes."""
    equal = "as many as fit into the common length of the round" if by_speed else "equal at all sites"
    return (f"{bits} bits, rank {rank}: the same for all sites, limited by the weakest site ({weakest})", f"{steps} steps: {equal}")


def no_common_choice_reason(bits: int, rank: int) -> str:
    """Why a site that has feasible choices is excluded from a uniform plan."""
    advice = "allow bits that all sites support, or set planning.mode to Auto"
    return f"cannot run the choice that most sites can ({bits} bits, rank {rank}): {advice}"


def exclusion_reason(request: PlanRequest, site: SiteProfile, choices: Choices, adapters: Float64) -> str:
    """Why no choice is feasible at a site, and the smallest change that makes one feasible: of memory, of the deadline, or of both.

    Args:
        request: the run.
        site: the site.
        choices: its choices, none of which is feasible.
        adapters: of each choice, the elements of the smallest adapters that it can have.
    """
    if not choices.rows:
        return f"its device supports none of planning.bits ({_unsupported_bits(request, site)}): add bits that it supports"
    memory = choices.peak(adapters) / request.memory_budget(site)
    seconds = (choices.fixed + choices.step + adapters * seconds_per_element(request, site)) * ROUNDING / request.deadline
    in_memory, in_time = memory <= 1, seconds <= 1

    def remedy(row: int) -> str:
        needs = [_more_memory(request, site, float(memory[row]))] if not in_memory[row] else []
        needs += [_more_time(request, float(seconds[row]))] if not in_time[row] else []
        return f"{' and '.join(needs)} ({_describe(site, choices.rows[row])})"

    remedies = []
    if in_time.any():
        remedies.append(remedy(int(np.where(in_time, memory, np.inf).argmin())))
    if in_memory.any():
        remedies.append(remedy(int(np.where(in_memory, seconds, np.inf).argmin())))
    return f"not even its smallest plan fits: {'; or '.join(remedies or [remedy(int(memory.argmin()))])}"


def _gains(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> dict[str, tuple[float, str]]:
    """By resource: the relative gain of predicted progress that more of it brings, and what it buys, in words."""
    seconds, frontiers = fleet.length.seconds, fleet.problems[site.name].frontiers
    sending = request.correction(site).transfers * upload_seconds(site, wire_bytes(site, solution.ranks, request.head))
    more_seconds = _MORE * max(0.0, seconds - sending)
    richer = {
        "Memory": (replace(site, memory_bytes=int(site.memory_bytes * (1 + _MORE))), seconds),
        "Bandwidth": (replace(site, up=site.up * (1 + _MORE)), seconds),
        "Time": (site, seconds + more_seconds),
    }
    amounts = {
        "Memory": f"{bytes_text(_MORE * site.memory_bytes)} more memory",
        "Bandwidth": f"{rate_text(_MORE * site.up)} more upload bandwidth",
        "Time": f"{seconds_text(more_seconds)} more a round",
    }
    gains = {}
    for name, (changed, allowed) in richer.items():
        problem = SiteProblem.of(request, changed, frontiers)
        # What too few samples would train is left out here as well: it is no gain of more resources.
        more = problem.solve(allowed)
        better = with_batch(request, changed, without(more, fleet.uncovered, problem), fleet.most_steps, allowed) if more else solution
        gains[name] = (better.value / solution.value - 1, f"{amounts[name]} would buy {_difference(site, solution, better)}")
    return gains


def _difference(site: SiteProfile, now: Solution, better: Solution) -> str:
    """What another solution has more of, in words."""
    layers = site.base.layers
    changes = [
        _count(better.steps - now.steps, "more step") if better.steps > now.steps else "",
        f"{better.choice.bits} bits" if better.choice.bits > now.choice.bits else "",
        f"{layers - better.choice.lowest_layer} trained layers" if better.choice.lowest_layer < now.choice.lowest_layer else "",
        f"passes of {better.choice.micro_batch} samples" if better.choice.micro_batch > now.choice.micro_batch else "",
        f"a mean rank of {_mean_rank(better):.3g}" if _mean_rank(better) > _mean_rank(now) * 1.01 else "",
        "no recomputed activations" if now.choice.checkpointing and not better.choice.checkpointing else "",
    ]
    found = ", ".join(change for change in changes if change) or "a little"
    return f"{found} (predicted progress +{percent(better.value / now.value - 1)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _steps_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    step = seconds_of_steps(request, site, solution.choice, solution.steps) / solution.steps
    batch = solution.choice.batch
    passes = solution.steps * batch / site.train_samples
    done = f"{_count(solution.steps, 'step')} of {_count(batch, 'sample')} ({passes:.2g} passes over {site.train_samples} samples)"
    if solution.steps >= request.wanted_steps(site, batch):
        return f"{done}: all that the spec and the data allow; the round takes {seconds_text(fleet.length.seconds)}"
    length = f"a round of {seconds_text(fleet.length.seconds)}, {fleet.length.reason}"
    return f"{done}: as many as fit at {seconds_text(step)} a step into {length}"


def _depth_reason(request: PlanRequest, site: SiteProfile, solution: Solution) -> str:
    layers, choice = site.base.layers, solution.choice
    trained = layers - choice.lowest_layer
    if choice.lowest_layer == 0:
        if request.is_stalled and request.spec.planning.depth is Depth.AUTO:
            return f"all {layers} layers are trained, because the last rounds brought no improvement"
        possible = lowest_layers(request, site)
        if len(possible) == 1:
            return ""
        half = choice._replace(lowest_layer=possible[len(possible) // 2])
        saved = 1 - step_seconds_of(request, site, half) / step_seconds_of(request, site, choice)
        shallow = layers - half.lowest_layer
        return f"all {layers} layers are trained: only the top {shallow} would save {percent(saved)} of a step, and reach fewer weights"
    if request.is_stalled:
        reason = "more do not fit into its memory and the deadline, though the last rounds brought no improvement"
        return f"the top {trained} of {layers} layers are trained: {reason}"
    every_layer = choice._replace(lowest_layer=0, cached=False)
    saved = 1 - seconds_of_steps(request, site, choice, solution.steps) / seconds_of_steps(request, site, every_layer, solution.steps)
    as_others = ", as deep as at any site, so that caches stay of use" if choice.lowest_layer == request.floor else ""
    which = f"the top {trained} of {layers} layers are trained{as_others}"
    saves = f"saves {percent(saved)} of a step"
    if choice.cached:
        return f"{which}: the layers below need no backward pass, and {_cache_reason(request, site, choice)}; that {saves} on average"
    return f"{which}: the layers below need no backward pass, which {saves}"


def _cache_reason(request: PlanRequest, site: SiteProfile, choice: Choice) -> str:
    """What the cache is for, as a clause."""
    kept = kept_share_of(request, site, choice)
    if kept:
        return f"the site's cache holds {percent(kept)} of their output"
    lasts = ", in the next rounds too" if choice.lowest_layer == request.floor and request.rounds_left > 1 else ""
    return f"after the first pass over the data their output is read from the site's cache{lasts}"


def _bits_reason(request: PlanRequest, site: SiteProfile, solution: Solution) -> str:
    choice = solution.choice
    higher = sorted(bits for bits in set(request.spec.planning.bits) if bits > choice.bits)
    if not higher:
        return f"{choice.bits} bits: the most that planning.bits allows"
    if higher[0] in site.unsupported:
        return f"{choice.bits} bits: the device does not support {higher[0]} bits: {site.unsupported[higher[0]]}"
    other = choice._replace(bits=higher[0])
    need = peak_of(request, site, other, solution.ranks)
    budget = request.memory_budget(site)
    if need > budget:
        ran_out = ", and ran out of memory when the site was profiled" if higher[0] in site.out_of_memory else ""
        return f"{choice.bits} bits: {higher[0]} bits would need {bytes_text(need)}{ran_out}; {_memory_budget(request, site)}"
    slower = step_seconds_of(request, site, other) / step_seconds_of(request, site, choice) - 1
    if slower < _NOTICEABLE:
        return f"{choice.bits} bits: {higher[0]} bits would leave too little memory or time for more useful things"
    return f"{choice.bits} bits: at {higher[0]} bits a step would take {percent(slower)} longer"


def _batch_reason(request: PlanRequest, fleet: FleetSolution, solution: Solution) -> str:
    batch = solution.choice.batch
    if batch == request.batch:
        return ""
    return (
        f"a step has {_count(batch, 'sample')} instead of {request.batch}: a slow site takes smaller steps, and more of them, "
        f"so that its part of the update is not made of a few (the fastest site takes {fleet.most_steps})"
    )


def _micro_batch_reason(request: PlanRequest, site: SiteProfile, solution: Solution) -> str:
    choice = solution.choice
    recomputed = "; activations are recomputed, which saves memory and costs time" if choice.checkpointing else ""
    if choice.micro_batch == choice.batch:
        return f"a step is one pass of all {choice.batch} samples{recomputed}"
    whole = choice._replace(micro_batch=choice.batch)
    need = peak_of(request, site, whole, solution.ranks)
    passes = -(-choice.batch // choice.micro_batch)
    split = f"a step is {passes} passes of {choice.micro_batch} samples"
    if need > request.memory_budget(site):
        return f"{split}: {choice.batch} at once would need {bytes_text(need)}; {_memory_budget(request, site)}{recomputed}"
    return f"{split}: smaller passes are faster at this site{recomputed}"


def _ranks_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    ranks = {name: rank for name, rank in solution.ranks.items() if rank}
    low, high = min(ranks.values()), max(ranks.values())
    count = f"{len(ranks)} of {len(site.base.weights)} weights {'gets' if len(ranks) == 1 else 'get'} an adapter, "
    dropped = f"; {len(fleet.uncovered)} weights get none at any site, because too few samples would train them" if fleet.uncovered else ""
    if low == high == max(request.spec.planning.ranks):
        return f"{count}all of rank {high}, the largest of planning.ranks{dropped}"
    span = f"of rank {low}" if low == high else f"of rank {low} to {high}"
    return f"{count}{span}, placed where each byte is predicted to gain most{_most_important(request, ranks)}{dropped}"


def _most_important(request: PlanRequest, ranks: Mapping[str, int]) -> str:
    """The most important of the weights with a rank; empty where all count the same."""
    scores = {name: request.scores.get(name, 1.0) for name in ranks}
    if max(scores.values()) < _UNEQUAL * min(scores.values()):
        return ""
    top = sorted(scores, key=lambda name: -scores[name])[:_EXAMPLES]
    return "; most important: " + ", ".join(f"{name} ({scores[name]:.2g} × the mean)" for name in top)


def _basis(site: SiteProfile, choice: Choice) -> str:
    measured = any(point.peak_memory_bytes > 0 for point in site.points_at(choice.bits))
    if measured:
        return f"the forecast of memory is calibrated with peaks measured at {choice.bits} bits"
    return f"the forecast of memory is by formula only, because no peak was measured at {choice.bits} bits"


def _has_all_ranks(request: PlanRequest, site: SiteProfile, solution: Solution) -> bool:
    largest = max(request.spec.planning.ranks)
    return all(solution.ranks.get(weight.name, 0) == largest for weight in site.base.weights)


def _mean_rank(solution: Solution) -> float:
    return sum(solution.ranks.values()) / max(1, len(solution.ranks))


def _memory_budget(request: PlanRequest, site: SiteProfile) -> str:
    return f"a plan may use {bytes_text(request.memory_budget(site))} of the site's {bytes_text(site.memory_bytes)}"


def _more_memory(request: PlanRequest, site: SiteProfile, factor: float) -> str:
    """What to do if the smallest plan needs the factor of the memory that a plan may use."""
    advice = "allow fewer bits, smaller ranks or smaller batchSizes, or lower task.maxLength"
    if request.correction(site).memory_limit is not None:
        return f"after a plan of it ran out of memory, {_memory_budget(request, site)}: {advice}"
    return f"give it {ceil(site.memory_bytes * factor / MIB + 1e-6)}Mi of memory instead of {bytes_text(site.memory_bytes)}, or {advice}"


def _more_time(request: PlanRequest, factor: float) -> str:
    """What to do if loading, transfers and one step take the factor of the time that they may take."""
    deadline = request.spec.rounds.deadline
    longer = ceil(parse_duration(deadline) * factor + 1e-6)
    used = f"a plan may use {percent(DEADLINE_FRACTION)} of it for loading, evaluation, transfers and training"
    return f"raise rounds.deadline from {deadline} to {longer}s ({used}), or its bandwidth if transfers take most of that"


def _describe(site: SiteProfile, choice: Choice) -> str:
    trained = site.base.layers - choice.lowest_layer
    layers = "all layers" if choice.lowest_layer == 0 else f"the top {trained} of {site.base.layers} layers"
    return f"at {choice.bits} bits, in passes of {choice.micro_batch}, {layers}"


def _unsupported_bits(request: PlanRequest, site: SiteProfile) -> str:
    return "; ".join(f"{bits}: {site.unsupported[bits]}" for bits in sorted(set(request.spec.planning.bits)))
