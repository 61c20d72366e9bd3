"""The time model: seconds and bytes on the wire of a round at a site.

seconds = set-up + load + steps · batch · tokens a row / (tokens per second) + 8 · upload bytes / up + 8 · download bytes / down,
where the tokens of a row include its padding to the length of its batch.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from fedpipe_operator.planning.sizes import WIRE_BYTES, adapter_parameters, head_parameters, uniform_ranks
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits

BITS_PER_BYTE: Final = 8


def tokens_per_second(profile: SiteProfile, bits: Bits, batch: int) -> float:
    """Measured training speed, interpolated linearly between the measured batches and constant beyond them.

    A bit width that was not measured is assumed to be as slow as the slowest measured one.

    Raises:
        ValueError: no training step was measured at this site.
    """
    if not profile.points:
        raise ValueError(f"the profile of site {profile.name!r} contains no measured training step")
    measured = profile.points_at(bits)
    if not measured:
        return min(tokens_per_second(profile, other, batch) for other in {point.bits for point in profile.points})
    row = padded_row_tokens(profile, batch)
    # Where a batch was measured at several lengths, the point nearest to the round's length is used; of equals the longer.
    speeds = {
        point.batch_size: point.tokens_per_second for point in sorted(measured, key=lambda point: (-abs(point.length - row), point.length))
    }
    return _interpolate(speeds, batch)


def padded_row_tokens(profile: SiteProfile, batch: int) -> float:
    """Mean tokens of a row including padding: all rows of a batch have the length of its longest sample.

    The expected maximum of `batch` lengths that are uniformly distributed around the mean up to the longest: the mean
    itself for one sample, the longest for very many.
    """
    mean = max(1.0, profile.mean_tokens)
    return mean + max(0.0, profile.longest_tokens - mean) * (batch - 1) / (batch + 1)


def step_seconds(profile: SiteProfile, bits: Bits, batch: int) -> float:
    """Seconds of one optimiser step."""
    return batch * padded_row_tokens(profile, batch) / tokens_per_second(profile, bits, batch)


def wire_bytes(profile: SiteProfile, ranks: Mapping[str, int], head: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of an update on the wire: 4·Σ r·(d_in + d_out), plus the head."""
    return WIRE_BYTES * (adapter_parameters(profile.base.weights, ranks) + head_parameters(head))


def global_bytes(profile: SiteProfile, rank: int, head: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the global adapter on the wire when all its weights have this rank."""
    return wire_bytes(profile, uniform_ranks(profile.base.weights, rank), head)


def fixed_seconds(profile: SiteProfile, bits: Bits, *, upload: int, download: int) -> float:
    """Seconds of a round that do not depend on the steps: set-up, load, transfers.

    A load that was not measured is assumed to be as slow as the slowest measured one.
    """
    load = profile.load_seconds.get(bits, max(profile.load_seconds.values(), default=0.0))
    return profile.setup_seconds + load + BITS_PER_BYTE * (upload / profile.up + download / profile.down)


def _interpolate(values: Mapping[int, float], at: int) -> float:
    known = sorted(values)
    if at <= known[0]:
        return values[known[0]]
    for low, high in pairwise(known):
        if at <= high:
            fraction = (at - low) / (high - low)
            return values[low] + fraction * (values[high] - values[low])
    return values[known[-1]]
