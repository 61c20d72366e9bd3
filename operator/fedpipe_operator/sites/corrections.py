"""What rounds have shown of a site corrects the next forecasts: re-planning from evidence. Pure.

Seconds: the ratio of measured to predicted, of the steps, the transfers and the rest apart, multiplies the next forecast. Memory of
training: likewise; what loading the base needs was measured alone, and stays. A plan with which a site has just trained fits into memory
whatever that took, and one step of it before the deadline: no round that went well leaves a site out of the next.

A plan that ran out of memory lowers what the site's next plans may use below that plan's own forecast, so that the same plan is never made
twice, but not below what the site trained with after all (`planning.out_of_memory`). Transfers are never forecast to be faster than the
site's claim: of what is claimed and what rounds show, the smaller counts.

A site that was still at work at the deadline has measured nothing, but that it takes longer than was forecast: all its seconds count
twice. If that happens again, they count as many times as the deadline is longer than the forecast, and the site may have stopped rather
than slowed down: it sits out 1, 2, 4 and at most 8 rounds before it is tried again, for which the others wait.
"""

from math import ceil, inf, sqrt
from typing import Annotated, Final

from pydantic import Field

from fedpipe_operator.sites.measurements import Measurement
from fedpipe_operator.sites.profile import Resources
from fedpipe_trainer.contract import Bits, Plan, Wire, halved

_SMALLEST, _LARGEST = 0.05, 20.0
"""A forecast is corrected by no more. A clock that jumped does not decide for ever: the site is measured again, and left out for no more
rounds than `after_a_rest` takes to forget it."""
_LATE: Final = 2.0
"""By how much the seconds of a site count more, at least, for each time that it was still at work at the deadline."""
_MOST_LATE: Final = 10
"""More doublings make no difference."""
_LONGEST_REST: Final = 8
"""Rounds."""
LESS_MEMORY: Final = 0.9
"""After a plan ran out of memory, the forecast of the next may be this share of that plan's."""
ACCURACY: Final = 1.15
"""Forecasts are required to be within 15 % of the measurement."""
_NOTICEABLE_SHARE: Final = 0.1
"""Of the passes: the batches are drawn at random, so that the share that finds its activations in the cache is only known about so well."""
_LATENCY: Final = 1.0
"""Seconds by which transfers may differ from their forecast for other reasons than bandwidth: connections, hashes, the disk."""
_BITS_PER_BYTE: Final = 8

Factor = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST)]


class Correction(Wire):
    """How a site's forecasts are corrected; all 1 without evidence."""

    step_seconds: Factor = 1.0
    other_seconds: Factor = 1.0
    transfers: Factor = 1.0
    memory: Factor = 1.0
    memory_limit: Annotated[int, Field(ge=0)] | None = None
    """Bytes that the forecast of training may reach at most, because a plan of a larger one ran out of memory."""
    peak: Annotated[int, Field(ge=0)] | None = None
    """Bytes that a training needed though fewer were forecast: the site has them, so plans may need as many. None: there was none."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Samples of a pass that plans may have as well as those of the run: the next larger ran out of memory, these did not or come next."""
    cache_problem: str = ""
    """Why the site's cache did not work in a round, and what to do: its plans do not count on it for the rest of the run."""
    late: Annotated[int, Field(ge=0)] = 0
    """How many times the site was still at work at the deadline since its last update."""
    slower: Annotated[float, Field(ge=1)] | None = None
    """How many times its seconds count for that (`with_lateness`). None: an earlier version counted them twice for each time."""
    rests: Annotated[int, Field(ge=0)] = 0
    """Rounds from the next one on that it sits out for that."""

    @property
    def lateness(self) -> float:
        """How many times the site's seconds count for its missed deadlines."""
        return _LATE ** min(self.late, _MOST_LATE) if self.slower is None else self.slower


class KeptActivations(Wire):
    """The activations that a site's cache holds from earlier rounds: of which passes, and of how many of them."""

    bits: Bits
    batch_size: Annotated[int, Field(ge=1)]
    micro_batch: Annotated[int, Field(ge=1)]
    lowest_layer: Annotated[int, Field(ge=1)]
    """What enters this layer is kept."""
    share: Annotated[float, Field(ge=0, le=1)]
    """Of the site's batches."""


