"""How well a site used its device, its energy and its network in one training (arXiv 2310.03150, the figures of a site). Pure.

They are shown and decide nothing. What was not measured, or is no plausible number, is absent and not 0.
"""

from typing import Annotated, Final

from pydantic import Field

from fedpipe_operator.admission import LARGEST_MFU, LARGEST_RATE, AdmittedUpdate, plausible
from fedpipe_trainer.contract import EnergySource, Wire
from fedpipe_trainer.contract.codec import CodecName

_BITS: Final = 8

_Rate = Annotated[float, Field(ge=0, le=LARGEST_RATE, allow_inf_nan=False)]


class Efficiency(Wire):
    """The figures of one training."""

    tokens_per_second: _Rate | None = None
    """Of the steps, without padding."""
    padded_tokens_per_second: _Rate | None = None
    """Of the steps, with the padding that was computed beside them."""
    mfu: Annotated[float, Field(ge=0, le=LARGEST_MFU, allow_inf_nan=False)] | None = None
    """Share of the device's peak FLOP/s that the tokens used, without padding."""
    tokens_per_joule: _Rate | None = None
    """Of the steps, without padding."""
    energy_source: EnergySource | None = None
    """What counted the energy. None: nothing did, or the trainer is of a version that does not say it."""
    granularity: _Rate | None = None
    """G = T_comp / T_comm: seconds of the steps over those of all transfers of the task. Below 1, it waited for the network longer."""
    bits_per_second: _Rate | None = None
    """Bits of both directions over the seconds of all transfers."""
    codecs: Annotated[dict[CodecName, Annotated[int, Field(ge=0)]], Field(max_length=16)] = {}
    """Tensors of the update by the codec that they travelled with; empty without a codec."""
    update_cosine: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    """Between the increment that was trained and what is decoded of it, by the site; None without a codec."""


def efficiency_of(update: AdmittedUpdate) -> Efficiency:
    """The figures of a completed training.

    An attempt that went on at the checkpoint of another did a part of the steps and all transfers: it has no granularity.
    """
    measured, speed = update.measured, update.tokens_per_second
    steps, transfers = measured.seconds.get("train", 0.0), measured.seconds.get("transfer", 0.0)
    joules = update.energy_joules
    return Efficiency(
        tokens_per_second=plausible(speed, LARGEST_RATE),
        padded_tokens_per_second=None if speed is None else plausible(speed * _padded_per_token(update), LARGEST_RATE),
        mfu=plausible(update.mfu, LARGEST_MFU),
        tokens_per_joule=_ratio(_new_tokens(update), joules),
        energy_source=update.energy_source if joules else None,
        granularity=None if update.resumed_from_step else _ratio(steps, transfers),
        bits_per_second=_ratio(_BITS * (measured.uploaded_bytes + measured.downloaded_bytes), transfers),
        codecs=update.codecs or {},
        update_cosine=plausible(update.update_cosine, 1.0),
    )


def _padded_per_token(update: AdmittedUpdate) -> float:
    return (update.tokens + update.padded_tokens) / update.tokens if update.tokens else 1.0


def _new_tokens(update: AdmittedUpdate) -> float:
    """Those of this attempt's steps, of which alone the energy is known: a part of all that is as large as that of its steps."""
    return update.tokens * (update.steps - update.resumed_from_step) / update.steps if update.steps else 0.0


def _ratio(part: float, whole: float | None) -> float | None:
    """None where one of them was not measured."""
    return plausible(part / whole, LARGEST_RATE) if part and whole else None
