"""The explanation of a plan: a sentence for each choice, the constraint that binds, and what a little more of each resource would buy.

What binds is found by asking, not by rules: the site's problem is solved again with more memory, time and bandwidth, and the resource
whose increase brings most is the one that limits it.
"""

from dataclasses import dataclass, replace
from typing import Final

from fedpipe_operator.formatting import bytes_text, percent, seconds_text
from fedpipe_operator.planning.choices import Choice, choices_of, lowest_layers, seconds_per_element, step_seconds_of
from fedpipe_operator.planning.fleet import FleetSolution, frontiers_of
from fedpipe_operator.planning.frontier import rank_value
from fedpipe_operator.planning.memory_model import TRAINED_BYTES, Step, predict_peak
from fedpipe_operator.planning.request import MEMORY_FRACTION, PlanRequest
from fedpipe_operator.planning.site_problem import SiteProblem, Solution
from fedpipe_operator.planning.sizes import WIRE_BYTES
from fedpipe_operator.sites import SiteProfile

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


@dataclass(frozen=True)
class Limit:
    """What limits a site's contribution."""

    name: str
    """`Memory`, `Time`, `Bandwidth`, `Data` or `Spec`."""
    sentence: str


def plan_reasons(request: PlanRequest, site: SiteProfile, *, fleet: FleetSolution, solution: Solution) -> tuple[str, ...]:
    """The reasons for a plan of mode Auto, one sentence each; empty ones are left out."""
    sentences = (
        request.notes.get(site.name, ""),
        _steps_reason(request, site, fleet, solution),
        _depth_reason(request, site, solution.choice),
        _bits_reason(request, site, solution),
        _micro_batch_reason(request, site, solution),
        _ranks_reason(request, site, fleet, solution),
        request.importance_note,
        _basis(site, solution.choice),
    )
    return tuple(sentence for sentence in sentences if sentence)


def limit_of(request: PlanRequest, site: SiteProfile, *, fleet: FleetSolution, solution: Solution) -> Limit:
    """The constraint that binds, with what more of each resource would buy."""
    if solution.steps >= request.wanted_steps(site) and _has_all_ranks(request, site, solution):
        spec = request.spec.training
        if spec.max_steps is not None and solution.steps == spec.max_steps:
            return Limit("Spec", f"limited by the spec: training.maxSteps is {spec.max_steps}, and every adapter has the largest rank")
        return Limit("Data", f"limited by its data: {site.train_samples} samples are passed over as often as a round allows")
    if len(fleet.problems) > _FLEET_EXPLAINED:
        return Limit("Time", "limited by the length of the round")
    gains = _gains(request, site, fleet, solution)
    name = max(gains, key=lambda one: gains[one][0])
    offers = [text for gain, text in gains.values() if gain >= _NOTICEABLE]
    if not offers:
        return Limit("Spec", "no resource of the site limits it noticeably: more memory, time or bandwidth would change little")
    return Limit(name, f"limited by {name.lower()}: {'; '.join(offers)}")


def common_reasons(bits: int, rank: int, steps: int, *, weakest: str, by_speed: bool) -> tuple[str, ...]:
    """The reasons of a plan of the uniform modes."""
    equal = "as many as fit into the common length of the round" if by_speed else "equal at all sites"
    return (f"{bits} bits, rank {rank}: the same for all sites, limited by the weakest site ({weakest})", f"{steps} steps: {equal}")


def no_common_choice_reason(bits: int, rank: int) -> str:
    """Why a site that has feasible choices is excluded from a uniform plan."""
    advice = "allow bits that all sites support, or set planning.mode to Auto"
    return f"cannot run the choice that most sites can ({bits} bits, rank {rank}): {advice}"


def exclusion_reason(request: PlanRequest, site: SiteProfile) -> str:
    """Why no choice is feasible at a site, and the smallest change that would make one feasible."""
    choices = choices_of(request, site)
    if not choices.rows:
        return f"its device supports none of planning.bits ({_unsupported_bits(request, site)}): add bits that it supports"
    least = min(_smallest_adapters(request, site).values())
    needed = choices.memory + (TRAINED_BYTES - WIRE_BYTES) * least
    fits = choices.room >= least
    if not fits.any():
        row = int(needed.argmin())
        memory = max(float(needed[row]), float(choices.load[row])) / MEMORY_FRACTION
        return (
            f"needs {bytes_text(memory)} of memory for the smallest plan ({_describe(choices.rows[row])}) and has"
            f" {bytes_text(site.memory_bytes)}: raise capacity.memory, allow fewer bits or smaller batchSizes, or lower task.maxLength"
        )
    seconds = [
        float(fixed + step + least * seconds_per_element(site)) if fit else float("inf")
        for fixed, step, fit in zip(choices.fixed, choices.step, fits, strict=True)
    ]
    row = min(range(len(seconds)), key=seconds.__getitem__)
    return (
        f"no training step fits: a plan may use {seconds_text(request.deadline)} of rounds.deadline, but loading, transfers and one step"
        f" take {seconds_text(seconds[row])} ({_describe(choices.rows[row])}): raise rounds.deadline, or the site's bandwidth"
    )


