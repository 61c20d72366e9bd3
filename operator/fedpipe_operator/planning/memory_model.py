"""The memory model: peak memory of a site's trainer for given bits, batch, sequence length, depth, checkpointing and ranks.

The peak occurs either while the base is loaded or while the trainer trains. A training step holds the runtime (interpreter
and libraries, or the device's context), the base, the adapters with gradients and Adam state, and the activations.
Measured quantities of the profile are used as they are; the others are analytic, calibrated with the profile's points (`calibration`).

Fewer bits shrink the base. On a GPU this lowers the peak. On a CPU the peak of a small model consists mainly of
activations and of the loading phase, which fewer bits do not shrink (8 bits even enlarge them); the forecast reflects that.

The activations follow the usual form for a transformer (Korthikanti et al., arXiv 2205.05198, eq. 2), with separate terms
for the hidden and the intermediate width because gated MLPs are not 4·h wide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from fedpipe_operator.planning.calibration import Calibration, Observation, calibrate
from fedpipe_operator.planning.sizes import (
    WIRE_BYTES,
    adapter_parameters,
    head_parameters,
    head_shapes,
    rank_parameters,
    residual_parameters,
)
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Bits, Throughput

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

TRAINED_BYTES: Final = 16
"""Per trained parameter: fp32 weight, fp32 gradient, 8 bytes of Adam state."""
_START_BYTES: Final = 4
"""Per trained parameter, where a proximal term holds it near its value at the start of the round, which is kept in fp32 for the term's
gradient mu · (w − w₀) (Li et al., arXiv 1812.06127, eq. 2). That is computed after the backward pass, tensor by tensor, below the peak."""
_BYTES_PER_WEIGHT: Final[Mapping[Bits, float]] = {4: 4.127 / 8, 8: 1.0, 16: 2.0, 32: 4.0}
"""4 bits: NormalFloat in blocks of 64 with double quantisation (Dettmers et al., arXiv 2305.14314): 4.127 bits a weight."""
_ROW_SCALE_BYTES: Final[Mapping[Bits, int]] = {8: 4}
"""8 bits: an fp32 scale for each output row (Dettmers et al., arXiv 2208.07339), that is about one for `hidden_size` weights."""

# Activation elements kept per token and layer. Above the paper's 9·h + 2·i because LoRA stores its inputs in fp32 in addition
# to the 16-bit ones, and because norms compute in fp32; fitted to SmolLM2-135M and MPNet-base, 16 bits, CPU.
_HIDDEN_ELEMENTS: Final = 16
_INTERMEDIATE_ELEMENTS: Final = 5
_SCORE_ELEMENTS: Final = 5
"""Per query, key and head where attention is not fused: scores, mask, softmax, dropout, product."""
_RECOMPUTED_LAYERS: Final = 3
"""Whose activations exist at once with checkpointing: recomputed ones are released late. MiniLM at 16 × 64 needed those of 2.5 and 3.1
layers beside the gradients (16 and 32 bits)."""
_LOGIT_BYTES: Final = 20
"""Per token and vocabulary entry: logits and their gradient, both in 16 bits and in fp32, and the fp32 log-softmax."""
_GPU_ELEMENT_BYTES: Final[Mapping[Bits, int]] = {4: 2, 8: 2, 16: 2, 32: 4}
_CPU_ELEMENT_BYTES: Final[Mapping[Bits, int]] = {4: 2, 8: 3, 16: 2, 32: 4}
"""8-bit layers on a CPU keep an additional fp16 copy; both models above need half as much again."""


@dataclass(frozen=True)
class RunOptions:
    """What memory depends on and the run sets for all sites, independently of a site's plan."""

    head: Mapping[str, tuple[int, ...]] | None = None
    """Shapes of the tensors that are trained in full; None: those of the profile, with the site's own labels."""
    global_rank: int = 0
    """The global adapter's rank. The components that a site of lower rank does not train stay in memory as its frozen residual."""
    is_proximal: bool = False
    """Whether a proximal term holds what is trained near the start of the round. A profile measures its steps without one."""

    @property
    def trained_bytes(self) -> int:
        """Per trained parameter."""
        return TRAINED_BYTES + (_START_BYTES if self.is_proximal else 0)


@dataclass(frozen=True)
class Step:
    """What the activations of a training step depend on and a plan chooses: numbers, or arrays with one element for each of many steps."""

    batch: int | Int64
    """Samples per forward and backward pass."""
    length: int
    """Tokens of the longest sample."""
    lowest_layer: int | Int64 = 0
    """The lowest layer that is trained: those below keep no activations."""
    checkpointing: bool | Bool = False
    """Whether the backward pass recomputes the activations."""


