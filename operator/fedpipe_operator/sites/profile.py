"""A site as the planner sees it: the claims of its spec combined with the measurements of its profile. Pure.

The planner reads nothing else of a site.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field

from fedpipe_operator.admission import AdmittedProfile
from fedpipe_operator.api import EdgeSite, parse_quantity
from fedpipe_operator.api.edgesite import Capacity
from fedpipe_operator.formatting import excerpt
from fedpipe_trainer.contract import (
    BaseModelFacts,
    Basis,
    Bits,
    GenerationSpeed,
    Importance,
    RangeTestResult,
    Throughput,
    Wire,
)

CPU = "cpu"
LONGEST_PROBLEM: Final = 300
"""Characters of a sentence of a site in messages."""
_BITS_PER_PARAMETER: Final = 32
"""Adapters are trained and sent in fp32."""
_DEFAULT_UP, _DEFAULT_DOWN = 100e6, 1e9
"""Bits per second, where bandwidth is neither claimed nor measured."""


class Resources(Wire):
    """What a site's plan is made for: the smaller of the claimed and the measured figures."""

    memory_bytes: Annotated[int, Field(ge=0)]
    up: Annotated[float, Field(gt=0)]
    """Bits per second, here and below."""
    down: Annotated[float, Field(gt=0)]

    def has_bandwidth_of(self, other: "Resources") -> bool:
        """Whether what transfers showed of the other holds for these."""
        return (self.up, self.down) == (other.up, other.down)


@dataclass(frozen=True)
class SiteProfile:
    """One site's resources and measurements. Memory in bytes, bandwidth in bits per second."""

    name: str
    device: str
    """`cpu`, or the GPU's name."""
    memory_bytes: int
    """Device memory that a trainer may use (CPU: of the machine's memory)."""
    up: float
    """To the store: the smaller of the claimed and the measured bandwidth."""
    down: float
    """From the store, likewise."""
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
    """Measured training steps: speed and peak memory by bits, batch, length and depth."""
    rank: int
    """Rank of the adapters while `points` were measured."""
    unsupported: Mapping[Bits, str]
    """By bit width that the device does not support: the reason."""
    first_step_seconds: Mapping[Bits, float]
    """By bits: seconds by which the first training step of a process exceeds a later one."""
    importance: Importance | None
    """Scores of the weights on the site's own data; None: not measured."""
    generation: Mapping[Bits, GenerationSpeed] = field(default_factory=dict)
    """Speed of generating answers; empty for a classification."""
    has_cache: bool = False
    """Whether the site has a cache volume that worked when it was profiled, so that activations can be cached."""
    cache_problem: str = ""
    """Why the site's cache volume did not work, and what to do; empty if it did, or there is none."""
    model_revision: str | None = None
    """The hub's commit of the base model; None for one that does not come from a hub."""
    range_test: RangeTestResult | None = None
    """Losses of the learning rates; None: not tested."""
    out_of_memory: Mapping[Bits, int] = field(default_factory=dict)
    """By bit width for which memory did not suffice when the site was profiled: bytes that are known to be too few."""
    least_transfer_factor: float = 0.0
    """How far transfers may turn out faster than `up` and `down` say without exceeding a claim: 1 where a claim is one of them."""
    assumed: tuple[str, ...] = ()
    """The bandwidths that are neither claimed nor measured, but assumed: of `up` and `down`."""
    memory_field: str = "capacity.memory"
    """The field of the EdgeSite in which `memory_bytes` are claimed."""
    measured_memory: int = 0
    """What the device has, whatever is claimed; 0: not measured."""
    train_labels: int = 0
    """Different labels that the training rows have; 0: no classification, or not recorded."""
    validation_labels: int = 0
    """Likewise of the validation rows."""
    min_sites: int = 1
    """With how many others, itself included, the site is mixed: `policy.minSites` of its EdgeSite."""
    devices: int = 1
    """Among which each step is divided. Memory and batches of `points` are those of one device, training speeds those of all."""

    @property
    def resources(self) -> Resources:
        """What a plan is made for."""
        return Resources(memory_bytes=self.memory_bytes, up=self.up, down=self.down)

    @property
    def on_gpu(self) -> bool:
        """Whether the trainer computes on a GPU."""
        return self.device != CPU

    def points_at(self, bits: Bits) -> tuple[Throughput, ...]:
        """The points measured at one bit width."""
        return tuple(point for point in self.points if point.bits == bits)


def basis_of(site: EdgeSite) -> Basis:
    """What a profile of this site is made for.

    The measurements depend on its node pool, its pods' processors and GPUs, its data and its cache. Claims of memory and bandwidth are not
    among them: a plan takes them from the spec, whatever the profile. Nor are the variables and certificates of `podTemplate`.
    """
    spec, capacity = site.spec, site.spec.capacity
    accelerator = capacity.accelerator.model_dump(mode="json", exclude={"memory"}) if capacity.accelerator else None
    parts = spec.model_dump(mode="json", include={"node_selector", "tolerations", "runtime_class_name", "data"})
    pod = spec.pod_template.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True) if spec.pod_template else {}
    cache = _hash(spec.cache.model_dump(mode="json")) if spec.cache else ""
    # Left out as the default, so that a profile of an earlier version is of the same site.
    whole = spec.model_dump(mode="json", exclude=set() if spec.autoscaled else {"autoscaled"})
    return Basis(measured=_hash([parts, pod, capacity.cpu, accelerator]), cache=cache, whole=_hash(whole))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def granularity(measured: AdmittedProfile, *, up: float, down: float) -> float | None:
    """G = T_comp / T_comm (arXiv 2310.03150, dimensionless): below 1 the site waits for the network longer than it computes.

    A nominal round is one pass over the site's samples, in the fastest measured step that trains all layers, and the transfer of
    adapters of rank `rank` for all weights, and of what is trained in full, in both directions. None without a measured step or a transfer.

    Args:
        measured: the site's profile.
        up: bits per second to the store, above 0.
        down: the same from the store.
    """
    speed = max((point.tokens_per_second for point in measured.throughput if point.lowest_layer == 0), default=0.0)
    if measured.base is None or not speed:
        return None
    adapters = sum(measured.rank * (weight.d_in + weight.d_out) for weight in measured.base.weights)
    full = [*measured.base.head.values(), *measured.base.whole.values()]
    head = sum(math.prod(len(measured.labels) if size == -1 else size for size in shape) for shape in full)
    transferred = _BITS_PER_PARAMETER * (adapters + head)
    return measured.train_samples * measured.mean_tokens / speed / (transferred / up + transferred / down) if transferred else None


