"""`EdgeSite`: where a site's trainer pods may run, the capacity of that node pool, and where the site's private data is."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedpipe_operator.api.meta import API_VERSION, ApiModel, Condition, LabelMap, Metadata, Name, ObjectName
from fedpipe_operator.api.pod_template import PodTemplate, Toleration
from fedpipe_operator.api.quantities import Quantity
from fedpipe_operator.api.training import Column

DATA_PATTERN = r"^([^/.][^/]*/)*([^/.]+/?|[^/.][^/]*(\.(jsonl|ndjson|json|csv|tsv)(\.gz|\.zst)?|\.parquet|/))$"

_WHOLE_GPU = "gpu"
"""What a resource of whole GPUs is called, whoever the vendor is: nvidia.com/gpu, amd.com/gpu."""

DataFile = Annotated[str, Field(pattern=DATA_PATTERN, max_length=1024)]
"""A path that stays within its volume: no part of it begins with a dot, and it does not begin with a slash."""


class Accelerator(ApiModel):
    """The GPUs of one trainer pod of this site."""

    resource: Annotated[str, Field(min_length=1, max_length=253)] = "nvidia.com/gpu"
    count: Annotated[int, Field(ge=1, le=16)] = 1
    memory: Quantity
    """Memory of one device."""

    @property
    def devices(self) -> int:
        """The GPUs that a pod sees. Of a resource that is a part of one (MIG, a share of its time or memory), a pod sees one device."""
        return self.count if self.resource.rpartition("/")[2] == _WHOLE_GPU else 1


class Bandwidth(ApiModel):
    """Network bandwidth between the site and the store, in bits per second; of what is claimed and what is measured, the smaller counts."""

    up: Quantity | None = None
    down: Quantity | None = None


class Capacity(ApiModel):
    """The claimed capacity of the site's node pool. Fields left out are measured by the profile."""

    accelerator: Accelerator | None = None
    cpu: Quantity | None = None
    memory: Quantity | None = None
    bandwidth: Bandwidth = Bandwidth()


class ClaimReference(ApiModel):
    """A PersistentVolumeClaim of the site's namespace."""

    claim_name: ObjectName


class Volume(ApiModel):
    """A volume of the site."""

    persistent_volume_claim: ClaimReference


class SiteData(ApiModel):
    """The private data, as paths within the volume; it is read in the site's own pods and never leaves them."""

    train: DataFile
    validation: DataFile
    volume: Volume
    """The volume that holds the data."""


class RunSelector(ApiModel):
    """Selects the runs that have one of these names and carry all these labels. Without both: all of the namespace."""

    names: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(max_length=100)] | None = None
    """Names of runs; left out: any. Empty: no run."""
    match_labels: LabelMap = {}


class TrainingLosses(StrEnum):
    """Which of its training losses a site sends."""

    BY_STEP = "ByStep"
    """That of each step."""
    MEAN = "Mean"
    """Their mean alone."""


class DataPolicy(ApiModel):
    """What the data owner allows; of this and fedpipe-policy.yaml on the data volume, the stricter counts. An empty list allows nothing."""

    runs: RunSelector = RunSelector()
    columns: Annotated[tuple[Column, ...], Field(max_length=1000)] | None = None
    """Columns that a task may read; left out: those that it names."""
    task_types: (
        Annotated[tuple[Literal["SequenceClassification", "CausalLM", "Seq2SeqLM", "Preference"], ...], Field(max_length=4)] | None
    ) = None
    """Types of task that are allowed; left out: all."""
    labels: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=10000)] | None = None
    """Values of the label column that may be used; rows with another one are left out. Left out: all."""
    max_labels: Annotated[int, Field(ge=0, le=10000)] = 100
    """Values of the label column that a profile may name where the run's task names none."""
    max_shown_rows: Annotated[int, Field(ge=0, le=20)] = 0
    """Validation rows that may be shown with their predictions: the first ones of the file."""
    min_sites: Annotated[int, Field(ge=1, le=1000)] = 2
    """Sites, at least, whose updates are in an aggregate with this site's, in each weight as well: refused updates do not count."""
    local_baseline: bool = False
    """Whether the site may be trained alone, to compare a run with it."""
    training_losses: TrainingLosses = TrainingLosses.BY_STEP


class TokenReference(ApiModel):
    """A Secret in the namespace of the site."""

    name: ObjectName


