"""The time model: seconds of a round at a site, and how many steps fit its deadline.

seconds = set-up + load + steps · batch · tokens a row / (tokens per second) + 8 · upload bytes / up + 8 · download bytes / down,
where a row counts as long as the batch it is padded to.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from fedpipe_operator.planning.sizes import WIRE_BYTES, adapter_parameters, head_parameters, uniform_ranks
from fedpipe_operator.sites.profile import SiteProfile
from fedpipe_trainer.contract import Bits

BITS_PER_BYTE: Final = 8


def tokens_per_second(profile: SiteProfile, bits: Bits, batch: int) -> float:
    """Measured speed of training, linear between the measured batches and flat beyond them.

    A bit width that was not measured is taken to be as slow as the slowest that was.

    Raises:
        ValueError: nothing was measured at this site.
    """
    if not profile.points:
        raise ValueError(f"the profile of site {profile.name!r} holds no measured training step")
    measured = profile.measured(bits)
    if not measured:
        return min(tokens_per_second(profile, other, batch) for other in {point.bits for point in profile.points})
    row = row_tokens(profile, batch)
    # Of one batch at several lengths the one nearest to the round's counts; of equals the longer.
    speeds = {
        point.batch_size: point.tokens_per_second for point in sorted(measured, key=lambda point: (-abs(point.length - row), point.length))
    }
    return _interpolated(speeds, batch)


def row_tokens(profile: SiteProfile, batch: int) -> float:
    """Mean tokens of a row, padding included: a batch is as long as its longest sample.

    The mean of the largest of `batch` lengths that are spread evenly around the mean up to the longest; the mean
    itself for one sample, the longest for very many.
    """
    mean = max(1.0, profile.mean_tokens)
    return mean + max(0.0, profile.longest_tokens - mean) * (batch - 1) / (batch + 1)


def step_seconds(profile: SiteProfile, bits: Bits, batch: int) -> float:
    """Seconds of one optimiser step."""
    return batch * row_tokens(profile, batch) / tokens_per_second(profile, bits, batch)


def wire_bytes(profile: SiteProfile, ranks: Mapping[str, int], head: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of an update on the wire: 4·Σ r·(d_in + d_out), and the head."""
    return WIRE_BYTES * (adapter_parameters(profile.base.weights, ranks) + head_parameters(head))


def global_bytes(profile: SiteProfile, rank: int, head: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the global adapter on the wire, all of whose weights have this rank."""
    return wire_bytes(profile, uniform_ranks(profile.base.weights, rank), head)


def fixed_seconds(profile: SiteProfile, bits: Bits, *, upload: int, download: int) -> float:
    """What a round costs whatever the steps: set-up, load, transfers. An unmeasured load is as slow as the slowest measured."""
    load = profile.load_seconds.get(bits, max(profile.load_seconds.values(), default=0.0))
    return profile.setup_seconds + load + BITS_PER_BYTE * (upload / profile.up + download / profile.down)


def _interpolated(values: Mapping[int, float], at: int) -> float:
    known = sorted(values)
    if at <= known[0]:
        return values[known[0]]
    for low, high in pairwise(known):
        if at <= high:
            share = (at - low) / (high - low)
            return values[low] + share * (values[high] - values[low])
    return values[known[-1]]