def training_peak(profile: SiteProfile, *, bits: Bits, step: Step, ranks: Mapping[str, int], options: RunOptions = RunOptions()) -> float:
    """Peak bytes of the trainer's process (CPU) or of its device (GPU) while it trains; loading the base has a peak of its own.

    Args:
        profile: the site and its measurements.
        bits: bit width of the frozen base.
        step: batch, length, depth and checkpointing.
        ranks: by weight; a weight without an entry has no adapter.
        options: what the run adds.
    """
    adapters = adapter_parameters(profile.base.weights, ranks)
    residual = residual_parameters(profile.base.weights, ranks, options.global_rank)
    peak = float(TrainingMemory.at(profile, bits, options).without_adapters(step))
    return peak + options.trained_bytes * adapters + WIRE_BYTES * residual


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of training at a site and a bit width, fitted once for all of its steps."""

    profile: SiteProfile
    bits: Bits
    known: float
    """Bytes of runtime, base and head."""
    fit: Calibration

    @classmethod
    def at(cls, profile: SiteProfile, bits: Bits, options: RunOptions) -> Self:
        """The fit for a site and a bit width."""
        known = _known_bytes(profile, bits, head=options.head, trained_bytes=options.trained_bytes)
        return cls(profile, bits, known, calibration_of(profile, bits))

    def without_adapters(self, step: Step) -> Float64:
        """Peak bytes of training but for the adapters.

        A trained element adds `RunOptions.trained_bytes`, one of the frozen residual `WIRE_BYTES`.
        """
        return self.known + self.fit.offset + self.fit.factor * _activations(self.profile, self.bits, step)


def calibration_of(profile: SiteProfile, bits: Bits) -> Calibration:
    """The correction of the analytic form by the site's points at this bit width. No peak counts as less than the runtime takes alone."""
    return calibrate(
        Observation(
            peak=float(max(point.peak_memory_bytes, profile.runtime_bytes)),
            known=_known_bytes(profile, bits, adapters=_measured_adapters(profile, point), head=None),
            activations=float(_activations(profile, bits, _step_of(point))),
        )
        for point in profile.points_at(bits)
        if point.peak_memory_bytes > 0
    )


def base_bytes(profile: SiteProfile, bits: Bits) -> float:
    """Bytes of the loaded base: measured, else its quantised parameters at `bits` and the others at 16 (all of them at 16 and 32)."""
    if bits in profile.base_bytes:
        return profile.base_bytes[bits]
    facts = profile.base
    per_weight = _BYTES_PER_WEIGHT[bits] + _ROW_SCALE_BYTES.get(bits, 0) / facts.hidden_size
    others = facts.parameters - facts.quantised_parameters
    return per_weight * facts.quantised_parameters + max(_BYTES_PER_WEIGHT[bits], _BYTES_PER_WEIGHT[16]) * others


def load_peak_bytes(profile: SiteProfile, bits: Bits) -> float:
    """Peak while the base is loaded: measured, else the loaded base plus, on a CPU, the 16-bit weights from which it is quantised."""
    if bits in profile.load_peak_bytes:
        return profile.load_peak_bytes[bits]
    source = 0.0 if profile.on_gpu else _BYTES_PER_WEIGHT[16] * profile.base.parameters
    return profile.runtime_bytes + base_bytes(profile, bits) + source


def activation_bytes(base: BaseModelFacts, *, element: int, step: Step) -> Float64:
    """Peak bytes kept between forward and backward of a pass over `batch` × `length` tokens, `element` bytes an element.

    A base with a trainable head is a classifier; any other computes logits over its vocabulary, which dominate in
    small language models. Only the trained layers keep activations. Beside them the backward pass holds the gradients of the activations of
    the layer that it is in. Checkpointing keeps each layer's input, and the activations of a few layers.
    """
    # In floats: whole numbers of 64 bits do not hold the bytes of the longest batches that a profile may have.
    trained = np.maximum(1.0, base.layers - np.asarray(step.lowest_layer, dtype=np.float64))
    per_layer = element * (_HIDDEN_ELEMENTS * base.hidden_size + _INTERMEDIATE_ELEMENTS * base.intermediate_size)
    if base.materialised_attention:
        per_layer += element * _SCORE_ELEMENTS * base.attention_heads * step.length
    inputs = element * base.hidden_size * trained
    kept = np.where(step.checkpointing, inputs + per_layer * np.minimum(trained, _RECOMPUTED_LAYERS), per_layer * trained)
    logits = 0 if base.head else _LOGIT_BYTES * base.vocabulary_size
    return np.asarray(np.asarray(step.batch, dtype=np.float64) * step.length * (kept + per_layer + logits))


def _step_of(point: Throughput) -> Step:
    return Step(point.batch_size, point.length, lowest_layer=point.lowest_layer, checkpointing=point.gradient_checkpointing)


def _measured_adapters(profile: SiteProfile, point: Throughput) -> int:
    """Elements of the adapters while the point was measured."""
    return profile.rank * rank_parameters(weight for weight in profile.base.weights if weight.layer >= point.lowest_layer)


def _activations(profile: SiteProfile, bits: Bits, step: Step) -> Float64:
    """Activation bytes at a site; an element has the size of the compute type, not of the storage type."""
    element = _GPU_ELEMENT_BYTES[bits] if profile.on_gpu else _CPU_ELEMENT_BYTES[bits]
    return activation_bytes(profile.base, element=element, step=step)


def _known_bytes(
    profile: SiteProfile,
    bits: Bits,
    *,
    head: Mapping[str, tuple[int, ...]] | None,
    adapters: int = 0,
    trained_bytes: int = TRAINED_BYTES,
) -> float:
    """Bytes that do not depend on the batch: runtime, base, and all trained parameters with their optimiser state."""
    shapes = head_shapes(profile.base, len(profile.labels)) if head is None else head
    trained = adapters + head_parameters(shapes)
    return profile.runtime_bytes + base_bytes(profile, bits) + trained_bytes * trained