def _gains(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> dict[str, tuple[float, str]]:
    """By resource: the relative gain of predicted progress that more of it brings, and a sentence that says what it buys."""
    seconds, frontiers = fleet.length.seconds, fleet.problems[site.name].frontiers
    richer = {
        "Memory": (replace(site, memory_bytes=int(site.memory_bytes * (1 + _MORE))), seconds, bytes_text(_MORE * site.memory_bytes)),
        "Bandwidth": (replace(site, up=site.up * (1 + _MORE)), seconds, f"{_MORE * site.up / 1e6:.3g} Mbit/s upwards"),
        "Time": (site, seconds * (1 + _MORE), seconds_text(_MORE * seconds)),
    }
    gains = {}
    for name, (changed, allowed, amount) in richer.items():
        better = SiteProblem.of(request, changed, frontiers).solve(allowed)
        gain = better.value / solution.value - 1 if better else 0.0
        gains[name] = (gain, f"{amount} more would buy {_difference(site, solution, better)}" if better else "")
    return gains


def _difference(site: SiteProfile, now: Solution, better: Solution) -> str:
    """What another solution has more of, in words."""
    layers = site.base.layers
    changes = [
        _more_steps(better.steps - now.steps),
        f"{better.choice.bits} bits" if better.choice.bits > now.choice.bits else "",
        f"{layers - better.choice.lowest_layer} trained layers" if better.choice.lowest_layer < now.choice.lowest_layer else "",
        f"passes of {better.choice.micro_batch} samples" if better.choice.micro_batch > now.choice.micro_batch else "",
        f"a mean rank of {_mean_rank(better):.3g}" if _mean_rank(better) > _mean_rank(now) * 1.01 else "",
        "no recomputed activations" if now.choice.checkpointing and not better.choice.checkpointing else "",
    ]
    found = ", ".join(change for change in changes if change) or "a little"
    return f"{found} (predicted progress +{percent(better.value / now.value - 1)})"


def _more_steps(more: int) -> str:
    return f"{more} more step{'s' if more > 1 else ''}" if more > 0 else ""


def _steps_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    step = step_seconds_of(request, site, solution.choice)
    passes = solution.steps * request.batch / site.train_samples
    done = f"{solution.steps} steps of {request.batch} samples ({passes:.2g} passes over {site.train_samples} samples)"
    if solution.steps >= request.wanted_steps(site):
        return f"{done}: all that the spec and the data allow; the round takes {seconds_text(fleet.length.seconds)}"
    length = f"a round of {seconds_text(fleet.length.seconds)}, {fleet.length.reason}"
    return f"{done}: as many as fit at {seconds_text(step)} a step into {length}"


def _depth_reason(request: PlanRequest, site: SiteProfile, choice: Choice) -> str:
    layers = site.base.layers
    trained = layers - choice.lowest_layer
    if choice.lowest_layer == 0:
        if len(lowest_layers(request, site)) == 1:
            return ""
        half = choice._replace(lowest_layer=lowest_layers(request, site)[len(lowest_layers(request, site)) // 2])
        saved = 1 - step_seconds_of(request, site, half) / step_seconds_of(request, site, choice)
        shallow = layers - half.lowest_layer
        return f"all {layers} layers are trained: only the top {shallow} would save {percent(saved)} of a step, and reach fewer weights"
    saved = 1 - step_seconds_of(request, site, choice) / step_seconds_of(request, site, choice._replace(lowest_layer=0))
    return (
        f"the top {trained} of {layers} layers are trained: the layers below need no backward pass, which saves {percent(saved)} of a step"
    )


def _bits_reason(request: PlanRequest, site: SiteProfile, solution: Solution) -> str:
    choice = solution.choice
    higher = sorted(bits for bits in set(request.spec.planning.bits) if bits > choice.bits)
    if not higher:
        return f"{choice.bits} bits: the most of planning.bits"
    if higher[0] in site.unsupported:
        return f"{choice.bits} bits: the device does not support {higher[0]} bits: {site.unsupported[higher[0]]}"
    other = choice._replace(bits=higher[0])
    need = _memory_of(request, site, other, solution)
    budget = request.memory_budget(site)
    if need > budget:
        return f"{choice.bits} bits: {higher[0]} bits would need {bytes_text(need)}; {_memory_budget(request, site)}"
    slower = step_seconds_of(request, site, other) / step_seconds_of(request, site, choice) - 1
    return f"{choice.bits} bits: at {higher[0]} bits a step would take {percent(abs(slower))} {'longer' if slower > 0 else 'less'}"


def _micro_batch_reason(request: PlanRequest, site: SiteProfile, solution: Solution) -> str:
    choice = solution.choice
    recomputed = "; activations are recomputed, which saves memory and costs time" if choice.checkpointing else ""
    if choice.micro_batch == request.batch:
        return f"all {request.batch} samples of a step in one pass{recomputed}"
    whole = choice._replace(micro_batch=request.batch)
    need = _memory_of(request, site, whole, solution)
    passes = -(-request.batch // choice.micro_batch)
    split = f"a step is {passes} passes of {choice.micro_batch} samples"
    if need > request.memory_budget(site):
        return f"{split}: {request.batch} at once would need {bytes_text(need)}; {_memory_budget(request, site)}{recomputed}"
    return f"{split}: smaller passes are faster at this site{recomputed}"


def _ranks_reason(request: PlanRequest, site: SiteProfile, fleet: FleetSolution, solution: Solution) -> str:
    ranks = {name: rank for name, rank in solution.ranks.items() if rank}
    low, high = min(ranks.values()), max(ranks.values())
    count = f"{len(ranks)} of {len(site.base.weights)} weights get an adapter, "
    dropped = f"; {len(fleet.uncovered)} weights get none at any site, because too few samples would train them" if fleet.uncovered else ""
    if low == high == max(request.spec.planning.ranks):
        return f"{count}all of rank {high}, the largest of planning.ranks{dropped}"
    top = sorted(ranks, key=lambda name: (-request.importance.get(name, 1.0) * rank_value(ranks[name]), name))[:_EXAMPLES]
    shown = ", ".join(f"{name} ({request.importance.get(name, 1.0):.2g} × the mean)" for name in top)
    span = f"of rank {low}" if low == high else f"of rank {low} to {high}"
    return f"{count}{span}, those with the most predicted gain per element; first {shown}{dropped}"


def _basis(site: SiteProfile, choice: Choice) -> str:
    measured = any(point.peak_memory_bytes > 0 for point in site.points_at(choice.bits))
    if measured:
        return f"the forecast of memory is calibrated with peaks measured at {choice.bits} bits"
    return f"the forecast of memory is by formula only, because no peak was measured at {choice.bits} bits"


def _memory_of(request: PlanRequest, site: SiteProfile, choice: Choice, solution: Solution) -> float:
    """Peak bytes of another choice with the solution's ranks."""
    step = Step(choice.micro_batch, request.longest_sequence(site), choice.lowest_layer, choice.checkpointing)
    return request.correction(site).memory * float(
        predict_peak(site, bits=choice.bits, step=step, ranks=solution.ranks, options=request.options)
    )


def _has_all_ranks(request: PlanRequest, site: SiteProfile, solution: Solution) -> bool:
    largest = max(request.spec.planning.ranks)
    return all(solution.ranks.get(weight.name, 0) == largest for weight in site.base.weights)


def _mean_rank(solution: Solution) -> float:
    return sum(solution.ranks.values()) / max(1, len(solution.ranks))


def _smallest_adapters(request: PlanRequest, site: SiteProfile) -> dict[int, int]:
    """The elements of the smallest adapter, by lowest layer."""
    frontiers = frontiers_of(request, {site.name: site})
    return {lowest: min(step.cost for step in frontier.increments) for lowest, frontier in frontiers.items()}


def _memory_budget(request: PlanRequest, site: SiteProfile) -> str:
    return f"a plan may use {bytes_text(request.memory_budget(site))} of the site's {bytes_text(site.memory_bytes)}"


def _describe(choice: Choice) -> str:
    return f"{choice.bits} bits, passes of {choice.micro_batch}"


def _unsupported_bits(request: PlanRequest, site: SiteProfile) -> str:
    return "; ".join(f"{bits}: {site.unsupported[bits]}" for bits in sorted(set(request.spec.planning.bits)))
