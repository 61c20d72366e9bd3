"""A site as the planner sees it: what its spec claims, held against what its profile measured.

The planner reads nothing else of a site. Pure: a spec and a result in, a value out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpipe_operator.api import EdgeSite, amount
from fedpipe_operator.api.edgesite import Capacity
from fedpipe_trainer.contract import BaseModelFacts, Bits, ProfileResult, Throughput

CPU = "cpu"


@dataclass(frozen=True)
class SiteProfile:
    """One site's means, and what was measured there. Memory in bytes, bandwidth in bits per second."""

    name: str
    device: str
    """`cpu`, or the GPU's name."""
    memory_bytes: int
    """What a trainer may use of the device's memory (CPU: of the machine's)."""
    up: float
    down: float
    fingerprint: str
    base: BaseModelFacts
    labels: tuple[str, ...]
    train_samples: int
    validation_samples: int
    mean_tokens: float
    longest_tokens: int
    """0 when the profile does not say."""
    setup_seconds: float
    """What a task spends before it loads the base: libraries, data, the model's facts."""
    runtime_bytes: int
    load_peak_bytes: Mapping[Bits, int]
    base_bytes: Mapping[Bits, int]
    load_seconds: Mapping[Bits, float]
    points: tuple[Throughput, ...]
    """Measured training steps: speed and peak memory by bits, batch and length."""
    rank: int
    """Of the adapters while `points` were measured."""
    unsupported: Mapping[Bits, str]
    """Bit widths that the device cannot do, and why."""

    @property
    def on_gpu(self) -> bool:
        """Whether the trainer computes on a GPU."""
        return self.device != CPU

    def measured(self, bits: Bits) -> tuple[Throughput, ...]:
        """The measured points of one bit width."""
        return tuple(point for point in self.points if point.bits == bits)


def site_profile(site: EdgeSite, measured: ProfileResult) -> SiteProfile:
    """Hold a site's claims against its profile; of two figures for the same memory the smaller counts.

    Raises:
        ValueError: the profile is of another site, or failed and so holds no facts of the base model.
    """
    if measured.site != site.name:
        raise ValueError(f"the profile is of site {measured.site!r}, not of {site.name!r}: read the profile under the site's own key")
    if measured.base is None or measured.fingerprint is None:
        reason = f": {measured.failure.message}" if measured.failure else ""
        raise ValueError(f"the profile of site {site.name!r} holds no facts of the base model{reason}")
    capacity, device = site.spec.capacity, measured.measured.device
    return SiteProfile(
        name=site.name,
        device=device,
        memory_bytes=_usable_memory(capacity, device, measured.memory_bytes),
        up=amount(capacity.bandwidth.up),
        down=amount(capacity.bandwidth.down),
        fingerprint=measured.fingerprint,
        base=measured.base,
        labels=measured.labels,
        train_samples=measured.train_samples,
        validation_samples=measured.validation_samples,
        mean_tokens=measured.mean_tokens,
        longest_tokens=measured.longest_tokens,
        setup_seconds=measured.measured.seconds.get("load", 0.0),
        runtime_bytes=measured.runtime_bytes,
        load_peak_bytes=measured.load_peak_bytes,
        base_bytes=measured.base_bytes,
        load_seconds=measured.load_seconds,
        points=measured.throughput,
        rank=measured.rank,
        unsupported=measured.unsupported,
    )


def _usable_memory(capacity: Capacity, device: str, measured: int) -> int:
    """The smaller of claimed and measured; a figure that is missing (None, or 0 of the profile) does not count."""
    accelerator = capacity.accelerator if device != CPU else None
    claimed = accelerator.memory if accelerator is not None else capacity.memory
    figures = (amount(claimed) if claimed is not None else 0.0, float(measured))
    return int(min((figure for figure in figures if figure > 0), default=0.0))
