"""The choices of a site: every combination of bits, micro-batch, checkpointing and depth, as arrays with one row each.

Of a combination, three numbers matter to the optimiser: the seconds that do not depend on the steps, the seconds of a step, and the
elements of adapters for which memory leaves room. Ranks and steps are chosen within them (`site_problem`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple, Self

import numpy as np

from fedpipe_operator.api import Bits, Depth
from fedpipe_operator.planning.memory_model import TRAINED_BYTES, Bool, Float64, Int64, Step, TrainingMemory, load_peak_bytes
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.sizes import WIRE_BYTES, residual_parameters
from fedpipe_operator.planning.time_model import fixed_seconds, forward_share, relative_step_seconds, step_seconds, upload_seconds
from fedpipe_operator.sites import SiteProfile

_DEPTHS: Final = (1.0, 3 / 4, 1 / 2, 1 / 3, 1 / 4, 1 / 8)
"""The fractions of the layers among which a depth is chosen."""


class Choice(NamedTuple):
    """One combination."""

    bits: Bits
    micro_batch: int
    checkpointing: bool
    lowest_layer: int
    cached: bool


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


def choices_of(request: PlanRequest, site: SiteProfile, *, lowest: Sequence[int] | None = None) -> Choices:
    """The combinations of a site.

    Args:
        request: the run.
        site: the site.
        lowest: the lowest trained layers to choose from; None: those of the run.
    """
    grid = list(
        product(micro_batches(request), _checkpointing(request), lowest_layers(request, site) if lowest is None else lowest, (False,))
    )
    bits = sorted(set(request.spec.planning.bits) - set(site.unsupported))
    micro, checkpointing, first, cached = (np.array(column) for column in zip(*grid, strict=True))
    columns = Columns(micro, checkpointing, first, cached)
    blocks = [BitsFigures.of(request, site, one) for one in bits]
    limit, residual, factor = request.memory_budget(site), _residual_bytes(request, site), request.correction(site).memory
    memory = factor * _joined([residual + block.memory_of(columns) for block in blocks])
    load = factor * _joined([np.full(len(grid), block.load) for block in blocks])
    return Choices(
        rows=tuple(Choice(one, *row) for one in bits for row in grid),
        fixed=_joined([np.full(len(grid), block.fixed) for block in blocks]),
        step=_joined([block.step_of(columns) for block in blocks]),
        # A trained element takes the place of one of the frozen residual.
        room=np.where(load <= limit, (limit - memory) / factor / (TRAINED_BYTES - WIRE_BYTES), -1.0),
        memory=memory,
        load=load,
    )


def lowest_layers(request: PlanRequest, site: SiteProfile) -> tuple[int, ...]:
    """The lowest trained layers among which the depth is chosen, whole model first."""
    layers = max(1, site.base.layers)
    if request.spec.planning.depth is Depth.FULL or request.is_stalled:
        return (0,)
    first = {layers - max(1, round(fraction * layers)) for fraction in _DEPTHS}
    return tuple(sorted(lowest for lowest in first if any(weight.layer >= lowest for weight in site.base.weights)))


def micro_batches(request: PlanRequest) -> tuple[int, ...]:
    """The batch, and the smaller sizes of `planning.batchSizes`."""
    return tuple(sorted(set(request.spec.planning.batch_sizes)))


def step_seconds_of(request: PlanRequest, site: SiteProfile, choice: Choice) -> float:
    """Seconds of an optimiser step of this choice."""
    one = Columns(*(np.array([value]) for value in choice[1:]))
    return float(BitsFigures.of(request, site, choice.bits).step_of(one)[0])


def seconds_per_element(site: SiteProfile) -> float:
    """Seconds to send one element of an adapter."""
    return upload_seconds(site, WIRE_BYTES)


def _checkpointing(request: PlanRequest) -> Sequence[bool]:
    wanted = request.spec.training.gradient_checkpointing
    return (False, True) if wanted is None else (wanted,)


class Columns(NamedTuple):
    """The fields of many choices of equal bits as arrays."""

    micro_batch: Int64
    checkpointing: Bool
    lowest_layer: Int64
    cached: Bool


@dataclass(frozen=True)
class BitsFigures:
    """The figures of a site at one bit width, computed once for all of its choices."""

    request: PlanRequest
    site: SiteProfile
    bits: Bits
    fixed: float
    """Seconds that depend neither on the steps nor on the adapters."""
    forward: float
    load: float
    """Peak bytes of loading the base."""
    memory: TrainingMemory

    @classmethod
    def of(cls, request: PlanRequest, site: SiteProfile, bits: Bits) -> Self:
        """The figures of a site at a bit width."""
        evaluated = request.spec.evaluation.max_samples
        fixed = fixed_seconds(site, bits, download=request.download(site), evaluated=evaluated)
        return cls(
            request=request,
            site=site,
            bits=bits,
            fixed=request.correction(site).other_seconds * fixed + upload_seconds(site, request.head_bytes),
            forward=forward_share(site, bits),
            load=load_peak_bytes(site, bits),
            memory=TrainingMemory.at(site, bits, request.options),
        )

    def step_of(self, choices: Columns) -> Float64:
        """Seconds of a step of each choice."""
        layers, sizes = max(1, self.site.base.layers), np.unique(choices.micro_batch)
        whole = np.array([step_seconds(self.site, self.bits, self.request.batch, micro_batch=int(size)) for size in sizes])
        relative = relative_step_seconds(
            layers,
            layers - choices.lowest_layer,
            forward=self.forward,
            checkpointing=choices.checkpointing,
            cached_share=np.where(choices.cached, _CACHED_SHARE, 0.0),
        )
        correction = self.request.correction(self.site).step_seconds
        return np.asarray(correction * whole[np.searchsorted(sizes, choices.micro_batch)] * relative)

    def memory_of(self, choices: Columns) -> Float64:
        """Peak bytes of training of each choice, without adapters."""
        length = self.request.longest_sequence(self.site)
        return self.memory.without_adapters(Step(choices.micro_batch, length, choices.lowest_layer, choices.checkpointing))


def _residual_bytes(request: PlanRequest, site: SiteProfile) -> float:
    """Bytes of the whole global adapter as a frozen residual."""
    return float(WIRE_BYTES * residual_parameters(site.base.weights, {}, request.options.global_rank))


def _joined(parts: Sequence[Float64]) -> Float64:
    return np.concatenate(parts) if parts else np.zeros(0)


_CACHED_SHARE: Final = 2 / 3
"""The share of a run's batches that are read from the cache: of three passes over the data, the first computes what the others read."""