def corrected(  # noqa: PLR0913 -- what a correction depends on
    before: Correction,
    plan: Plan,
    measured: Measurement | None,
    resources: Resources | None = None,
    *,
    fastest: float = 0.0,
    memory_limit: int | None = None,
    training_bytes: float | None = None,
    longest: float = inf,
    deadline: float = 0.0,
) -> Correction:
    """The correction after a round: that of the round's plan, times what the round showed.

    Args:
        before: the correction that the plan's forecast contains already.
        plan: the round's plan of the site.
        measured: what the site needed; None if it left no update.
        resources: what the plan was made for; None: an earlier version of the operator made it.
        fastest: the least factor of transfers that the site's claim allows.
        memory_limit: bytes that the next forecast may reach if the plan ran out of memory; None: not known but by the plan's own forecast.
        training_bytes: what the plan's training was forecast to need, without loading the base; None: as many as the plan as a whole.
        longest: seconds that the forecast of a round may use.
        deadline: seconds that the site had; 0: not known.
    """
    if measured is None:
        return before
    known = _with_failures(before, plan, measured, memory_limit)
    if measured.steps == 0:
        return _after_a_miss(known, plan, deadline) if measured.is_late else known
    plan = _as_if_in_time(plan, before.lateness)
    needed = _needed_bytes(measured, resources)
    memory = before.memory if measured.out_of_memory else _memory(before.memory, needed, plan.forecast.memory_bytes, training_bytes)
    now = Correction(
        step_seconds=_step_seconds(before, plan, measured),
        other_seconds=_other_seconds(before, plan, measured, resources),
        transfers=max(fastest, _transfers(before.transfers, measured, resources)),
        memory=memory,
        # What ran out of memory is to stay above the limit, when its forecast is corrected as all others are.
        memory_limit=_scaled(known.memory_limit, memory / before.memory),
        peak=needed if memory > before.memory else known.peak,
        micro_batch=known.micro_batch,
        cache_problem=known.cache_problem,
    )
    return _with_time_for_a_step(now, before, plan, resources, longest)


def after_a_rest(correction: Correction) -> Correction:
    """The correction of a site that was left out of a round.

    It may be back in time, so the root of what its misses of the deadline count is left. Where no rest but a forecast left it out, the root
    of what was measured is left as well: the site is tried again, and is not left out for ever for one measurement.
    """
    slower = sqrt(correction.lateness) if correction.lateness > 1 else correction.slower
    rested = correction.model_copy(update={"slower": slower, "rests": max(0, correction.rests - 1)})
    return rested if correction.rests else _relaxed(rested)


def with_lateness(correction: Correction) -> Correction:
    """The correction that plans count on: with all seconds longer by as much as the site's misses of the deadline count."""
    factor = correction.lateness
    seconds = {"step_seconds": correction.step_seconds, "other_seconds": correction.other_seconds, "transfers": correction.transfers}
    return correction.model_copy(update={name: factor * value for name, value in seconds.items()})


def carried_over(correction: Correction, before: Resources | None, now: Resources) -> Correction:
    """The correction without what was shown of resources that the site no longer has: another bandwidth. Its limit follows the memory."""
    if before is None:
        return correction
    limit = correction.memory_limit
    if limit is not None and before.memory_bytes > 0:
        limit = int(limit * now.memory_bytes / before.memory_bytes)
    peak = None if now.memory_bytes < before.memory_bytes else correction.peak
    return correction.model_copy(
        update={"memory_limit": limit, "peak": peak, "transfers": correction.transfers if now.has_bandwidth_of(before) else 1.0}
    )


def _needed_bytes(measured: Measurement, resources: Resources | None) -> int:
    """The peak of a training that was done; the pages that a process shares with others count in it, and do not against a limit."""
    most = resources.memory_bytes if resources else 0
    return min(measured.peak_memory_bytes, most) if most else measured.peak_memory_bytes


def _memory(factor: float, needed: int, forecast: int, training: float | None) -> float:
    """The factor that would have made the forecast of training right.

    Where loading the base is forecast to need more than training, a peak that is no larger than that says nothing of training.
    """
    predicted = forecast if training is None else training
    return factor if predicted < forecast and predicted <= needed <= ACCURACY * forecast else _times(factor, needed, predicted)


def _scaled(limit: int | None, factor: float) -> int | None:
    """A limit of forecasts that are corrected by so much more; rounded up, so that what just fits still does."""
    return None if limit is None else ceil(limit * factor)


def _with_time_for_a_step(now: Correction, before: Correction, plan: Plan, resources: Resources | None, longest: float) -> Correction:
    """The correction as far as the plan with a single step fits into a round: this one was done in time, however long it took."""
    sent = 0.0 if resources is None else _link_seconds(resources, plan.forecast.upload_bytes, plan.forecast.download_bytes)
    others = (plan.forecast.seconds - plan.forecast.step_seconds - before.transfers * sent) / before.other_seconds
    step = plan.forecast.step_seconds / plan.steps / before.step_seconds

    def seconds(one: Correction) -> float:
        return one.transfers * sent + one.other_seconds * others + one.step_seconds * step

    if seconds(now) <= longest or seconds(before) >= longest:  # in mode Manual, plans may be longer
        return now
    share, factors = (longest - seconds(before)) / (seconds(now) - seconds(before)), ("step_seconds", "other_seconds", "transfers")
    return now.model_copy(update={name: share * getattr(now, name) + (1 - share) * getattr(before, name) for name in factors})


