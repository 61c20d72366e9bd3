"""The explanation of a plan: a sentence for each choice. `limits` has the one about what limits it, `exclusion` why a site has no plan."""

from collections.abc import Mapping, Sequence
from typing import Final

from fedpipe_operator.api import Depth
from fedpipe_operator.formatting import bytes_text, counted, passes_text, percent, seconds_text
from fedpipe_operator.planning.choices import (
    Choice,
    kept_share_of,
    lowest_layers,
    seconds_of_steps,
    step_seconds_of,
)
from fedpipe_operator.planning.fleet import FleetSolution
from fedpipe_operator.planning.forecast import is_in_memory, peak_of, training_peak_of
from fedpipe_operator.planning.importance import exploring
from fedpipe_operator.planning.passes import largest_pass, passes, step_text
from fedpipe_operator.planning.request import DEADLINE_FRACTION, PlanRequest
from fedpipe_operator.planning.site_problem import Solution
from fedpipe_operator.planning.sizes import head_parameters, update_bytes
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Forecast

NO_COMMON_CHOICE: Final = (
    "no choice of bits and rank can be run by every site: allow more bits or smaller ranks, or set planning.mode to Auto"
)
_NOTICEABLE: Final = 0.01
"""Steps that are slower by less than 1 % are not worth a sentence."""
_EXAMPLES: Final = 3
_UNEQUAL: Final = 1.1
"""Scores within a tenth of each other are not worth a sentence."""


def plan_reasons(request: PlanRequest, site: SiteProfile, *, fleet: FleetSolution, solution: Solution) -> tuple[str, ...]:
    """The reasons for a plan of mode Auto, one sentence each; empty ones are left out."""
    sentences = (
        _steps_reason(request, site, fleet, solution),
        _depth_reason(request, site, fleet, solution),
        _broken_cache_reason(request, site),
        _bits_reason(request, site, solution),
        _batch_reason(request, site, fleet, solution),
        _micro_batch_reason(request, site, solution),
        not_recomputed_reason(request, site),
        _ranks_reason(request, site, fleet, solution),
        whole_reason(request, site),
        request.importance_note,
        _basis(site, solution.choice),
    )
    return tuple(sentence for sentence in sentences if sentence)


def common_choice_reason(bits: int, rank: int, limiting: Sequence[str] | None) -> str:
    """Why the uniform modes give all sites these bits and this rank.

    Args:
        bits: of the choice.
        rank: of the choice.
        limiting: the sites that can run nothing larger; None if the spec allows nothing larger.
    """
    reason = "no larger choice can be run by all of them"
    if limiting is None:
        reason = "the most that planning.bits and planning.ranks allow"
    elif limiting:
        others = f" and {counted(len(limiting) - _EXAMPLES, 'other site')}" if len(limiting) > _EXAMPLES else ""
        reason = f"limited by {', '.join(limiting[:_EXAMPLES])}{others}, which can run no more"
    return f"{bits} bits, rank {rank}: the same for all sites, {reason}"


def no_common_choice_reason(bits: int, rank: int) -> str:
    """Why a site that has feasible choices is excluded from a uniform plan."""
    advice = "allow bits that all sites support, or set planning.mode to Auto"
    return f"cannot run the choice that most sites can ({bits} bits, rank {rank}): {advice}"


def given_reasons(  # noqa: PLR0913 -- a plan, its forecast, and what it was made of
    request: PlanRequest, site: SiteProfile, choice: Choice, ranks: Mapping[str, int], *, predicted: Forecast, wants_cache: bool
) -> tuple[str, ...]:
    """The reasons of a plan that the spec gives: it is obeyed, and told where its forecast is more than a plan may use.

    Its cached activations are left out where the site's cache does not work (`wants_cache`: it has any).
    """
    reasons = ["given by planning.plans"]
    if whole := whole_reason(request, site):
        reasons.append(whole)
    if wants_cache and (broken := _broken_cache_reason(request, site)):
        reasons.append(broken)
    if not is_in_memory(request, site, choice, ranks):
        need, budget = _need_and_budget(request, site, choice, ranks)
        advice = "give it fewer bits or layers, a smaller rank or a smaller microBatchSize"
        reasons.append(f"it may run out of memory: {need} are predicted, and {budget}: {advice}")
    if predicted.seconds > request.deadline:
        deadline = request.spec.rounds.deadline
        used = f"a plan may use {seconds_text(request.deadline)} ({percent(DEADLINE_FRACTION)} of rounds.deadline, {deadline})"
        fewer = "give it fewer steps or layers, or " if predicted.seconds - predicted.step_seconds < request.deadline else ""
        reasons.append(
            f"it may miss the deadline: {seconds_text(predicted.seconds)} are predicted, and {used}: {fewer}raise rounds.deadline"
        )
    return tuple(reasons)


