"""The memory model: peak memory of a site's trainer for given bits, batch size, sequence length and ranks.

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
from typing import Final

from fedpipe_operator.planning.calibration import Calibration, Observation, calibrate
from fedpipe_operator.planning.sizes import WIRE_BYTES, adapter_parameters, head_parameters, head_shapes, uniform_ranks
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Bits

_TRAINED_BYTES: Final = 16
"""Per trained parameter: fp32 weight, fp32 gradient, 8 bytes of Adam state."""
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
    checkpointing: bool = False
    """Whether the backward pass recomputes the activations."""


def predict_peak(  # noqa: PLR0913 -- the fields of a measured point, as the benchmark passes them
    profile: SiteProfile, *, bits: Bits, batch: int, length: int, ranks: Mapping[str, int], options: RunOptions = RunOptions()
) -> int:
    """Peak bytes of the trainer's process (CPU) or of its device (GPU).

    Args:
        profile: the site and its measurements.
        bits: bit width of the frozen base.
        batch: samples per step.
        length: tokens of the longest sample.
        ranks: by weight; a weight without an entry has no adapter.
        options: what the run adds.
    """
    fit = calibration_of(profile, bits)
    activations = _activations(profile, bits, batch=batch, length=length, checkpointing=options.checkpointing)
    residual = WIRE_BYTES * _residual_parameters(profile, ranks, options.global_rank)
    known = _known_bytes(profile, bits, ranks, head=options.head) + residual
    return int(max(load_peak_bytes(profile, bits), known + fit.offset + fit.factor * activations))


def calibration_of(profile: SiteProfile, bits: Bits) -> Calibration:
    """The correction of the analytic form by the site's points at this bit width."""
    known = _known_bytes(profile, bits, uniform_ranks(profile.base.weights, profile.rank), head=None)
    return calibrate(
        Observation(
            peak=float(point.peak_memory_bytes),
            known=known,
            activations=_activations(profile, bits, batch=point.batch_size, length=point.length),
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


def activation_bytes(base: BaseModelFacts, *, element: int, batch: int, length: int, checkpointing: bool) -> float:
    """Peak bytes kept between forward and backward of `batch` × `length` tokens, `element` bytes an element.

    A base with a trainable head is a classifier; any other computes logits over its vocabulary, which dominate in
    small language models. Checkpointing keeps each layer's input and the activations of one layer.
    """
    per_layer = element * (_HIDDEN_ELEMENTS * base.hidden_size + _INTERMEDIATE_ELEMENTS * base.intermediate_size)
    if base.materialised_attention:
        per_layer += element * _SCORE_ELEMENTS * base.attention_heads * length
    layers = element * base.hidden_size * base.layers + per_layer if checkpointing else per_layer * base.layers
    logits = 0 if base.head else _LOGIT_BYTES * base.vocabulary_size
    return batch * length * (layers + logits)


def _activations(profile: SiteProfile, bits: Bits, *, batch: int, length: int, checkpointing: bool = False) -> float:
    """Activation bytes at a site; an element has the size of the compute type, not of the storage type."""
    element = _GPU_ELEMENT_BYTES[bits] if profile.on_gpu else _CPU_ELEMENT_BYTES[bits]
    return activation_bytes(profile.base, element=element, batch=batch, length=length, checkpointing=checkpointing)


def _known_bytes(profile: SiteProfile, bits: Bits, ranks: Mapping[str, int], *, head: Mapping[str, tuple[int, ...]] | None) -> float:
    """Bytes that do not depend on the batch: runtime, base, and all trained parameters with their optimiser state."""
    shapes = head_shapes(profile.base.head, len(profile.labels)) if head is None else head
    trained = adapter_parameters(profile.base.weights, ranks) + head_parameters(shapes)
    return profile.runtime_bytes + base_bytes(profile, bits) + _TRAINED_BYTES * trained


def _residual_parameters(profile: SiteProfile, ranks: Mapping[str, int], global_rank: int) -> int:
    """Elements of the frozen residual: the global adapter's rank above the site's own, per weight."""
    weights = profile.base.weights
    return adapter_parameters(weights, {weight.name: max(0, global_rank - ranks.get(weight.name, 0)) for weight in weights})
