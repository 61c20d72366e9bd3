"""The choices of a site: every combination of bits, micro-batch, checkpointing, depth and caching, as arrays with one row each.

Of a combination, three numbers matter to the optimiser: the seconds that do not depend on the steps, the seconds of a step, and the
elements of adapters for which memory leaves room. Ranks and steps are chosen within them (`site_problem`).

With cached activations, a step that finds them takes c seconds, and one that computes them e more. Of the P batches of a pass over the data
the cache holds a share f. So n steps of a round take n·c + min(n, P)·(1 − f)·e: the shorter of two lines, and each is a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import floor
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe_operator.api import Bits, Depth
from fedpipe_operator.planning.memory_model import Bool, Float64, Int64, Step, TrainingMemory, load_peak_bytes
from fedpipe_operator.planning.passes import batches_of_a_pass, largest_pass, largest_step
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.sizes import WIRE_BYTES, rank_parameters
from fedpipe_operator.planning.time_model import (
    download_seconds,
    fixed_seconds,
    forward_share,
    generation_seconds,
    relative_step_seconds,
    step_seconds,
    upload_seconds,
)
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import EVALUATION_SHARE

_DEPTHS: Final = (1.0, 3 / 4, 1 / 2, 1 / 3)
"""The fractions of the layers among which a depth is chosen: with fewer than a third, few steps bring much less progress."""
_STATE_BYTES: Final = 2
"""Bytes of an element of a hidden state; 4 at 32 bits, where training takes longer as well."""
_VOLUME_BYTES_PER_SECOND: Final = 100e6
"""What the slowest volumes in use, disks on a network, are taken to read and write."""
_SLOWEST_READING: Final = 2.0
"""What the cache saves, in units of the time that reading it takes, at least. A GPU computes small models faster than that."""
_ROUNDING: Final = 1e-9


class Choice(NamedTuple):
    """One combination."""

    bits: Bits
    batch: int
    """Samples of the site's largest step: here with the run's batch, and of a slow site less in the end (`batches`)."""
    micro_batch: int
    """Samples that a device computes at once."""
    checkpointing: bool
    lowest_layer: int
    cached: bool


class Columns(NamedTuple):
    """What a step's seconds and memory depend on, of many choices of equal bits and batch, as arrays."""

    batch: int
    micro_batch: Int64
    checkpointing: Bool
    lowest_layer: Int64
    hits: Float64
    """Share of the passes that read the output of the layers below from the cache."""


class _Caching(NamedTuple):
    """How a row counts on the site's cache."""

    cached: bool
    fills: bool
    """Whether its steps find everything, and a pass over the data that fills the cache counts as fixed."""


@dataclass(frozen=True)
class Choices:
    """All combinations of one site that the run allows; arrays of one row each."""

    rows: tuple[Choice, ...]
    fixed: Float64
    """Seconds of a round that depend neither on the steps nor on the adapters (the head's upload included)."""
    evaluation: Float64
    """Of these, the seconds of set-up, load, first step and evaluation, without answers to prompts."""
    answers: Float64
    """Seconds of all the answers to prompts: `fixed` has those for which there is time within `evaluation_share` of the deadline."""
    evaluation_share: float
    step: Float64
    """Seconds of an optimiser step."""
    room: Float64
    """Elements of trained adapters for which memory leaves room; negative: not even the base and the activations fit."""
    memory: Float64
    """Peak bytes of training without trained adapters."""
    load: Float64
    """Peak bytes of loading the base, and at least what the profile has shown to be too few."""
    element_bytes: float
    """Bytes that an element of a trained adapter adds: it takes the place of one of the frozen residual."""

    def least_deadline(self, deadline: float, others: Float64, slack: float) -> Float64:
        """The shortest deadline into which each choice fits; the longer it is, the more answers are generated, up to all.

        Args:
            deadline: that of `fixed`.
            others: seconds of the steps and adapters.
            slack: a factor of the whole round.
        """
        share, evaluation, rest = slack * self.evaluation_share, slack * self.evaluation, slack * others
        rest += slack * (self.fixed - _within(self.evaluation, self.answers, self.evaluation_share * deadline))
        with_all = rest + evaluation + slack * self.answers
        return np.minimum(with_all, np.maximum(rest + evaluation, rest / (1 - share))) if share < 1 else with_all

    def training_peak(self, adapters: Float64) -> Float64:
        """Peak bytes of training of each choice, with adapters of so many elements."""
        return self.memory + self.element_bytes * adapters