def _steps_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    step = seconds_of_steps(request, site, solution.choice, solution.steps) / solution.steps
    batch, samples = solution.choice.batch, site.train_samples
    over = f"{passes_text(passes(samples, solution.steps, batch))} over {counted(samples, 'sample')}"
    done = f"{counted(solution.steps, 'step')} of {step_text(samples, batch)} ({over})"
    if solution.steps >= request.wanted_steps(site, batch):
        return f"{done}: all that the spec and the data allow; the round takes {seconds_text(fleet.length.seconds)}"
    length = f"a round of {seconds_text(fleet.length.seconds)}, {fleet.length.reason}"
    return f"{done}: as many as fit at {seconds_text(step)} a step into {length}"


def _depth_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    layers, choice = site.base.layers, solution.choice
    trained = layers - choice.lowest_layer
    if choice.lowest_layer == 0:
        possible = lowest_layers(request, site)
        if len(possible) == 1:
            return ""
        if request.is_stalled and request.spec.planning.depth is Depth.AUTO:
            return f"all {layers} layers are trained since the improvement of the run stalled"
        half = choice._replace(lowest_layer=possible[len(possible) // 2])
        saved = 1 - step_seconds_of(request, site, half) / step_seconds_of(request, site, choice)
        shallow = layers - half.lowest_layer
        fewer = f"training only the top {counted(shallow, 'layer')} would save {percent(saved)} of a step, but reach fewer weights"
        return f"all {layers} layers are trained: {fewer}"
    if request.is_stalled:
        could = fleet.problems[site.name].rows.lowest.min() < choice.lowest_layer
        limit = "too few sites or samples would train lower ones" if could else "more do not fit into its memory and the deadline"
        reason = f"{limit}, though the improvement of the run stalled"
        return f"the top {trained} of {layers} layers are trained: {reason}"
    every_layer = choice._replace(lowest_layer=0, cached=False)
    saved = 1 - seconds_of_steps(request, site, choice, solution.steps) / seconds_of_steps(request, site, every_layer, solution.steps)
    which = f"the top {trained} of {layers} layers are trained{_floor_reason(request, site, choice)}"
    saves = f"saves {percent(saved)} of a step"
    if choice.cached:
        return f"{which}: the layers below need no backward pass, and {_cache_reason(request, site, choice)}; that {saves} on average"
    return f"{which}: the layers below need no backward pass, which {saves}"


def _floor_reason(request: PlanRequest, site: SiteProfile, choice: Choice) -> str:
    """That the depth is the fleet's, as a clause; empty if it is the site's own."""
    if choice.lowest_layer != request.floor:
        return ""
    valid = ", so that what the caches hold stays valid" if request.has_cache(site) else ""
    return f", and no site trains a lower layer in this run unless it stalls{valid}"


def _cache_reason(request: PlanRequest, site: SiteProfile, choice: Choice) -> str:
    """What the cache is for, as a clause."""
    kept = kept_share_of(request, site, choice)
    if kept:
        return f"the site's cache holds {percent(kept)} of their output"
    lasts = ", in the next rounds too" if choice.lowest_layer == request.floor and request.rounds_left > 1 else ""
    return f"after the first pass over the data their output is read from the site's cache{lasts}"


def _broken_cache_reason(request: PlanRequest, site: SiteProfile) -> str:
    """That the site's cache is not used because it does not work; empty if it does, or there is none."""
    problem = request.cache_problem(site)
    return f"its cache does not work, so that nothing is planned to be read from it: {problem}" if problem else ""


def whole_reason(request: PlanRequest, site: SiteProfile) -> str:
    """What the modules that are trained whole take; empty without any."""
    if not site.base.whole:
        return ""
    count, elements = len(site.base.whole), head_parameters(site.base.whole)
    are = "is" if count == 1 else "are"
    beside = "gradients, optimiser and proximal term" if request.options.is_proximal else "gradients and optimiser"
    memory = f"{bytes_text(request.options.trained_bytes * elements)} of memory with {beside}"
    sent = f"{bytes_text(update_bytes((), {}, site.base.whole, request.codecs))} of each update"
    return f"{counted(count, 'tensor')} of planning.modulesToSave {are} trained whole: {memory}, and {sent}"


def not_recomputed_reason(request: PlanRequest, site: SiteProfile) -> str:
    """That the spec's wish to recompute activations cannot be met; empty if it can, or there is none."""
    if not request.spec.training.gradient_checkpointing or site.base.supports_gradient_checkpointing:
        return ""
    cannot = f"transformers cannot do that in a {site.base.architecture} model"
    return f"activations are kept although training.gradientCheckpointing asks to recompute them: {cannot}"


def _bits_reason(request: PlanRequest, site: SiteProfile, solution: Solution) -> str:
    choice = solution.choice
    higher = sorted(bits for bits in set(request.spec.planning.bits) if bits > choice.bits)
    if not higher:
        return f"the base is kept at {choice.bits} bits a number, the most that planning.bits allows"
    if higher[0] in site.unsupported:
        return f"{choice.bits} bits: the device does not support {higher[0]} bits: {site.unsupported[higher[0]]}"
    other = choice._replace(bits=higher[0])
    if not is_in_memory(request, site, other, solution.ranks):
        need, budget = _need_and_budget(request, site, other, solution.ranks)
        ran_out = ", and ran out of memory when the site was profiled" if higher[0] in site.out_of_memory else ""
        return f"{choice.bits} bits: {higher[0]} bits would need {need}{ran_out}; {budget}"
    slower = step_seconds_of(request, site, other) / step_seconds_of(request, site, choice) - 1
    if slower < _NOTICEABLE:
        return f"{choice.bits} bits: {higher[0]} bits would leave too little memory or time for more useful things"
    return f"{choice.bits} bits: at {higher[0]} bits a step would take {percent(slower)} longer"


def _batch_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    batch, whole = solution.choice.batch, request.batch_of(site)
    if batch == whole:
        return ""
    return (
        f"a step has {step_text(site.train_samples, batch)} instead of {whole}: the site is slow or has few samples, so that it "
        f"takes smaller steps, and more of them (another site takes {fleet.most_steps})"
    )


def _micro_batch_reason(request: PlanRequest, site: SiteProfile, solution: Solution) -> str:
    choice = solution.choice
    recomputed = "; activations are recomputed, which saves memory and costs time" if choice.checkpointing else ""
    divided = f", divided among {site.devices} devices" if site.devices > 1 else ""
    largest = largest_pass(choice.batch, site.devices)
    if choice.micro_batch == largest:
        samples = step_text(site.train_samples, choice.batch)
        return f"{'the' if ' or ' in samples else 'all'} {samples} of a step are computed at once{divided}{recomputed}"
    whole = choice._replace(micro_batch=largest)
    at_most = "at most " if choice.batch % (site.devices * choice.micro_batch) else ""
    split = f"a step is computed in micro-batches of {at_most}{counted(choice.micro_batch, 'sample')}{divided}"
    if not is_in_memory(request, site, whole, solution.ranks):
        need, budget = _need_and_budget(request, site, whole, solution.ranks)
        return f"{split}: {largest} at once would need {need}; {budget}{recomputed}"
    return f"{split}: these are faster at this site{recomputed}"


def _ranks_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    ranks = {name: rank for name, rank in solution.ranks.items() if rank}
    low, high = min(ranks.values()), max(ranks.values())
    count = f"{len(ranks)} of {len(site.base.weights)} weights {'gets' if len(ranks) == 1 else 'get'} an adapter, "
    few = len(fleet.uncovered)
    gets, them = ("gets", "it") if few == 1 else ("get", "them")
    rest = f"{counted(few, 'weight')} {gets} none at any site, because too few sites or samples would train {them}"
    dropped = f"; {rest}" if few else ""
    if low == high == max(request.spec.planning.ranks):
        return f"{count}all of rank {high}, the largest of planning.ranks{dropped}"
    span = f"of rank {low}" if low == high else f"of rank {low} to {high}"
    placed = f"{span}, placed where each byte is predicted to gain most{_most_important(request, ranks)}"
    return f"{count}{placed}{exploring(request.spec.planning.exploration, has_scores=_are_unequal(request.scores))}{dropped}"


def _are_unequal(scores: Mapping[str, float]) -> bool:
    return bool(scores) and max(scores.values()) >= _UNEQUAL * min(scores.values())


def _most_important(request: PlanRequest, ranks: Mapping[str, int]) -> str:
    """The most important of the weights with a rank; empty where all count the same."""
    scores = {name: request.scores.get(name, 1.0) for name in ranks}
    if not _are_unequal(scores):
        return ""
    top = sorted(scores, key=lambda name: -scores[name])[:_EXAMPLES]
    return "; most important: " + ", ".join(f"{name} ({scores[name]:.2g} × the mean)" for name in top)


def _basis(site: SiteProfile, choice: Choice) -> str:
    measured = any(point.peak_memory_bytes > 0 for point in site.points_at(choice.bits))
    if measured:
        return f"the forecast of memory is calibrated with peaks measured at {choice.bits} bits"
    return f"the forecast of memory is by formula only, because no peak was measured at {choice.bits} bits"


def training_budget(request: PlanRequest, site: SiteProfile) -> str:
    """What training may use of the site's memory, as a clause."""
    return f"training may use {bytes_text(request.memory_budget(site))} of the site's {bytes_text(site.memory_bytes)}"


def _need_and_budget(request: PlanRequest, site: SiteProfile, choice: Choice, ranks: Mapping[str, int]) -> tuple[str, str]:
    """What a choice that is not in memory needs, and, as a clause, what it may use; those of training if the load is in memory."""
    need, budget = peak_of(request, site, choice, ranks), request.load_budget(site)
    if need > budget:
        return bytes_text(need), f"a plan may use {bytes_text(budget)} of the site's {bytes_text(site.memory_bytes)}"
    return f"{bytes_text(training_peak_of(request, site, choice, ranks))} for training", training_budget(request, site)
