"""A site as the planner sees it: the claims of its spec combined with the measurements of its profile. Pure.

The planner reads nothing else of a site.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpipe_operator.api import EdgeSite, parse_quantity
from fedpipe_operator.api.edgesite import Capacity
from fedpipe_trainer.contract import BaseModelFacts, Bits, Importance, ProfileResult, Throughput

CPU = "cpu"


@dataclass(frozen=True)
class SiteProfile:
    """One site's resources and measurements. Memory in bytes, bandwidth in bits per second."""

    name: str
    device: str
    """`cpu`, or the GPU's name."""
    memory_bytes: int
    """Device memory that a trainer may use (CPU: of the machine's memory)."""
    up: float
    down: float
    fingerprint: str
    base: BaseModelFacts
    labels: tuple[str, ...]
    train_samples: int
    validation_samples: int
    mean_tokens: float
    longest_tokens: int
    """0 when the profile does not contain it."""
    setup_seconds: float
    """Seconds of a task before it loads the base: importing libraries, reading the data and the model's configuration."""
    runtime_bytes: int
    load_peak_bytes: Mapping[Bits, int]
    base_bytes: Mapping[Bits, int]
    load_seconds: Mapping[Bits, float]
    points: tuple[Throughput, ...]
    """Measured training steps: speed and peak memory by bits, batch and length."""
    rank: int
    """Rank of the adapters while `points` were measured."""
    unsupported: Mapping[Bits, str]
    """By bit width that the device does not support: the reason."""
    first_step_seconds: Mapping[Bits, float]
    """By bits: seconds by which the first training step of a process exceeds a later one."""
    importance: Importance | None
    """Scores of the weights on the site's own data; None: not measured."""

    @property
    def on_gpu(self) -> bool:
        """Whether the trainer computes on a GPU."""
        return self.device != CPU

    def points_at(self, bits: Bits) -> tuple[Throughput, ...]:
        """The points measured at one bit width."""
        return tuple(point for point in self.points if point.bits == bits)


def site_profile(site: EdgeSite, measured: ProfileResult) -> SiteProfile:
    """Combine a site's claims with its profile; where memory is both claimed and measured, the smaller figure counts.

    Raises:
        ValueError: the profile belongs to another site, or it failed and so contains no facts about the base model.
    """
    if measured.site != site.name:
        raise ValueError(f"the profile belongs to site {measured.site!r}, not to {site.name!r}: read the profile under the site's own key")
    if measured.base is None or measured.fingerprint is None:
        reason = f": {measured.failure.message}" if measured.failure else ""
        raise ValueError(f"the profile of site {site.name!r} contains no facts about the base model{reason}")
    capacity, device = site.spec.capacity, measured.measured.device
    return SiteProfile(
        name=site.name,
        device=device,
        memory_bytes=_usable_memory(capacity, device, measured.memory_bytes),
        up=parse_quantity(capacity.bandwidth.up),
        down=parse_quantity(capacity.bandwidth.down),
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
        first_step_seconds=measured.first_step_seconds,
        importance=measured.importance,
    )


def _usable_memory(capacity: Capacity, device: str, measured: int) -> int:
    """The smaller of claimed and measured memory; a missing figure (claim None, measurement 0) is ignored."""
    accelerator = capacity.accelerator if device != CPU else None
    claimed = accelerator.memory if accelerator is not None else capacity.memory
    figures = (parse_quantity(claimed) if claimed is not None else 0.0, float(measured))
    return int(min((figure for figure in figures if figure > 0), default=0.0))
