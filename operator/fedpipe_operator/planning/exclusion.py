"""Why a site has no plan, and the smallest changes that give it one: of memory, of bandwidth, of the deadline. Pure."""

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final, NamedTuple, Self

import numpy as np

from fedpipe_operator.api import parse_duration
from fedpipe_operator.formatting import bytes_text, counted, percent, rate_text, seconds_text, whole_percent
from fedpipe_operator.planning.choices import Choice, Choices, seconds_per_element, transfer_seconds
from fedpipe_operator.planning.coverage import COVERAGE
from fedpipe_operator.planning.explanation import training_budget, whole_reason
from fedpipe_operator.planning.fleet import FleetSolution
from fedpipe_operator.planning.memory_model import Bool, Float64
from fedpipe_operator.planning.request import DEADLINE_FRACTION, PlanRequest
from fedpipe_operator.planning.site_problem import ROUNDING
from fedpipe_operator.planning.time_model import download_seconds, upload_seconds
from fedpipe_operator.sites import Correction, SiteProfile

MIB: Final = 2**20
_MOST: Final = 0.5
"""Of a round: where transfers take more, more bandwidth is advised."""
_MINUTE, _HOUR = 60, 3600
_LONGEST: Final = 168 * _HOUR
"""Seconds of the longest deadline that is advised: the store's presigned URLs are valid for no longer."""
_EXAMPLES: Final = 3
_FASTEST: Final = 100e9
"""Bits per second: no more bandwidth is advised."""


class _Remedy(NamedTuple):
    """A change with which a choice is feasible."""

    text: str
    row: int
    """The choice."""


@dataclass(frozen=True)
class _Needs:
    """What each choice needs, with the smallest adapters that it can have: arrays of one element each."""

    memory: Float64
    """As a factor of what a plan may use; here and below: above 1 there is not enough."""
    time: Float64
    """As a factor of the deadline."""
    beside: Float64
    """Seconds of a round with one step beside the transfers."""
    upload: Float64
    """Seconds to send the update."""
    download: float
    """Seconds to receive the global adapter."""

    @classmethod
    def of(cls, request: PlanRequest, site: SiteProfile, choices: Choices, adapters: Float64) -> Self:
        """Of these choices with adapters of so many elements."""
        others = choices.step + adapters * seconds_per_element(request, site)
        transfers = request.correction(site).transfers
        return cls(
            memory=np.maximum(choices.load / request.load_budget(site), _share_of_memory(request, site, choices.training_peak(adapters))),
            time=choices.least_deadline(request.deadline, others, ROUNDING) / request.deadline,
            beside=choices.fixed - transfer_seconds(request, site, request.head_bytes) + choices.step,
            upload=transfers * upload_seconds(site, 1.0) * (request.head_bytes + request.element_bytes(site) * adapters),
            download=transfers * download_seconds(site, request.download(site)),
        )


def _share_of_memory(request: PlanRequest, site: SiteProfile, training: Float64) -> Float64:
    """Training's peaks as a factor of what plans may use; of those that are too large, of what grows with the site's memory."""
    allowed = request.memory_budget(site)
    return np.where(training <= allowed, training / allowed, training / request.claimed_budget(site))