def choices_of(request: PlanRequest, site: SiteProfile, *, lowest: Sequence[int] | None = None) -> Choices:
    """The combinations of a site.

    Args:
        request: the run.
        site: the site.
        lowest: the lowest trained layers to choose from; None: those of the run.
    """
    first = lowest_layers(request, site) if lowest is None else lowest
    grid = [
        (*combination, caching)
        for combination in product(_micro_batch_sizes(request, site), _checkpointing(request, site), first)
        for caching in _caching(request, site, combination[-1])
    ]
    micro_batch, checkpointing, first_layer, caching = zip(*grid, strict=True)
    cached, fills = np.array(caching, dtype=bool).T
    without = Columns(request.batch_of(site), np.array(micro_batch), np.array(checkpointing), np.array(first_layer), np.zeros(len(grid)))
    bits = sorted(set(request.spec.planning.bits) - set(site.unsupported))
    limit, factor, count = request.memory_budget(site), request.correction(site).memory, len(grid)
    memory = factor * _joined([_memory(request, site, one, without) for one in bits])
    load = _joined([np.full(count, load_need(site, one)) for one in bits])
    element_bytes = factor * (request.options.trained_bytes - WIRE_BYTES)
    evaluations = [_evaluation_seconds(request, site, one, without.micro_batch) for one in bits]
    fixed, step = [], []
    for one, (evaluation, answers) in zip(bits, evaluations, strict=True):
        kept = without._replace(hits=cached * _kept_share(request, site, one, without, by_batch=False))
        filling = fills * _filling_seconds(request, site, one, kept) / request.filling_rounds
        fixed.append(_other_seconds(request, site, request.head_bytes, evaluation, answers) + filling)
        step.append(_step_seconds(request, site, one, kept._replace(hits=np.where(fills, 1.0, kept.hits))))
    return Choices(
        rows=tuple(Choice(one, without.batch, *row[:-1], row[-1].cached) for one in bits for row in grid),
        fixed=_joined(fixed),
        evaluation=_joined([np.broadcast_to(evaluation, count) for evaluation, _ in evaluations]),
        answers=_joined([np.broadcast_to(answers, count) for _, answers in evaluations]),
        evaluation_share=_evaluation_share(request, site),
        step=_joined(step),
        room=np.where(load <= request.load_budget(site), (limit - memory) / element_bytes, -1.0),
        memory=memory,
        load=load,
        element_bytes=element_bytes,
    )


def lowest_layers(request: PlanRequest, site: SiteProfile) -> tuple[int, ...]:
    """The lowest trained layers among which the depth is chosen, whole model first, down to the one that reaches all covered weights."""
    layers = max(1, site.base.layers)
    if request.spec.planning.depth is Depth.FULL:
        return (0,)
    depths = {layers - max(1, round(fraction * layers)) for fraction in _DEPTHS}
    first = {lowest for lowest in depths if lowest <= site.base.whole_layer or not site.base.whole}
    highest = max((weight.layer for weight in site.base.weights), default=0)
    deepest = max((lowest for lowest in first if lowest <= min(request.lowest_covered, highest)), default=0)
    return tuple(sorted(lowest for lowest in first if max(request.floor or 0, deepest) <= lowest <= highest))


def _micro_batch_sizes(request: PlanRequest, site: SiteProfile) -> tuple[int, ...]:
    """The sizes of `planning.batchSizes`, and the one that was found when a larger one ran out of memory here, up to a device's largest."""
    found = request.correction(site).micro_batch
    sizes = (*request.spec.planning.batch_sizes, *((found,) if found else ()))
    return tuple(sorted({min(size, largest_pass(request.batch_of(site), site.devices)) for size in sizes}))


def step_seconds_of(request: PlanRequest, site: SiteProfile, choice: Choice) -> float:
    """Seconds of an optimiser step of this choice; with cached activations, of one that finds them."""
    return _seconds_of_lines(request, site, choice)[1]


def seconds_of_steps(request: PlanRequest, site: SiteProfile, choice: Choice, steps: int) -> float:
    """Seconds of so many optimiser steps. With cached activations, a first pass over the data fills the cache."""
    filling, found, mixed = _seconds_of_lines(request, site, choice)
    return min(steps * mixed, filling + steps * found)


def steps_within(request: PlanRequest, site: SiteProfile, choice: Choice, seconds: float) -> int:
    """The most optimiser steps in so many seconds; 0 in none or less."""
    filling, found, mixed = _seconds_of_lines(request, site, choice)
    return max(0, floor(seconds / mixed + _ROUNDING), floor((seconds - filling) / found + _ROUNDING))


