"""The time model: seconds and bytes on the wire of a round at a site.

seconds = set-up + load + first step + evaluation + steps · (seconds of a step) + 8 · upload bytes / up + 8 · download bytes / down

A step of the whole model takes batch · (tokens of a row, padding included) / (measured tokens per second). Of it the forward pass is
a share φ (`forward_share`); the rest is the backward pass, which only the k trained layers of L need (FedAdapter, arXiv 2205.10162):

    step(k) / step(L) = φ · (1 − c · (L − k)/L) + (1 − φ) · k/L + [checkpointing] φ · k/L

where c is the share of the batches whose activations below the trained layers are read from the site's cache.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from fedpipe_operator.planning.sizes import WIRE_BYTES, adapter_parameters, head_parameters, rank_parameters
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits, Throughput

BITS_PER_BYTE: Final = 8
_MEAN_ROUNDING: Final = 3.5
"""Tokens by which rounding up to a multiple of eight lengthens a row, on average."""
_PRIOR_FORWARD_SHARE: Final = 0.5
"""2 of 4 FLOP per parameter and token: a frozen base needs no gradients of its weights."""


def tokens_per_second(profile: SiteProfile, bits: Bits, batch: int) -> float:
    """Measured training speed of the whole model, interpolated linearly between the measured batches and constant beyond them.

    A bit width that was not measured is assumed to be as slow as the slowest measured one.

    Raises:
        ValueError: no training step of the whole model was measured at this site.
    """
    if not has_speed(profile):
        raise ValueError(f"the profile of site {profile.name!r} contains no measured training step")
    measured = [point for point in profile.points_at(bits) if _is_whole(point)]
    if not measured:
        return min(tokens_per_second(profile, other, batch) for other in {point.bits for point in profile.points if _is_whole(point)})
    row = padded_row_tokens(profile, batch)
    # Where a batch was measured at several lengths, the point nearest to the round's length is used; of equals the longer.
    speeds = {
        point.batch_size: point.tokens_per_second for point in sorted(measured, key=lambda point: (-abs(point.length - row), point.length))
    }
    return _interpolate(speeds, batch)


def has_speed(profile: SiteProfile) -> bool:
    """Whether the speed of a training step of the whole model was measured, at any bit width."""
    return any(_is_whole(point) for point in profile.points)


def forward_share(profile: SiteProfile, bits: Bits) -> float:
    """φ: the forward pass's share of a training step of the whole model.

    From a step of the upper layers only, if one was measured; else from the speed of a forward pass alone; else 2 of 4 FLOP.
    """
    measured = profile.points_at(bits)
    shares = [share for point in measured if (share := _share_by_depth(profile, point)) is not None]
    shares = shares or [point.tokens_per_second / point.evaluate_tokens_per_second for point in measured if _is_whole(point)]
    share = sum(shares) / len(shares) if shares else _PRIOR_FORWARD_SHARE
    return min(0.9, max(0.1, share))


def relative_step_seconds(
    layers: int, trained: npt.ArrayLike, *, forward: float, checkpointing: npt.ArrayLike, cached_share: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """step(k) / step(L) for the k = `trained` upper layers of L = `layers`, by the formula in the module's docstring; numbers or arrays."""
    fraction = np.asarray(trained, dtype=np.float64) / layers
    recomputed = np.where(checkpointing, forward * fraction, 0.0)
    return np.asarray(forward * (1 - np.asarray(cached_share) * (1 - fraction)) + (1 - forward) * fraction + recomputed)


def padded_row_tokens(profile: SiteProfile, batch: int) -> float:
    """Mean tokens of a row including padding: all rows of a batch have the length of its longest sample, in steps of eight tokens.

    The trainer composes batches of like lengths, so a row is padded by half of what a batch spans: of the n / batch batches of a site
    each spans that part of all lengths, and rounding up to eight tokens adds 3.5. Never more than the longest sample.
    """
    mean = max(1.0, profile.mean_tokens)
    if profile.longest_tokens <= mean or batch == 1:
        return mean
    batches = max(1, -(-profile.train_samples // batch))
    return min(float(profile.longest_tokens), mean + _MEAN_ROUNDING + profile.longest_tokens / (2 * batches))


def step_seconds(profile: SiteProfile, bits: Bits, batch: int, *, micro_batch: int | None = None) -> float:
    """Seconds of one optimiser step of the whole model; its passes are as fast as batches of `micro_batch` samples."""
    return batch * padded_row_tokens(profile, batch) / tokens_per_second(profile, bits, micro_batch or batch)


def evaluation_seconds(profile: SiteProfile, bits: Bits, samples: int) -> float:
    """Seconds of forward passes over this many validation samples, at the fastest speed that was measured."""
    fastest = max(point.evaluate_tokens_per_second for point in profile.points_at(bits) or profile.points)
    return min(samples, profile.validation_samples) * max(1.0, profile.mean_tokens) / fastest


def wire_bytes(profile: SiteProfile, ranks: Mapping[str, int], head: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of an update on the wire: 4·Σ r·(d_in + d_out), plus the head."""
    return WIRE_BYTES * (adapter_parameters(profile.base.weights, ranks) + head_parameters(head))


def global_bytes(profile: SiteProfile, rank: int, head: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the global adapter on the wire when all its weights have this rank."""
    return WIRE_BYTES * (rank * rank_parameters(profile.base.weights) + head_parameters(head))


def upload_seconds(profile: SiteProfile, upload: float) -> float:
    """Seconds to send this many bytes to the store."""
    return BITS_PER_BYTE * upload / profile.up


def fixed_seconds(profile: SiteProfile, bits: Bits, *, download: int, evaluated: int = 0) -> float:
    """Seconds of a round that depend neither on the steps nor on the update: set-up, load, download, evaluation, the first step's extra.

    A load that was not measured is assumed to be as slow as the slowest measured one; the same holds for the first step.
    """
    once = _of_bits(profile.load_seconds, bits) + _of_bits(profile.first_step_seconds, bits)
    transfer = BITS_PER_BYTE * download / profile.down
    return profile.setup_seconds + once + transfer + evaluation_seconds(profile, bits, evaluated)


def _is_whole(point: Throughput) -> bool:
    """Whether the point is the speed of a step with all layers trained and no activation recomputed."""
    return point.lowest_layer == 0 and not point.gradient_checkpointing


def _share_by_depth(profile: SiteProfile, shallow: Throughput) -> float | None:
    """φ from a step of the upper layers and one of the whole model, of the same batch: (t_k / t_L − k/L) / (1 − k/L)."""
    if shallow.lowest_layer == 0 or shallow.gradient_checkpointing:
        return None
    same = [point for point in profile.points_at(shallow.bits) if _is_whole(point) and point.batch_size == shallow.batch_size]
    whole = min(same, key=lambda point: abs(point.length - shallow.length), default=None)
    fraction = (profile.base.layers - shallow.lowest_layer) / max(1, profile.base.layers)
    if whole is None or fraction >= 1:
        return None
    return (whole.tokens_per_second / shallow.tokens_per_second - fraction) / (1 - fraction)


def _of_bits(values: Mapping[Bits, float], bits: Bits) -> float:
    return values.get(bits, max(values.values(), default=0.0))


def _interpolate(values: Mapping[int, float], at: int) -> float:
    known = sorted(values)
    if at <= known[0]:
        return values[known[0]]
    for low, high in pairwise(known):
        if at <= high:
            fraction = (at - low) / (high - low)
            return values[low] + fraction * (values[high] - values[low])
    return values[known[-1]]