def site_granularity(site: EdgeSite, measured: AdmittedProfile) -> float | None:
    """The granularity of a site with the bandwidth that the planner counts on: of claimed and measured the smaller."""
    up, down = _bandwidths(site, measured)
    return granularity(measured, up=up, down=down)


def site_profile(site: EdgeSite, measured: AdmittedProfile) -> SiteProfile:
    """Combine a site's claims with its profile; of what is both claimed and measured, memory and bandwidth, the smaller figure counts.

    Raises:
        ValueError: the profile belongs to another site, or it failed and so contains no facts about the base model.
    """
    if measured.site != site.name:
        raise ValueError(f"the profile belongs to site {measured.site!r}, not to {site.name!r}: read the profile under the site's own key")
    if measured.base is None or measured.fingerprint is None:
        reason = f": {measured.failure.message}" if measured.failure else ""
        raise ValueError(f"the profile of site {site.name!r} contains no facts about the base model{reason}")
    capacity, device = site.spec.capacity, measured.measured.device
    up, down = _bandwidths(site, measured)
    claimed = capacity.bandwidth
    memory_field, claimed_memory = _memory_claim(capacity, device)
    measured_memory = measured.device_memory_bytes or measured.memory_bytes
    return SiteProfile(
        name=site.name,
        device=device,
        memory_bytes=_usable_memory(claimed_memory, measured_memory),
        up=up,
        down=down,
        fingerprint=measured.fingerprint,
        base=measured.base,
        labels=measured.labels,
        train_samples=measured.train_samples,
        validation_samples=measured.validation_samples,
        mean_tokens=measured.mean_tokens,
        longest_tokens=measured.longest_tokens,
        setup_seconds=measured.setup_seconds,
        runtime_bytes=measured.runtime_bytes,
        load_peak_bytes=measured.load_peak_bytes,
        base_bytes=measured.base_bytes,
        load_seconds=measured.load_seconds,
        points=measured.throughput,
        rank=measured.rank,
        min_sites=site.spec.policy.min_sites,
        devices=measured.processes,
        unsupported=measured.unsupported,
        out_of_memory=measured.out_of_memory,
        first_step_seconds=measured.first_step_seconds,
        model_revision=measured.model_revision,
        importance=measured.importance,
        generation=measured.generation,
        has_cache=site.spec.cache is not None and not measured.cache_problem,
        cache_problem=excerpt(measured.cache_problem, LONGEST_PROBLEM) if site.spec.cache is not None else "",
        range_test=measured.range_test,
        train_labels=measured.train_labels,
        validation_labels=measured.validation_labels,
        assumed=_assumed(site, measured),
        memory_field=memory_field,
        measured_memory=measured_memory,
        least_transfer_factor=max(_share_of_claim(up, claimed.up), _share_of_claim(down, claimed.down)),
    )


def _bandwidths(site: EdgeSite, measured: AdmittedProfile) -> tuple[float, float]:
    """Bits per second to the store and from it."""
    claimed = site.spec.capacity.bandwidth
    return (
        _bandwidth(claimed.up, measured.up_bits_per_second, _DEFAULT_UP),
        _bandwidth(claimed.down, measured.down_bits_per_second, _DEFAULT_DOWN),
    )


def _assumed(site: EdgeSite, measured: AdmittedProfile) -> tuple[str, ...]:
    """The directions whose bandwidth is neither claimed nor measured."""
    claimed = site.spec.capacity.bandwidth
    known = {"up": (claimed.up, measured.up_bits_per_second), "down": (claimed.down, measured.down_bits_per_second)}
    return tuple(direction for direction, figures in known.items() if figures == (None, None))


def _bandwidth(claimed: str | None, measured: float | None, default: float) -> float:
    """The smaller of a claim and a measurement, in bits per second; the default without either."""
    figures = [] if claimed is None else [parse_quantity(claimed)]
    return min(figures if measured is None else [*figures, measured], default=default)


def _share_of_claim(used: float, claimed: str | None) -> float:
    return 0.0 if claimed is None else used / parse_quantity(claimed)


def _memory_claim(capacity: Capacity, device: str) -> tuple[str, str | None]:
    """The field in which the device's memory is claimed, and the claim."""
    if device != CPU and capacity.accelerator is not None:
        return "capacity.accelerator.memory", capacity.accelerator.memory
    return "capacity.memory", capacity.memory


def _usable_memory(claimed: str | None, measured: int) -> int:
    """The smaller of claimed and measured memory; a missing figure (claim None, measurement 0) is ignored."""
    figures = (parse_quantity(claimed) if claimed is not None else 0.0, float(measured))
    return int(min((figure for figure in figures if figure > 0), default=0.0))