def _after_a_miss(known: Correction, plan: Plan, deadline: float) -> Correction:
    """The correction of a site that was still at work at the deadline: it takes longer than was forecast.

    Once may be its node or its link: it is tried again with half as much to do. If it misses the next deadline as well, it takes at least
    as many times as long as was forecast, and it rests.
    """
    late, ratio = known.late + 1, deadline / plan.forecast.seconds if known.late and plan.forecast.seconds else _LATE
    slower = min(known.lateness * max(_LATE, ratio), _LATE**_MOST_LATE)
    return known.model_copy(update={"late": late, "slower": slower, "rests": min(2 ** (late - 2), _LONGEST_REST) if late > 1 else 0})


def _relaxed(correction: Correction) -> Correction:
    """The correction with the root of what lengthens or raises forecasts."""
    names = ("step_seconds", "other_seconds", "transfers", "memory")
    less = {name: sqrt(getattr(correction, name)) for name in names if getattr(correction, name) > 1}
    limit = _scaled(correction.memory_limit, less.get("memory", correction.memory) / correction.memory)
    return correction.model_copy(update={"memory_limit": limit, **less})


def _with_failures(before: Correction, plan: Plan, measured: Measurement, memory_limit: int | None) -> Correction:
    """The correction with what did not work in the round: a plan that ran out of memory, a cache."""
    known = before.model_copy(update={"cache_problem": measured.cache_problem or before.cache_problem})
    if not measured.out_of_memory:
        return known
    limit = int(LESS_MEMORY * plan.forecast.memory_bytes) if memory_limit is None else memory_limit
    micro_batch = halved(measured.too_large) if measured.too_large > 1 else before.micro_batch
    return known.model_copy(update={"memory_limit": limit, "micro_batch": micro_batch})


def _as_if_in_time(plan: Plan, lateness: float) -> Plan:
    """The plan with the forecast that it would have had if the site had not been late before."""
    seconds = {"seconds": plan.forecast.seconds / lateness, "step_seconds": plan.forecast.step_seconds / lateness}
    return plan.model_copy(update={"forecast": plan.forecast.model_copy(update=seconds)})


def _transfers(factor: float, measured: Measurement, resources: Resources | None) -> float:
    """The factor that would have made the forecast of the bytes that were transferred right."""
    if resources is None or measured.transfer_seconds is None:
        return factor
    predicted = factor * _link_seconds(resources, measured.uploaded_bytes, measured.downloaded_bytes)
    return factor if abs(measured.transfer_seconds - predicted) < _LATENCY else _times(factor, measured.transfer_seconds, predicted)


def _other_seconds(before: Correction, plan: Plan, measured: Measurement, resources: Resources | None) -> float:
    """The factor that would have made the forecast of the rest right: load, evaluation, and transfers that no plan contains."""
    predicted = plan.forecast.seconds - plan.forecast.step_seconds
    transferred = measured.transfer_seconds or 0.0
    if resources is None or measured.transfer_seconds is None:
        return _times(before.other_seconds, measured.other_seconds + transferred, predicted)
    planned = before.transfers * _link_seconds(resources, plan.forecast.upload_bytes, plan.forecast.download_bytes)
    all_bytes = _link_seconds(resources, measured.uploaded_bytes, measured.downloaded_bytes)
    planned_bytes = _link_seconds(
        resources,
        min(measured.uploaded_bytes, plan.forecast.upload_bytes),
        min(measured.downloaded_bytes, plan.forecast.download_bytes),
    )
    # The base model, which a site without a cache downloads for every task.
    more = transferred * (1 - planned_bytes / all_bytes) if all_bytes else 0.0
    return _times(before.other_seconds, measured.other_seconds + more, predicted - planned)


def _link_seconds(resources: Resources, upload: int, download: int) -> float:
    """Seconds of so many bytes in each direction, uncorrected."""
    return _BITS_PER_BYTE * (upload / resources.up + download / resources.down)


def _step_seconds(before: Correction, plan: Plan, measured: Measurement) -> float:
    """The factor of a step's seconds. What cached steps show counts only as far as it says something of steps without a cache."""
    if measured.cache_problem:  # they were planned as faster than any step that computes all layers
        return before.step_seconds
    now = _times(before.step_seconds, measured.step_seconds, plan.forecast.step_seconds * measured.steps / plan.steps)
    # Of a site whose profile is gone the forecast is that of another share: steps were faster, or slower, for what was in the cache.
    more = measured.found_share - plan.forecast.cached_share if measured.cache_passes else 0.0
    if abs(more) <= _NOTICEABLE_SHARE:
        return now
    return max(before.step_seconds, now) if more > 0 else min(before.step_seconds, now)


def _times(factor: float, measured: float, predicted: float) -> float:
    """The factor that would have made the prediction right."""
    if measured <= 0 or predicted <= 0:
        return factor
    return min(_LARGEST, max(_SMALLEST, factor * measured / predicted))
