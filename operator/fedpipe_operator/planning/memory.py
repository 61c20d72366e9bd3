"""The memory model: the peak of a site's trainer for a choice of bits, batch, length and ranks.

A trainer peaks either while it loads the base or while it trains, when it holds the runtime (interpreter and libraries,
or the device's context), the base, the adapters with gradients and Adam state, and the activations. What the profile
measured is taken as it is; the rest is analytic and calibrated by the profile's points (`calibration`).

Fewer bits shrink the base. On a GPU that is what they are for; on a CPU a small model's peak is made of
activations and of the loading, which fewer bits do not shrink (8 bits even swell them), and the forecast says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.planning.activations import activation_bytes, element_bytes
from fedpipe_operator.planning.calibration import Calibration, Observation, calibrate
from fedpipe_operator.planning.sizes import WIRE_BYTES, adapter_parameters, head_parameters, head_shapes, uniform_ranks
from fedpipe_operator.sites.profile import SiteProfile
from fedpipe_trainer.contract import Bits

_TRAINED_BYTES: Final = 16
"""A trained parameter: fp32 weight, fp32 gradient, 8 bytes of Adam state."""
_BYTES_PER_WEIGHT: Final[Mapping[Bits, float]] = {4: 4.127 / 8, 8: 1.0, 16: 2.0, 32: 4.0}
"""4 bits: NormalFloat in blocks of 64 with double quantisation (Dettmers et al., arXiv 2305.14314): 4.127 bits a weight."""
_ROW_SCALE_BYTES: Final[Mapping[Bits, int]] = {8: 4}
"""8 bits: an fp32 scale for each output row (Dettmers et al., arXiv 2208.07339), that is about one for `hidden_size` weights."""


@dataclass(frozen=True)
class Terms:
    """What the run, not the plan, decides and memory depends on."""

    head: Mapping[str, tuple[int, ...]] | None = None
    """Shapes of the tensors that are trained whole; None: the profile's, with the site's own labels."""
    tail_rank: int = 0
    """The global adapter's rank. What a site does not train of it stays frozen beside its own."""
    checkpointing: bool = False
    """Whether the backward pass computes the activations anew."""


def predict_peak(  # noqa: PLR0913 -- the point of a profile, one by one, as the benchmark measures it
    profile: SiteProfile, *, bits: Bits, batch: int, length: int, ranks: Mapping[str, int], terms: Terms = Terms()
) -> int:
    """Peak bytes of the trainer's process (CPU) or of its device (GPU).

    Args:
        profile: the site, with what was measured there.
        bits: of the frozen base.
        batch: samples per step.
        length: tokens of the longest sample.
        ranks: by weight; a weight that is not named has no adapter.
        terms: what the run adds to it.
    """
    fit = calibration_of(profile, bits)
    activations = _activations(profile, bits, batch=batch, length=length, checkpointing=terms.checkpointing)
    held = _known_bytes(profile, bits, ranks, head=terms.head) + WIRE_BYTES * _tail_parameters(profile, ranks, terms.tail_rank)
    return int(max(load_peak_bytes(profile, bits), held + fit.offset + fit.factor * activations))


def calibration_of(profile: SiteProfile, bits: Bits) -> Calibration:
    """What the site's points at this bit width say of the analytic form."""
    known = _known_bytes(profile, bits, uniform_ranks(profile.base.weights, profile.rank), head=None)
    return calibrate(
        Observation(
            peak=float(point.peak_memory_bytes),
            known=known,
            activations=_activations(profile, bits, batch=point.batch_size, length=point.length),
        )
        for point in profile.measured(bits)
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
    """Peak while the base is loaded: measured, else the loaded base, and on a CPU the 16-bit weights it is quantised from beside it."""
    if bits in profile.load_peak_bytes:
        return profile.load_peak_bytes[bits]
    source = 0.0 if profile.on_gpu else _BYTES_PER_WEIGHT[16] * profile.base.parameters
    return profile.runtime_bytes + base_bytes(profile, bits) + source


def _known_bytes(profile: SiteProfile, bits: Bits, ranks: Mapping[str, int], *, head: Mapping[str, tuple[int, ...]] | None) -> float:
    """What is held whatever the batch: runtime, base, and all that is trained."""
    shapes = head_shapes(profile.base.head, len(profile.labels)) if head is None else head
    trained = adapter_parameters(profile.base.weights, ranks) + head_parameters(shapes)
    return profile.runtime_bytes + base_bytes(profile, bits) + _TRAINED_BYTES * trained


def _tail_parameters(profile: SiteProfile, ranks: Mapping[str, int], tail_rank: int) -> int:
    weights = profile.base.weights
    return adapter_parameters(weights, {weight.name: max(0, tail_rank - ranks.get(weight.name, 0)) for weight in weights})


def _activations(profile: SiteProfile, bits: Bits, *, batch: int, length: int, checkpointing: bool = False) -> float:
    element = element_bytes(bits, on_gpu=profile.on_gpu)
    return activation_bytes(profile.base, element=element, batch=batch, length=length, checkpointing=checkpointing)