def found_share_of(request: PlanRequest, site: SiteProfile, choice: Choice, steps: int) -> float:
    """The share of so many steps that find their activations in the cache."""
    computed = (1 - kept_share_of(request, site, choice)) * min(1.0, batches_of_a_pass(site.train_samples, choice.batch) / steps)
    return 1 - computed if choice.cached else 0.0


def kept_share_of(request: PlanRequest, site: SiteProfile, choice: Choice) -> float:
    """The share of the site's batches whose activations for this choice its cache holds from earlier rounds."""
    return float(choice.cached * _kept_share(request, site, choice.bits, _columns(choice))[0])


def other_seconds_of(request: PlanRequest, site: SiteProfile, bits: Bits, upload: int, micro_batch: npt.ArrayLike) -> Float64:
    """Seconds of a round but for the steps, with an update of so many bytes, corrected by what earlier rounds showed.

    The evaluation's passes, and its answers to prompts, are of as many samples at once as the training's.
    """
    return _other_seconds(request, site, upload, *_evaluation_seconds(request, site, bits, micro_batch))


def _other_seconds(request: PlanRequest, site: SiteProfile, upload: int, evaluation: Float64, answers: Float64) -> Float64:
    """Seconds of a round but for the steps, with an evaluation whose two parts take so many."""
    evaluated = _within(evaluation, answers, _evaluation_share(request, site) * request.deadline)
    return np.asarray(evaluated + transfer_seconds(request, site, upload))


def transfer_seconds(request: PlanRequest, site: SiteProfile, upload: float) -> float:
    """Seconds to receive the global adapter and to send an update of so many bytes, corrected by what earlier rounds showed."""
    return request.correction(site).transfers * (download_seconds(site, request.download(site)) + upload_seconds(site, upload))