class EdgeSiteSpec(ApiModel):
    """The specification of a site."""

    node_selector: LabelMap = {}
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    autoscaled: bool = False
    """Whether an autoscaler adds nodes to the pool when a pod waits for one: a pool of no node is then no reason to give a site up."""
    runtime_class_name: ObjectName | None = None
    pod_template: PodTemplate | None = None
    capacity: Capacity = Capacity()
    data: SiteData
    cache: Volume | None = None
    """The volume where the site's trainers keep base models and activations from one task to the next, in a folder of the namespace."""
    model_claims: Annotated[tuple[ObjectName, ...], Field(max_length=100)] = ()
    """Claims that a run may name as its model, `pvc://CLAIM/folder`: none of them one that holds the data or the cache of a site."""
    hugging_face_token_secret_ref: TokenReference | None = None
    """A Secret of the site's own with a hub's token under the key `HF_TOKEN`, for its trainers where a run's model is `hf://…`; it counts
    before the chart's. No other key is read, so that no Secret that is made for something else can be named."""
    policy: DataPolicy = DataPolicy()
    max_concurrent_jobs: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def pool_labels(self) -> dict[str, str]:
        """The labels that a node of the pool has: those of `nodeSelector`, and beside them those of `podTemplate`."""
        added = self.pod_template.spec.node_selector if self.pod_template else {}
        return dict(added) | dict(self.node_selector)

    @model_validator(mode="after")
    def _require_a_cache_apart_from_the_data(self) -> "EdgeSiteSpec":
        if self.cache is not None and self.cache == self.data.volume:
            raise ValueError("cache names the claim of data.volume, which trainers only read: name another claim, which they write to")
        return self

    @model_validator(mode="after")
    def _require_models_apart_from_data_and_cache(self) -> "EdgeSiteSpec":
        for volume in (self.data.volume, self.cache):
            if volume is not None and volume.persistent_volume_claim.claim_name in self.model_claims:
                claim = volume.persistent_volume_claim.claim_name
                raise ValueError(f"modelClaims names {claim}, which holds the site's data or cache: keep models in a claim of their own")
        return self


class ClaimedCapacity(ApiModel):
    """The capacity that the spec claims, in plain numbers."""

    cpu: Annotated[float, Field(ge=0)] | None = None
    memory: Annotated[int, Field(ge=0)] | None = None
    """Bytes."""
    accelerator_memory: Annotated[int, Field(ge=0)] | None = None
    """Bytes of one device."""


class DiscoveredCapacity(ApiModel):
    """What the pool's nodes say: the most that any one of them can give to a pod."""

    nodes: Annotated[int, Field(ge=0)]
    """Nodes that carry the labels of `nodeSelector`."""
    ready: Annotated[int, Field(ge=0)]
    """Nodes of these that are ready and schedulable."""
    cpu: Annotated[float, Field(ge=0)] = 0.0
    memory: Annotated[int, Field(ge=0)] = 0
    """Bytes."""
    accelerators: Annotated[int, Field(ge=0)] = 0
    accelerator_product: Annotated[str, Field(max_length=253)] = ""
    """The value of the nodes' label `nvidia.com/gpu.product`."""
    accelerator_memory: Annotated[int, Field(ge=0)] = 0
    """Bytes of one device, from the label `nvidia.com/gpu.memory`."""


class MeasuredCapacity(ApiModel):
    """The capacity that the newest profile measured at the site."""

    run: Name
    """The run that the profile was made for."""
    device: Annotated[str, Field(max_length=253)]
    memory: Annotated[int, Field(ge=0)]
    """Bytes of memory that a trainer may use."""
    train_samples: Annotated[int, Field(ge=0)]
    validation_samples: Annotated[int, Field(ge=0)]
    bandwidth_up: Annotated[int, Field(ge=0)] | None = None
    """Bits per second to the store, by a real transfer. Absent, here and below: not measured."""
    bandwidth_down: Annotated[int, Field(ge=0)] | None = None
    """Bits per second from the store."""
    memory_bandwidth: Annotated[int, Field(ge=0)] | None = None
    """Bytes per second that the device's memory reads and writes."""
    mfu: Annotated[float, Field(ge=0)] | None = None
    """Model FLOPs utilisation of the fastest training step: the share of the device's peak FLOP/s."""
    tokens_per_joule: Annotated[float, Field(ge=0)] | None = None
    """Energy efficiency of the fastest training step; absent where the platform reports no energy."""
    energy_source: Literal["NVML", "RAPL"] | None = None
    """What counted the energy: `NVML` (the GPUs) or `RAPL` (the processor packages, with whatever else runs there)."""
    granularity: Annotated[float, Field(ge=0)] | None = None
    """Seconds of computing of a nominal round, over those of its transfers: below 1 the site waits for the network longer."""


class CapacityStatus(ApiModel):
    """The site's capacity from three sources: claimed by the spec, discovered on the nodes, and measured by a profile."""

    claimed: ClaimedCapacity = ClaimedCapacity()
    discovered: DiscoveredCapacity | None = None
    """The capacity that the pool's nodes report; absent where the operator is not permitted to read nodes."""
    measured: MeasuredCapacity | None = None


class EdgeSiteStatus(ApiModel):
    """The observed state of a site."""

    observed_generation: Annotated[int, Field(ge=-1)] = 0
    """The generation of the spec that this status describes; -1: the operator has not observed the object yet."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = ()
    capacity: CapacityStatus | None = None
    active_runs: Annotated[int, Field(ge=0)] = 0


class EdgeSite(ApiModel):
    """One site."""

    api_version: Literal["fedpipe.io/v1alpha1"] = API_VERSION
    kind: Literal["EdgeSite"] = "EdgeSite"
    metadata: Metadata
    spec: EdgeSiteSpec
    status: EdgeSiteStatus = EdgeSiteStatus()

    @property
    def name(self) -> Name:
        """The site's name, as used in plans, updates and reports."""
        return self.metadata.name
