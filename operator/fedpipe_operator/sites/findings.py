"""What is new of a site since its last plan, as parts of a sentence: what a round showed of it, and what has changed. Pure."""

from typing import Final

from fedpipe_operator.formatting import bytes_text, rate_text
from fedpipe_operator.sites.corrections import ACCURACY, Correction
from fedpipe_operator.sites.profile import Resources

_NOTICEABLE_MEMORY: Final = 1.05
"""Less than that changes plans as well: what needs a little more than there is does not fit."""


def findings(
    before: Correction, now: Correction, resources: Resources | None = None, *, ran_out_of_memory: bool = False
) -> tuple[str, ...]:
    """What the last round showed of a site, as parts of a sentence; none if its forecasts held."""
    found = []
    if ran_out_of_memory and now.memory_limit is not None:
        found.append(f"the last plan ran out of memory, so that the forecast of training must stay below {bytes_text(now.memory_limit)}")
    if now.cache_problem != before.cache_problem:
        found.append(f"its cache did not work, so that the rest of the run is planned without one: {now.cache_problem}")
    if now.late > before.late:
        times = f"{now.lateness:.3g} times{f', for {now.late} times in a row' if now.late > 1 else ''}"
        return (*found, f"it was still at work at the deadline, so that all its seconds count {times}")
    if now.late < before.late:
        found.append("it was done in time again")
    ratio = now.step_seconds / before.step_seconds
    if _is_noticeable(ratio):
        found.append(f"a step took {ratio:.2g} times as long as predicted")
    ratio = now.other_seconds / before.other_seconds
    if _is_noticeable(ratio):
        found.append(f"loading and evaluation took {ratio:.2g} times as long as predicted")
    ratio = now.transfers / before.transfers
    if _is_noticeable(ratio) and resources is not None:
        figure = rate_text(resources.up / now.transfers)
        found.append(f"transfers took {ratio:.2g} times as long as predicted, so that uploads are planned with {figure}")
    ratio = now.memory / before.memory
    if _is_noticeable(ratio, _NOTICEABLE_MEMORY):
        needed = f"{bytes_text(now.peak)} of memory, " if now.peak is not None and ratio > 1 else ""
        found.append(f"training needed {needed}{ratio:.3g} times what was predicted{'' if needed else ' of memory'}")
    return tuple(found)


def changes(before: Resources, now: Resources) -> tuple[str, ...]:
    """What has changed of a site's resources since the last plan, as parts of a sentence."""
    figures = (
        ("memory", bytes_text(before.memory_bytes), bytes_text(now.memory_bytes)),
        ("upload bandwidth", rate_text(before.up), rate_text(now.up)),
        ("download bandwidth", rate_text(before.down), rate_text(now.down)),
    )
    return tuple(f"its {name} is now {new} instead of {old}" for name, old, new in figures if new != old)


def _is_noticeable(ratio: float, least: float = ACCURACY) -> bool:
    return ratio > least or ratio < 1 / least
