"""The reasons: a sentence for each choice of a plan that says what the next better option would have needed.

Bits, batch and rank are chosen in this order, so the better options of one are judged with the earlier ones fixed.
"""

from collections.abc import Sequence

from fedpipe_operator.planning.candidates import MEMORY_SHARE, Candidate, Request
from fedpipe_operator.sites.profile import SiteProfile
from fedpipe_operator.units import bytes_text, seconds_text, whole_percent


def why(request: Request, site: SiteProfile, *, chosen: Candidate, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Why these bits, batch, rank and steps, and what the forecast rests on."""
    same_bits = [one for one in candidates if one.bits == chosen.bits]
    same_batch = [one for one in same_bits if one.batch == chosen.batch]
    sentences = (
        f"{chosen.bits} bits: {_bits_obstacle(request, site, chosen=chosen, candidates=candidates)}",
        f"batch {chosen.batch}: {_batch_obstacle(site, chosen, same_bits)}",
        f"rank {chosen.rank}: {_rank_obstacle(site, chosen, same_batch)}",
        _steps(request, site, chosen),
        _forecast(site, chosen),
        _fewer_bits(site, chosen, candidates),
    )
    return tuple(sentence for sentence in sentences if sentence)


def why_uniform(request: Request, site: SiteProfile, *, chosen: Candidate, weakest: str) -> tuple[str, ...]:
    """Why this site gets what all get."""
    held = f"{_named(chosen)}: what all sites can carry, held to the weakest ({weakest})"
    return held, _steps(request, site, chosen), _forecast(site, chosen)


def why_not_like_the_others(bits: int, batch: int, rank: int) -> str:
    """Why a site that could carry something is left out of a uniform plan."""
    common = f"{bits} bits, batch {batch}, rank {rank}"
    return f"cannot carry what most sites can ({common}): allow bits that all support, or set planning.mode to Auto"


def why_excluded(request: Request, site: SiteProfile, candidates: Sequence[Candidate]) -> str:
    """Why nothing is possible at a site, with the numbers of what comes nearest."""
    if not candidates:
        return f"its device can do none of the planned bits ({_unsupported(request, site)}): add bits that it supports to planning.bits"
    fitting = [one for one in candidates if one.fits_memory(site)]
    if not fitting:
        least = min(candidates, key=lambda one: (one.forecast.memory_bytes, -one.bits))
        return f"needs at least {bytes_text(least.forecast.memory_bytes)} at {_named(least)}; {_may_plan(site)}"
    nearest = min(fitting, key=lambda one: one.forecast.seconds)
    needs = f"loading and transfers alone take {seconds_text(nearest.forecast.seconds)} at {_named(nearest)}"
    return f"not one training step fits the {seconds_text(request.deadline)} that may be planned of rounds.deadline: {needs}"


def _bits_obstacle(request: Request, site: SiteProfile, *, chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    wider = sorted({bits for bits in request.spec.planning.bits if bits > chosen.bits})
    if not wider:
        return "the most that planning.bits allows"
    if wider[0] in site.unsupported:
        return f"its device cannot do {wider[0]} bits: {site.unsupported[wider[0]]}"
    return _obstacle(f"{wider[0]} bits", [one for one in candidates if one.bits == wider[0]], site)


def _batch_obstacle(site: SiteProfile, chosen: Candidate, same_bits: Sequence[Candidate]) -> str:
    larger = min((one.batch for one in same_bits if one.batch > chosen.batch), default=None)
    if larger is None:
        return "the most that planning.batchSizes allows"
    return _obstacle(f"batch {larger}", [one for one in same_bits if one.batch == larger], site)


def _rank_obstacle(site: SiteProfile, chosen: Candidate, same_batch: Sequence[Candidate]) -> str:
    larger = min((one.rank for one in same_batch if one.rank > chosen.rank), default=None)
    if larger is None:
        return "the most that planning.ranks allows"
    return _obstacle(f"rank {larger}", [one for one in same_batch if one.rank == larger], site)


def _obstacle(name: str, options: Sequence[Candidate], site: SiteProfile) -> str:
    """What kept the site from an option: memory in its cheapest form, else the deadline in its fastest."""
    fitting = [one for one in options if one.fits_memory(site)]
    if not fitting:
        return f"{name} would need {bytes_text(min(one.forecast.memory_bytes for one in options))}; {_may_plan(site)}"
    share = max(one.trained_share for one in fitting)
    return f"{name} would train only {whole_percent(share)} of its steps before the deadline"


def _steps(request: Request, site: SiteProfile, chosen: Candidate) -> str:
    limit = request.spec.training.max_steps
    source = f"{request.spec.training.epochs:g} × {site.train_samples} samples in batches of {chosen.batch}"
    if chosen.wanted_steps == limit:
        source = "training.maxSteps"
    if chosen.steps == chosen.wanted_steps:
        return f"{chosen.steps} steps: {source}; the deadline cuts nothing"
    cut = whole_percent(1 - chosen.trained_share)
    return f"{chosen.steps} of {chosen.wanted_steps} steps ({source}): under-training rate {cut}, cut by rounds.deadline"


def _forecast(site: SiteProfile, chosen: Candidate) -> str:
    measured = any(point.peak_memory_bytes > 0 for point in site.measured(chosen.bits))
    source = "memory fitted to what was measured" if measured else "memory by formula alone, as nothing was measured"
    figures = f"{bytes_text(chosen.forecast.memory_bytes)} and {seconds_text(chosen.forecast.seconds)} a round"
    return f"forecast {figures}: {source} at {chosen.bits} bits"


def _fewer_bits(site: SiteProfile, chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """On a CPU, that the bits below would have saved no memory: what one expects of them and does not get."""
    below = [one for one in candidates if one.bits < chosen.bits and (one.batch, one.rank) == (chosen.batch, chosen.rank)]
    least = min(below, key=lambda one: one.forecast.memory_bytes, default=None)
    if site.on_gpu or least is None or least.forecast.memory_bytes < chosen.forecast.memory_bytes:
        return ""
    return f"fewer bits would save no memory on this CPU: {least.bits} bits would need {bytes_text(least.forecast.memory_bytes)}"


def _may_plan(site: SiteProfile) -> str:
    return f"{bytes_text(MEMORY_SHARE * site.memory_bytes)} of the site's {bytes_text(site.memory_bytes)} may be planned"


def _named(candidate: Candidate) -> str:
    return f"{candidate.bits} bits, batch {candidate.batch}, rank {candidate.rank}"


def _unsupported(request: Request, site: SiteProfile) -> str:
    return "; ".join(f"{bits}: {site.unsupported[bits]}" for bits in sorted(set(request.spec.planning.bits)))
