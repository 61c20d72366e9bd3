"""The choices of a site: every combination of bits, micro-batch, checkpointing, depth and caching, as arrays with one row each.

Of a combination, three numbers matter to the optimiser: the seconds that do not depend on the steps, the seconds of a step, and the
elements of adapters for which memory leaves room. Ranks and steps are chosen within them (`site_problem`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpipe_operator.api import Bits, Depth
from fedpipe_operator.planning.memory_model import TRAINED_BYTES, Bool, Float64, Int64, Step, TrainingMemory, load_peak_bytes, predict_peak
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
_ELEMENT_BYTES: Final = TRAINED_BYTES - WIRE_BYTES
"""Bytes that a trained element of an adapter adds: it takes the place of one of the frozen residual."""


class Choice(NamedTuple):
    """One combination."""

    bits: Bits
    batch: int
    """Samples of an optimiser step: here the run's, and of a slow site less in the end (`batches`)."""
    micro_batch: int
    checkpointing: bool
    lowest_layer: int
    cached: bool


class Columns(NamedTuple):
    """The fields of many choices of equal bits and batch, as arrays."""

    batch: int
    micro_batch: Int64
    checkpointing: Bool
    lowest_layer: Int64
    cached: Bool


@dataclass(frozen=True)
class Choices:
    """All combinations of one site that the run allows; arrays of one row each."""

    rows: tuple[Choice, ...]
    fixed: Float64
    """Seconds of a round that depend neither on the steps nor on the adapters (the head's upload included)."""
    step: Float64
    """Seconds of an optimiser step."""
    room: Float64
    """Elements of trained adapters for which memory leaves room; negative: not even the base and the activations fit."""
    memory: Float64
    """Peak bytes of training without trained adapters."""
    load: Float64
    """Peak bytes of loading the base."""
    element_bytes: float
    """Bytes that an element of a trained adapter adds."""

    def peak(self, adapters: Float64) -> Float64:
        """Peak bytes of each choice with adapters of so many elements."""
        return np.maximum(self.load, self.memory + self.element_bytes * adapters)


def choices_of(request: PlanRequest, site: SiteProfile, *, lowest: Sequence[int] | None = None) -> Choices:
    """The combinations of a site.

    Args:
        request: the run.
        site: the site.
        lowest: the lowest trained layers to choose from; None: those of the run.
    """
    first = lowest_layers(request, site) if lowest is None else lowest
    grid = [
        (*combination, cached)
        for combination in product(micro_batches(request), _checkpointing(request, site), first)
        for cached in _caching(request, site, combination[-1])
    ]
    bits = sorted(set(request.spec.planning.bits) - set(site.unsupported))
    columns = Columns(request.batch, *(np.array(column) for column in zip(*grid, strict=True)))
    limit, factor, count = request.memory_budget(site), request.correction(site).memory, len(grid)
    memory = factor * _joined([_memory(request, site, one, columns) for one in bits])
    load = factor * _joined([np.full(count, load_peak_bytes(site, one)) for one in bits])
    return Choices(
        rows=tuple(Choice(one, request.batch, *row) for one in bits for row in grid),
        fixed=_joined(
            [
                other_seconds_of(request, site, one, request.head_bytes, columns.micro_batch)
                + _filling_seconds(request, site, one, columns)
                for one in bits
            ]
        ),
        step=_joined([_step_seconds(request, site, one, columns) for one in bits]),
        room=np.where(load <= limit, (limit - memory) / (factor * _ELEMENT_BYTES), -1.0),
        memory=memory,
        load=load,
        element_bytes=factor * _ELEMENT_BYTES,
    )


def lowest_layers(request: PlanRequest, site: SiteProfile) -> tuple[int, ...]:
    """The lowest trained layers among which the depth is chosen, whole model first."""
    layers = max(1, site.base.layers)
    if request.spec.planning.depth is Depth.FULL:
        return (0,)
    first = {layers - max(1, round(fraction * layers)) for fraction in _DEPTHS}
    highest = max((weight.layer for weight in site.base.weights), default=0)
    return tuple(sorted(lowest for lowest in first if lowest <= highest))


def micro_batches(request: PlanRequest) -> tuple[int, ...]:
    """The batch, and the smaller sizes of `planning.batchSizes`."""
    return tuple(sorted(set(request.spec.planning.batch_sizes)))


def step_seconds_of(request: PlanRequest, site: SiteProfile, choice: Choice) -> float:
    """Seconds of an optimiser step of this choice; with cached activations, of one that finds them."""
    return float(_step_seconds(request, site, choice.bits, _columns(choice))[0])