def _evaluation_seconds(request: PlanRequest, site: SiteProfile, bits: Bits, micro_batch: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Seconds of set-up, load, first step and evaluation, and those of all the answers to prompts; corrected."""
    evaluation, factor = request.spec.evaluation, request.correction(site).other_seconds
    fixed = fixed_seconds(site, bits, evaluated=evaluation.max_samples, batch=micro_batch)
    prompts = min(evaluation.generations, evaluation.max_samples)
    return factor * fixed, factor * generation_seconds(site, bits, prompts, evaluation.max_new_tokens, micro_batch)


def _evaluation_share(request: PlanRequest, site: SiteProfile) -> float:
    """The share of the deadline after which the trainer ends an evaluation that would leave too little time; corrected."""
    return EVALUATION_SHARE * request.correction(site).other_seconds


def _within(evaluation: Float64, answers: Float64, seconds: float) -> Float64:
    """Seconds of an evaluation whose answers end after so many. The forecast counts answers as long as they may be."""
    return np.minimum(evaluation + answers, np.maximum(evaluation, seconds))


def known_need(site: SiteProfile, bits: Bits) -> int:
    """Bytes that any plan at this bit width exceeds, because the site's profile ran out of so many there; 0 if it did not.

    Whatever the formula says: so the bits are planned only where the site has got more memory since.
    """
    return site.out_of_memory.get(bits, 0)


def load_need(site: SiteProfile, bits: Bits) -> float:
    """Bytes that loading the base needs, whatever is trained: what was measured, or as many as the profile ran out of."""
    return max(load_peak_bytes(site, bits), known_need(site, bits))


def seconds_per_element(request: PlanRequest, site: SiteProfile) -> float:
    """Seconds to send one element of an adapter."""
    return request.correction(site).transfers * upload_seconds(site, request.element_bytes(site))


def _checkpointing(request: PlanRequest, site: SiteProfile) -> Sequence[bool]:
    """Whether activations may be recomputed: as the spec says, else as memory asks; never where the architecture cannot."""
    wanted = request.spec.training.gradient_checkpointing
    if not site.base.supports_gradient_checkpointing:
        return (False,)
    return (False, True) if wanted is None else (wanted,)


def _caching(request: PlanRequest, site: SiteProfile, lowest: int) -> Sequence[_Caching]:
    """How the activations below the lowest trained layer may be cached.

    At the fleet's floor they always are, for the rounds to come: without a whole pass it costs nothing. Elsewhere of equal rows the last
    counts (`site_problem`), so that nothing is cached in vain.
    """
    none, kept, filled = _Caching(cached=False, fills=False), _Caching(cached=True, fills=False), _Caching(cached=True, fills=True)
    if not can_cache(request, site, lowest):
        return (none,)
    return (kept, filled) if lowest == request.floor else (kept, none, filled)


def can_cache(request: PlanRequest, site: SiteProfile, lowest: int) -> bool:
    """Whether the site can keep what enters this layer, and reading it takes at most half of the time that it saves."""
    return bool(request.has_cache(site) and lowest and not site.base.encoder_decoder and _saves_time(site, lowest))


def _saves_time(site: SiteProfile, lowest: int) -> bool:
    fastest = max(site.points, key=lambda point: point.tokens_per_second, default=None)
    if fastest is None:
        return False
    # Seconds a token.
    reading = site.base.hidden_size * _STATE_BYTES / _VOLUME_BYTES_PER_SECOND
    saved = forward_share(site, fastest.bits) * lowest / max(1, site.base.layers) / fastest.tokens_per_second
    return _SLOWEST_READING * reading <= saved


def _columns(choice: Choice) -> Columns:
    micro_batch, checkpointing, lowest = (np.array([value]) for value in (choice.micro_batch, choice.checkpointing, choice.lowest_layer))
    return Columns(choice.batch, micro_batch, checkpointing, lowest, hits=np.zeros(1))


def _kept_share(request: PlanRequest, site: SiteProfile, bits: Bits, columns: Columns, *, by_batch: bool = True) -> Float64:
    """f: the share of the batches that the cache holds for each choice. Other passes than those of the last round were not cached.

    Unless `by_batch`, of rows whose batch is still to be chosen: what the cache holds of a smaller one counts as well.
    """
    kept = request.kept.get(site.name)
    if kept is None or kept.bits != bits or kept.batch_size > columns.batch or (by_batch and kept.batch_size != columns.batch):
        return np.zeros(len(columns.hits))
    largest = largest_step(site.train_samples, kept.batch_size)
    same_pass = np.minimum(columns.micro_batch, largest) == min(kept.micro_batch, largest)
    return np.where(same_pass & (columns.lowest_layer == kept.lowest_layer), kept.share, 0.0)


def _filling_seconds(request: PlanRequest, site: SiteProfile, bits: Bits, columns: Columns) -> Float64:
    """P · (1 − f) · e: seconds by which the steps of a pass over the data exceed those that find everything in the cache."""
    excess = _step_seconds(request, site, bits, columns) - _step_seconds(request, site, bits, columns._replace(hits=np.ones(1)))
    return batches_of_a_pass(site.train_samples, columns.batch) * excess


def _seconds_of_lines(request: PlanRequest, site: SiteProfile, choice: Choice) -> tuple[float, float, float]:
    """Of a choice: the seconds that fill the cache, and those of a step that finds its activations and of one of the first pass."""
    columns = _columns(choice)
    kept = columns._replace(hits=np.array([kept_share_of(request, site, choice)]))
    mixed = float(_step_seconds(request, site, choice.bits, kept)[0])
    if not choice.cached:
        return 0.0, mixed, mixed
    found = float(_step_seconds(request, site, choice.bits, columns._replace(hits=np.ones(1)))[0])
    return float(_filling_seconds(request, site, choice.bits, kept)[0]), found, mixed


def _step_seconds(request: PlanRequest, site: SiteProfile, bits: Bits, columns: Columns) -> Float64:
    """Seconds of a step of each choice."""
    layers = max(1, site.base.layers)
    whole = step_seconds(site, bits, columns.batch, micro_batch=columns.micro_batch)
    relative = relative_step_seconds(
        layers,
        layers - columns.lowest_layer,
        forward=forward_share(site, bits),
        checkpointing=columns.checkpointing,
        cached_share=columns.hits,
    )
    return np.asarray(request.correction(site).step_seconds * whole * relative)


def _memory(request: PlanRequest, site: SiteProfile, bits: Bits, columns: Columns) -> Float64:
    """Peak bytes of training of each choice without adapters of its own: the whole global adapter is a frozen residual."""
    step = Step(columns.micro_batch, request.longest_sequence(site), columns.lowest_layer, columns.checkpointing)
    residual = WIRE_BYTES * request.options.global_rank * rank_parameters(site.base.weights)
    return residual + TrainingMemory.at(site, bits, request.options).without_adapters(step)


def _joined(parts: Sequence[Float64]) -> Float64:
    return np.concatenate(parts) if parts else np.zeros(0)
