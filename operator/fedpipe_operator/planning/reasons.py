"""The reasons of a plan: a sentence for each choice that states what the next better option would have needed.

Bits, batch and rank are chosen in this order, so the better options of one are examined with the earlier ones fixed.
"""

from collections.abc import Sequence

from fedpipe_operator.formatting import bytes_text, seconds_text, whole_percent
from fedpipe_operator.planning.candidates import MEMORY_FRACTION, Candidate, PlanRequest
from fedpipe_operator.sites import SiteProfile


def plan_reasons(request: PlanRequest, site: SiteProfile, *, chosen: Candidate, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The reasons for bits, batch, rank and steps, and the basis of the forecast."""
    same_bits = [option for option in candidates if option.bits == chosen.bits]
    same_batch = [option for option in same_bits if option.batch == chosen.batch]
    sentences = (
        f"{chosen.bits} bits: {_bits_reason(request, site, chosen=chosen, candidates=candidates)}",
        f"batch {chosen.batch}: {_batch_reason(site, chosen, same_bits)}",
        f"rank {chosen.rank}: {_rank_reason(site, chosen, same_batch)}",
        _steps_reason(request, site, chosen),
        _forecast_basis(site, chosen),
        _fewer_bits_note(site, chosen, candidates),
    )
    return tuple(sentence for sentence in sentences if sentence)


def uniform_reasons(request: PlanRequest, site: SiteProfile, *, chosen: Candidate, weakest: str) -> tuple[str, ...]:
    """The reasons of a uniform plan: which site limits the common choice, the steps, and the basis of the forecast."""
    common = f"{_describe(chosen)}: the same for all sites, limited by the weakest site ({weakest})"
    return common, _steps_reason(request, site, chosen), _forecast_basis(site, chosen)


def no_common_choice_reason(bits: int, batch: int, rank: int) -> str:
    """Why a site that has feasible candidates is excluded from a uniform plan."""
    common = f"{bits} bits, batch {batch}, rank {rank}"
    return f"cannot run the choice that most sites can ({common}): allow bits that all sites support, or set planning.mode to Auto"


def exclusion_reason(request: PlanRequest, site: SiteProfile, candidates: Sequence[Candidate]) -> str:
    """Why no candidate is feasible at a site, with the figures of the one that comes nearest."""
    if not candidates:
        return f"its device supports none of planning.bits ({_unsupported_bits(request, site)}): add bits that it supports"
    fitting = [option for option in candidates if option.fits_memory(site)]
    if not fitting:
        least = min(candidates, key=lambda option: (option.forecast.memory_bytes, -option.bits))
        return f"needs at least {bytes_text(least.forecast.memory_bytes)} of memory ({_describe(least)}); {_memory_budget(site)}"
    nearest = min(fitting, key=lambda option: option.forecast.seconds)
    fixed = f"loading and transfers already take {seconds_text(nearest.forecast.seconds)} ({_describe(nearest)})"
    return f"no training step fits: a plan may use {seconds_text(request.deadline)} of rounds.deadline, but {fixed}"


def _bits_reason(request: PlanRequest, site: SiteProfile, *, chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    higher = sorted({bits for bits in request.spec.planning.bits if bits > chosen.bits})
    if not higher:
        return "the largest value in planning.bits"
    if higher[0] in site.unsupported:
        return f"the device does not support {higher[0]} bits: {site.unsupported[higher[0]]}"
    return _limit(f"{higher[0]} bits", [option for option in candidates if option.bits == higher[0]], site)


def _batch_reason(site: SiteProfile, chosen: Candidate, same_bits: Sequence[Candidate]) -> str:
    larger = min((option.batch for option in same_bits if option.batch > chosen.batch), default=None)
    if larger is None:
        return "the largest value in planning.batchSizes"
    return _limit(f"batch {larger}", [option for option in same_bits if option.batch == larger], site)


def _rank_reason(site: SiteProfile, chosen: Candidate, same_batch: Sequence[Candidate]) -> str:
    larger = min((option.rank for option in same_batch if option.rank > chosen.rank), default=None)
    if larger is None:
        return "the largest value in planning.ranks"
    return _limit(f"rank {larger}", [option for option in same_batch if option.rank == larger], site)


def _limit(name: str, options: Sequence[Candidate], site: SiteProfile) -> str:
    """The constraint that rules an option out: memory in its smallest form, else the deadline in its fastest."""
    fitting = [option for option in options if option.fits_memory(site)]
    if not fitting:
        return f"{name} would need {bytes_text(min(option.forecast.memory_bytes for option in options))} of memory; {_memory_budget(site)}"
    fraction = max(option.trained_fraction for option in fitting)
    return f"{name} would complete only {whole_percent(fraction)} of its steps before the deadline"


def _steps_reason(request: PlanRequest, site: SiteProfile, chosen: Candidate) -> str:
    limit = request.spec.training.max_steps
    source = f"{request.spec.training.epochs or 1.0:g} × {site.train_samples} samples in batches of {chosen.batch}"
    if chosen.requested_steps == limit:
        source = "training.maxSteps"
    if chosen.steps == chosen.requested_steps:
        return f"{chosen.steps} steps: {source}; all fit before the deadline"
    cut = whole_percent(1 - chosen.trained_fraction)
    return f"{chosen.steps} of {chosen.requested_steps} steps ({source}): rounds.deadline cuts the rest; under-training rate {cut}"


def _forecast_basis(site: SiteProfile, chosen: Candidate) -> str:
    measured = any(point.peak_memory_bytes > 0 for point in site.points_at(chosen.bits))
    basis = (
        f"calibrated with peaks measured at {chosen.bits} bits"
        if measured
        else f"by formula only, because no peak was measured at {chosen.bits} bits"
    )
    return f"forecast per round: {bytes_text(chosen.forecast.memory_bytes)} and {seconds_text(chosen.forecast.seconds)}; memory {basis}"


def _fewer_bits_note(site: SiteProfile, chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """On a CPU: that fewer bits would not save memory, contrary to what a user expects; empty where they would."""
    fewer = [option for option in candidates if option.bits < chosen.bits and (option.batch, option.rank) == (chosen.batch, chosen.rank)]
    least = min(fewer, key=lambda option: option.forecast.memory_bytes, default=None)
    if site.on_gpu or least is None or least.forecast.memory_bytes < chosen.forecast.memory_bytes:
        return ""
    return f"fewer bits would save no memory on this CPU: {least.bits} bits would need {bytes_text(least.forecast.memory_bytes)}"


def _memory_budget(site: SiteProfile) -> str:
    return f"a plan may use {bytes_text(MEMORY_FRACTION * site.memory_bytes)} of the site's {bytes_text(site.memory_bytes)}"


def _describe(candidate: Candidate) -> str:
    return f"{candidate.bits} bits, batch {candidate.batch}, rank {candidate.rank}"


def _unsupported_bits(request: PlanRequest, site: SiteProfile) -> str:
    return "; ".join(f"{bits}: {site.unsupported[bits]}" for bits in sorted(set(request.spec.planning.bits)))