def exclusion_reason(request: PlanRequest, site: SiteProfile, choices: Choices, adapters: Float64) -> str:
    """Why no choice is feasible at a site, and the smallest changes that make one feasible.

    Args:
        request: the run.
        site: the site.
        choices: its choices, none of which is feasible.
        adapters: of each choice, the elements of the smallest adapters that it can have.
    """
    if not choices.rows:
        return f"its device supports none of planning.bits ({_unsupported_bits(request, site)}): add bits that it supports"
    needs = _Needs.of(request, site, choices, adapters)
    in_memory, in_time = needs.memory <= 1, needs.time <= 1
    remedies = []
    if in_time.any():
        remedies.append(_more_memory(request, site, needs, int(np.where(in_time, needs.memory, np.inf).argmin())))
    if in_memory.any():
        remedies += _more_time(request, site, needs, in_memory)
    if not remedies:
        least = int(needs.memory.argmin())
        time = _more_time(request, site, needs, np.arange(len(choices.rows)) == least)
        both = f"{_more_memory(request, site, needs, least).text} and {' or '.join(remedy.text for remedy in time)}"
        remedies = [_Remedy(both, least)]
    told = "; or ".join(f"{remedy.text} ({_describe(site, choices.rows[remedy.row])})" for remedy in remedies)
    if whole := whole_reason(request, site):
        told = f"{told}; or name fewer in planning.modulesToSave ({whole})"
    correction = request.correction(site)
    missed = f"after it missed the deadline {counted(correction.late, 'time')}, its seconds count {correction.lateness:.3g} times"
    after = f"{missed}, and it sits out a round: " if correction.late else ""
    return f"{after}not even its smallest plan fits: {told}"


def rest_reason(correction: Correction, round_: int) -> str:
    """Why a site has no plan in this round that has missed the deadline in vain; empty if it does not rest."""
    if not correction.rests:
        return ""
    return (
        f"it missed the deadline {correction.late} times in a row, so it sits out {counted(correction.rests, 'round')} and is tried again "
        f"in round {round_ + correction.rests}: see whether its node, its queue or its link was down"
    )


def crowded_out_reason(site: SiteProfile, fleet: FleetSolution) -> str:
    """Why a site is excluded that can train none but weights that too few sites or samples would train."""
    enough = sorted({weight.name for frontier in fleet.frontiers.values() for weight in frontier.weights})
    such = f", such as {', '.join(enough[:_EXAMPLES])}," if enough else ""
    more = (
        f"more memory ({bytes_text(site.memory_bytes)} now), bandwidth ({rate_text(site.up)} up, {rate_text(site.down)} down) or processors"
    )
    return (
        f"it can train none of the weights that enough others train{such} in a round of {seconds_text(fleet.length.seconds)}, and a weight "
        f"gets an adapter only where at least {whole_percent(COVERAGE)} of the samples train it, and as many sites as their "
        f"policy.minSites ask for: give it {more}"
    )


def _more_memory(request: PlanRequest, site: SiteProfile, needs: _Needs, row: int) -> _Remedy:
    """The memory that this choice needs."""
    mebibytes = ceil(site.memory_bytes * float(needs.memory[row]) / MIB + 1e-6)
    needed = f"{mebibytes}Mi"
    if request.correction(site).memory_limit is not None:  # in a running run: what its plans may be cannot be changed any more
        ran_out = f"after a plan of it ran out of memory, {training_budget(request, site)}"
        return _Remedy(f"{ran_out}: {_larger_claim(site, mebibytes)}", row)
    advice = "allow fewer bits, smaller ranks or smaller batchSizes, or lower task.maxLength"
    peak = request.correction(site).peak
    shown = f" (its last training needed {bytes_text(peak)}, more than was forecast)" if peak else ""
    return _Remedy(f"give it {needed} of memory instead of {bytes_text(site.memory_bytes)}{shown}, or {advice}", row)


def _larger_claim(site: SiteProfile, mebibytes: int) -> str:
    """How a site gets so much memory: by its claim, up to what its device has."""
    needed, claim = f"{mebibytes}Mi", f"{site.memory_field} of its EdgeSite"
    if site.measured_memory == 0 or mebibytes * MIB <= site.measured_memory:
        return f"raise {claim} to {needed}"
    device = "GPU" if site.on_gpu else "node"
    return f"give it a {device} with {needed} instead of {bytes_text(site.measured_memory)}, and raise {claim}, if it is set, to as much"