def seconds_of_steps(request: PlanRequest, site: SiteProfile, choice: Choice, steps: int) -> float:
    """Seconds of so many optimiser steps; with cached activations, the first pass over the data fills the cache."""
    filling = float(_filling_seconds(request, site, choice.bits, _columns(choice))[0])
    passes = steps / _batches_of_a_pass(site, choice.batch)
    return steps * step_seconds_of(request, site, choice) + filling * min(1.0, passes)


def other_seconds_of(request: PlanRequest, site: SiteProfile, bits: Bits, upload: int, micro_batch: npt.ArrayLike) -> Float64:
    """Seconds of a round but for the steps, with an update of so many bytes, corrected by what earlier rounds showed.

    The evaluation's passes, and its answers to prompts, are of as many samples at once as the training's.
    """
    evaluation = request.spec.evaluation
    fixed = fixed_seconds(site, bits, evaluated=evaluation.max_samples, batch=micro_batch)
    prompts = min(evaluation.generations, evaluation.max_samples)
    answers = generation_seconds(site, bits, prompts, evaluation.max_new_tokens, micro_batch)
    # The forecast counts answers as long as they may be, and the trainer ends the evaluation where it would leave too little time.
    evaluated = np.minimum(fixed + answers, np.maximum(fixed, EVALUATION_SHARE * request.deadline))
    transfers = download_seconds(site, request.download(site)) + upload_seconds(site, upload)
    return request.correction(site).other_seconds * evaluated + request.correction(site).transfers * transfers


def peak_of(request: PlanRequest, site: SiteProfile, choice: Choice, ranks: Mapping[str, int]) -> float:
    """Peak bytes of this choice with these ranks, corrected by what earlier rounds showed."""
    step = Step(choice.micro_batch, request.longest_sequence(site), choice.lowest_layer, choice.checkpointing)
    return request.correction(site).memory * predict_peak(site, bits=choice.bits, step=step, ranks=ranks, options=request.options)


def seconds_per_element(request: PlanRequest, site: SiteProfile) -> float:
    """Seconds to send one element of an adapter."""
    return request.correction(site).transfers * upload_seconds(site, WIRE_BYTES)


def _checkpointing(request: PlanRequest, site: SiteProfile) -> Sequence[bool]:
    """Whether activations may be recomputed: as the spec says, else as memory asks; never where the architecture cannot."""
    wanted = request.spec.training.gradient_checkpointing
    if not site.base.supports_gradient_checkpointing:
        return (False,)
    return (False, True) if wanted is None else (wanted,)


def _caching(request: PlanRequest, site: SiteProfile, lowest: int) -> Sequence[bool]:
    """Whether the activations below the lowest trained layer may be cached."""
    return (False, True) if request.has_cache(site) and lowest and not site.base.encoder_decoder else (False,)


def _columns(choice: Choice) -> Columns:
    return Columns(choice.batch, *(np.array([value]) for value in choice[2:]))


def _batches_of_a_pass(site: SiteProfile, batch: int) -> int:
    return max(1, ceil(site.train_samples / batch))


def _filling_seconds(request: PlanRequest, site: SiteProfile, bits: Bits, columns: Columns) -> Float64:
    """Seconds by which the steps of a first pass, which fill the cache, exceed those that read it; 0 without a cache.

    In a round of less than a pass this is more than is spent, so such rounds are planned without a cache. What earlier rounds have
    cached is not counted on, since it is of use only as long as no site trains a layer below: where it is, the site is done early.
    """
    if not columns.cached.any():
        return np.zeros(len(columns.cached))
    uncached = _step_seconds(request, site, bits, columns._replace(cached=np.zeros_like(columns.cached)))
    return _batches_of_a_pass(site, columns.batch) * (uncached - _step_seconds(request, site, bits, columns))


def _step_seconds(request: PlanRequest, site: SiteProfile, bits: Bits, columns: Columns) -> Float64:
    """Seconds of a step of each choice."""
    layers = max(1, site.base.layers)
    whole = step_seconds(site, bits, columns.batch, micro_batch=columns.micro_batch)
    relative = relative_step_seconds(
        layers,
        layers - columns.lowest_layer,
        forward=forward_share(site, bits),
        checkpointing=columns.checkpointing,
        cached_share=np.where(columns.cached, 1.0, 0.0),
    )
    return np.asarray(request.correction(site).step_seconds * whole * relative)


def _memory(request: PlanRequest, site: SiteProfile, bits: Bits, columns: Columns) -> Float64:
    """Peak bytes of training of each choice without adapters of its own: the whole global adapter is a frozen residual."""
    step = Step(columns.micro_batch, request.longest_sequence(site), columns.lowest_layer, columns.checkpointing)
    residual = WIRE_BYTES * request.options.global_rank * rank_parameters(site.base.weights)
    return residual + TrainingMemory.at(site, bits, request.options).without_adapters(step)


def _joined(parts: Sequence[Float64]) -> Float64:
    return np.concatenate(parts) if parts else np.zeros(0)
