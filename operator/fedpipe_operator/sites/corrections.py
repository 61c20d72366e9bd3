"""What rounds have shown of a site corrects the next forecasts: re-planning from evidence. Pure.

Seconds: the ratio of measured to predicted, of the steps and of the rest apart, multiplies the next forecast. Memory: likewise. A plan that
ran out of memory lowers what the site's next plans may use below that plan's own forecast, so that the same plan is never made twice.
"""

import math
from typing import Annotated, Final

from pydantic import Field

from fedpipe_operator.formatting import bytes_text
from fedpipe_trainer.contract import Plan, TrainResult, Wire

_SMALLEST, _LARGEST = 0.05, 20.0
"""A single measurement changes no forecast by more: a clock that jumped must not decide for ever."""
_LESS_MEMORY: Final = 0.9
"""After a plan ran out of memory, the next may use this share of what the forecast of that plan was."""
REPLANNED: Final = "re-planned: "
"""What the reason for a changed plan begins with."""
_NOTICEABLE: Final = 1.15
"""Forecasts are required to be within 15 % of the measurement."""

Factor = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST)]


class Measurement(Wire):
    """What a site needed for one round."""

    step_seconds: Annotated[float, Field(ge=0)]
    """Seconds of all training steps."""
    other_seconds: Annotated[float, Field(ge=0)]
    """Seconds of the rest: load, evaluation, transfers."""
    peak_memory_bytes: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    out_of_memory: bool = False
    """Whether an attempt ran out of memory, even if a later one with smaller passes did not."""


class Correction(Wire):
    """How a site's forecasts are corrected; all 1 without evidence."""

    step_seconds: Factor = 1.0
    other_seconds: Factor = 1.0
    memory: Factor = 1.0
    memory_limit: Annotated[int, Field(ge=0)] | None = None
    """Bytes that the forecast of a plan may reach at most, because a plan of a larger one ran out of memory."""


def measurement(result: TrainResult, plan: Plan) -> Measurement:
    """What a completed training needed."""
    seconds = {phase: max(0.0, value) for phase, value in result.measured.seconds.items() if math.isfinite(value)}
    return Measurement(
        step_seconds=seconds.get("train", 0.0),
        other_seconds=sum(value for phase, value in seconds.items() if phase != "train"),
        peak_memory_bytes=result.measured.peak_memory_bytes,
        steps=max(0, result.steps - result.resumed_from_step),
        out_of_memory=0 < result.micro_batch_size < plan.micro_batch,
    )


def corrected(before: Correction, plan: Plan, measured: Measurement | None) -> Correction:
    """The correction after a round: that of the round's plan, times what the round showed.

    Args:
        before: the correction that the plan's forecast contains already.
        plan: the round's plan of the site.
        measured: what the site needed; None if it left no update.
    """
    if measured is None:
        return before
    limit = int(_LESS_MEMORY * plan.forecast.memory_bytes) if measured.out_of_memory else before.memory_limit
    if measured.steps == 0:
        return before.model_copy(update={"memory_limit": limit})
    predicted_steps = plan.forecast.step_seconds * measured.steps / plan.steps
    step_seconds = _times(before.step_seconds, measured.step_seconds, predicted_steps)
    return Correction(
        # Activations that an earlier round cached make steps faster than forecast, which says nothing of plans without them.
        step_seconds=max(before.step_seconds, step_seconds) if plan.cache_activations else step_seconds,
        other_seconds=_times(before.other_seconds, measured.other_seconds, plan.forecast.seconds - plan.forecast.step_seconds),
        memory=before.memory if measured.out_of_memory else _times(before.memory, measured.peak_memory_bytes, plan.forecast.memory_bytes),
        memory_limit=limit,
    )


def correction_note(before: Correction, now: Correction) -> str:
    """What the last round showed of a site, as a sentence; empty if its forecasts held."""
    if now.memory_limit is not None and now.memory_limit != before.memory_limit:
        return f"{REPLANNED}the last plan ran out of memory, so that its forecast must stay below {bytes_text(now.memory_limit)}"
    ratio = now.step_seconds / before.step_seconds
    if ratio > _NOTICEABLE or ratio < 1 / _NOTICEABLE:
        return f"{REPLANNED}a step took {ratio:.2g} times as long as predicted"
    return ""


def _times(factor: float, measured: float, predicted: float) -> float:
    """The factor that would have made the prediction right."""
    if measured <= 0 or predicted <= 0:
        return factor
    return min(_LARGEST, max(_SMALLEST, factor * measured / predicted))