def _more_time(request: PlanRequest, site: SiteProfile, needs: _Needs, allowed: Bool) -> list[_Remedy]:
    """The bandwidth or the deadline with which one of the allowed choices has time for loading, transfers and one step."""
    row = int(np.where(allowed, needs.time, np.inf).argmin())
    spec, factor = request.spec.rounds.deadline, float(needs.time[row])
    share = (float(needs.upload[row]) + needs.download) / (request.deadline * factor)
    remedies = _more_bandwidth(request, site, needs, allowed, row) if share > _MOST else []
    deadline = parse_duration(spec) * factor
    if deadline <= _LONGEST:
        used = f"a plan may use {percent(DEADLINE_FRACTION)} of it for loading, evaluation, transfers and training"
        used = f"transfers take {percent(share)} of a round" if share > _MOST else used
        remedies.append(_Remedy(f"raise rounds.deadline from {spec} to {_duration(deadline)} ({used})", row))
    return remedies or [_Remedy(_far_too_slow(needs, row), row)]


def _more_bandwidth(request: PlanRequest, site: SiteProfile, needs: _Needs, allowed: Bool, row: int) -> list[_Remedy]:
    """The least bandwidth with which one of the allowed choices fits into the deadline: of the slower direction, else of both."""
    left = np.where(allowed, request.deadline / ROUNDING - needs.beside, -np.inf)
    download = np.full(len(left), needs.download)
    up, down = (rate / request.correction(site).transfers for rate in (site.up, site.down))
    upwards = float(needs.upload[row]) >= needs.download
    slower, faster, rate = (needs.upload, download, up) if upwards else (download, needs.upload, down)
    times = _times(slower, left - faster)
    if rate * times.min() <= _FASTEST:
        which = "upload" if upwards else "download"
        return [_Remedy(f"raise its {which} bandwidth from {rate_text(rate)} to {_rate_above(rate * times.min())}", int(times.argmin()))]
    times = _times(needs.upload + download, left)
    if max(up, down) * times.min() > _FASTEST:
        return []
    uploads, downloads = (f"{rate_text(one)} to {_rate_above(one * times.min())}" for one in (up, down))
    return [_Remedy(f"raise its bandwidth, up from {uploads} and down from {downloads}", int(times.argmin()))]


def _times(seconds: Float64, left: Float64) -> Float64:
    """How many times faster what takes so many seconds must be to take those that are left; infinite where none are."""
    return np.where(left > 0, seconds / np.where(left > 0, left, 1.0), np.inf)


def _far_too_slow(needs: _Needs, row: int) -> str:
    """What to do about a site that no deadline and no bandwidth alone gives a plan."""
    beside, transfers = float(needs.beside[row]), float(needs.upload[row]) + needs.download
    takes = f"loading, evaluation and one step take {seconds_text(beside)}, and transfers {seconds_text(transfers)}"
    return (
        f"give it a faster device or link, or leave it out of the run: {takes}, and a deadline above {_LONGEST // _HOUR}h is not supported"
    )


def _duration(seconds: float) -> str:
    """A duration of the spec that is at least so long: in seconds, or from an hour on in minutes."""
    whole = ceil(seconds + 1e-6)
    return f"{whole}s" if whole < _HOUR else f"{ceil(whole / _MINUTE)}m"


def _rate_above(bits_per_second: float) -> str:
    """A bandwidth of three digits that is at least as large."""
    digit = 10.0 ** (floor(log10(bits_per_second)) - 2)
    return rate_text(digit * ceil(bits_per_second / digit + 1e-6))


def _describe(site: SiteProfile, choice: Choice) -> str:
    trained = site.base.layers - choice.lowest_layer
    layers = "all layers" if choice.lowest_layer == 0 else f"the top {trained} of {site.base.layers} layers"
    return f"at {choice.bits} bits, in micro-batches of {choice.micro_batch}, {layers}"


def _unsupported_bits(request: PlanRequest, site: SiteProfile) -> str:
    return "; ".join(f"{bits}: {site.unsupported[bits]}" for bits in sorted(set(request.spec.planning.bits)))
