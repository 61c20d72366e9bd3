"""The time model: seconds and bytes on the wire of a round at a site.

seconds = set-up + load + first step + evaluation + answers + steps · (seconds of one) + 8 · upload bytes / up + 8 · download bytes / down

A step of the whole model takes its samples · (tokens of a row, padding included) / (measured tokens per second). Of it the forward pass is
a share φ (`forward_share`); the rest is the backward pass, which only the k trained layers of L need (FedAdapter, arXiv 2205.10162):

    step(k) / step(L) = φ · (1 − c · (L − k)/L) + (1 − φ) · k/L + [checkpointing] φ · k/L

where c is the share of the batches whose activations below the trained layers are read from the site's cache.

Where a step is divided among devices, its passes are of equal size and equally many for each; the measured speed is that of all devices.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from fedpipe_operator.planning.passes import batches_of_a_pass, samples_of_a_step
from fedpipe_operator.planning.sizes import WIRE_BYTES, head_parameters, rank_parameters
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits, Throughput

Float64 = npt.NDArray[np.float64]

BITS_PER_BYTE: Final = 8
_MEAN_ROUNDING: Final = 3.5
"""Tokens by which rounding up to a multiple of eight lengthens a row, on average."""
_PRIOR_FORWARD_SHARE: Final = 0.5
"""2 of 4 FLOP per parameter and token: a frozen base needs no gradients of its weights."""


def tokens_per_second(profile: SiteProfile, bits: Bits, batch: npt.ArrayLike) -> Float64:
    """Training speed of the whole model with passes of so many samples; a number or an array.

    Between the measured batches the seconds of a pass are linear, beyond them the speed is constant. A pass takes a time of its own, for
    the calls of its layers, and a time for each sample: MiniLM at 16 bits took 0.063, 0.171 and 0.600 s with 1, 4 and 16 samples, within
    1 % of 0.0276 + 0.0358 a sample. A speed that were linear would be a tenth lower at 2.

    A bit width that was not measured is assumed to be as slow as the slowest measured one.

    Raises:
        ValueError: no training step of the whole model was measured at this site.
    """
    if not has_speed(profile):
        raise ValueError(f"the profile of site {profile.name!r} contains no measured training step")
    measured = [point for point in profile.points_at(bits) if _is_whole(point)]
    if not measured:
        others = {point.bits for point in profile.points if _is_whole(point)}
        return np.asarray(np.min([tokens_per_second(profile, other, batch) for other in others], axis=0))
    # Where a batch was measured at several lengths, the point nearest to the mean row's is used, whatever the batch; of equals the longer.
    row = max(1.0, profile.mean_tokens)
    nearest = {point.batch_size: point for point in sorted(measured, key=lambda point: (-abs(point.length - row), point.length))}
    sizes = np.array(sorted(nearest), dtype=np.float64)
    seconds = np.array([size / nearest[size].tokens_per_second for size in sizes])  # for each token of the rows
    within = np.clip(batch, sizes[0], sizes[-1])
    return np.asarray(within / np.interp(within, sizes, seconds))


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
) -> Float64:
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
    spanned = profile.longest_tokens / batches_of_a_pass(profile.train_samples, batch)
    return min(float(profile.longest_tokens), mean + _MEAN_ROUNDING + spanned / 2)


def step_seconds(profile: SiteProfile, bits: Bits, batch: int, *, micro_batch: npt.ArrayLike | None = None) -> Float64:
    """Mean seconds of an optimiser step of the whole model, in passes of `micro_batch` samples (a number or an array) or of all at once."""
    samples = samples_of_a_step(profile.train_samples, batch)
    speed = tokens_per_second(profile, bits, _mean_pass(samples, batch if micro_batch is None else micro_batch, profile.devices))
    busy = min(1.0, samples / profile.devices)  # the devices for which there is a sample
    return np.asarray(samples * padded_row_tokens(profile, batch) / (busy * speed))


def evaluation_seconds(profile: SiteProfile, bits: Bits, samples: int, batch: npt.ArrayLike = 1) -> Float64:
    """Seconds of forward passes over so many validation samples, `batch` at a time (a number or an array).

    A forward pass was measured with the smallest batch only. With larger ones it is taken to gain as much speed as training does.
    """
    whole = [point for point in profile.points if _is_whole(point)]
    smallest = min((point for point in whole if point.bits == bits), key=_batch_of, default=None) or min(whole, key=_batch_of)
    ratio = smallest.evaluate_tokens_per_second / smallest.tokens_per_second
    samples = min(samples, profile.validation_samples)
    speed = ratio * tokens_per_second(profile, bits, _mean_pass(samples, batch))
    return np.asarray(samples * max(1.0, profile.mean_tokens) / speed)


def generation_seconds(profile: SiteProfile, bits: Bits, answers: int, tokens: int, batch: npt.ArrayLike = 1) -> Float64:
    """Seconds of generating so many answers of so many tokens, `batch` at a time (a number or an array); 0 where it was not measured.

    b answers at once: b · prompt + (tokens − 1) · (token + b · sequence token). Bits that were not measured count as the slowest that were.
    An answer that ends before its last token takes less, so this is the most.
    """
    answers = min(answers, profile.validation_samples)
    if not profile.generation or not answers:
        return np.zeros(np.shape(batch))
    speeds = [profile.generation[bits]] if bits in profile.generation else list(profile.generation.values())
    batches = np.ceil(answers / np.asarray(batch))
    seconds = [
        answers * one.prompt_seconds + (tokens - 1) * (batches * one.token_seconds + answers * one.sequence_token_seconds) for one in speeds
    ]
    return np.asarray(np.max(seconds, axis=0))


def global_bytes(profile: SiteProfile, rank: int, head: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the global adapter when all its weights have this rank: 4 an element, without the file's header, which takes no time."""
    return WIRE_BYTES * (rank * rank_parameters(profile.base.weights) + head_parameters(head))


def upload_seconds(profile: SiteProfile, upload: float) -> float:
    """Seconds to send this many bytes to the store."""
    return BITS_PER_BYTE * upload / profile.up


def download_seconds(profile: SiteProfile, download: float) -> float:
    """Seconds to receive this many bytes from the store."""
    return BITS_PER_BYTE * download / profile.down


def fixed_seconds(profile: SiteProfile, bits: Bits, *, evaluated: int = 0, batch: npt.ArrayLike = 1) -> Float64:
    """Seconds of a round that depend neither on the steps nor on the adapters: set-up, load, evaluation, the first step's extra.

    A load that was not measured is assumed to be as slow as the slowest measured one; the same holds for the first step.

    Args:
        profile: the site.
        bits: bit width of the base.
        evaluated: validation samples.
        batch: of them in a forward pass, a number or an array.
    """
    once = _of_bits(profile.load_seconds, bits) + _of_bits(profile.first_step_seconds, bits)
    return profile.setup_seconds + once + evaluation_seconds(profile, bits, evaluated, batch)


def _mean_pass(samples: float, size: npt.ArrayLike, devices: int = 1) -> Float64:
    """Samples of a pass on average, when these are computed in passes of at most so many (a number or an array), divided among devices."""
    passes = devices * np.ceil(samples / (devices * np.asarray(size)))
    return np.asarray(samples / np.clip(passes, 1.0, max(1.0, np.ceil(samples))))


def _is_whole(point: Throughput) -> bool:
    """Whether the point is the speed of a step with all layers trained and no activation recomputed."""
    return point.lowest_layer == 0 and not point.gradient_checkpointing


def _batch_of(point: Throughput) -> int:
    return point.batch_size


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
