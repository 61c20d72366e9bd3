"""`EdgeSite.spec.podTemplate`: all that a site's administrator may add to its trainer pods.

An allow-list: what is no field here is refused, since a pod's spec is a way to every Secret and claim of its namespace, and to its node.
So are keys and variables that are FedPipe's or Kubernetes' own, or that decide which code a trainer loads.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from fedpipe_operator.api.meta import GROUP, AnnotationMap, ApiModel, LabelMap, ObjectName

VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
CONFIG_KEY_PATTERN: Final = r"^[-._a-zA-Z0-9]+$"
SYSTEM_CLASS: Final = "system-"
"""The names of the cluster's own priority classes begin with this."""
RESERVED_PREFIXES: Final = (
    *("FEDPIPE_", "AWS_", "SSL", "XDG_"),
    *("PYTHON", "LD_", "DYLD_", "GLIBC_", "GCONV_", "BASH", "OPENSSL_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "HSA_", "ROCR_", "TORCH", "TRITON_", "BNB_", "TRANSFORMERS_", "HF_KERNELS"),
)
"""Variables of these prefixes and names are set by FedPipe or its image, or say what is loaded, from where, or on which devices."""
RESERVED_VARIABLES: Final = (
    *("HOME", "PATH", "TMPDIR", "TMP", "TEMP", "ENV", "SHELL", "CC", "CXX", "LOCPATH", "NLSPATH"),
    *("OMP_NUM_THREADS", "OMP_TOOL_LIBRARIES", "PYTORCH_KERNEL_CACHE_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HUGGINGFACE_HUB_CACHE", "USE_HUB_KERNELS", "LOCAL_KERNELS"),
)
_KUBERNETES: Final = ("kubernetes.io", "k8s.io", "cni.cncf.io")
"""The last one attaches a pod to further networks, for which no NetworkPolicy holds."""
_HARMLESS: Final = ("app.kubernetes.io", "cluster-autoscaler.kubernetes.io")
"""Of Kubernetes' prefixes: none of their keys changes how a pod is run."""
_RESERVED_KEYS: Final = frozenset(
    {"job-name", "controller-uid", *(f"app.kubernetes.io/{name}" for name in ("name", "component", "managed-by"))}
)


def _require_free_keys(keys: Mapping[str, str]) -> Mapping[str, str]:
    for key in keys:
        if _is_reserved(key):
            raise ValueError(f"{key} is reserved for FedPipe or for Kubernetes: use a key with a prefix of your own")
    return keys


def _is_reserved(key: str) -> bool:
    """Whether a label or an annotation is FedPipe's, or may be Kubernetes' own, such as that which turns AppArmor off."""
    prefix = key.rpartition("/")[0]
    is_kubernetes = any(prefix == one or prefix.endswith(f".{one}") for one in _KUBERNETES) and prefix not in _HARMLESS
    return key in _RESERVED_KEYS or is_kubernetes or prefix == GROUP or prefix.endswith(f".{GROUP}")


def _require_free_name(name: str) -> str:
    if name in RESERVED_VARIABLES or name.startswith(RESERVED_PREFIXES):
        raise ValueError(f"{name} is reserved: FedPipe sets it, or it decides which code a trainer loads; remove it")
    return name


def _require_own_class(name: str) -> str:
    if name.startswith(SYSTEM_CLASS):
        raise ValueError(f"{name} is for the cluster's own pods: name a priority class of your own")
    return name


LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
"""With a prefix of 253 characters."""
LabelValues = Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=64)]
Weight = Annotated[int, Field(ge=1, le=100)]


class Toleration(ApiModel):
    """A Kubernetes toleration, for pools whose nodes are tainted."""

    key: Annotated[str, Field(max_length=253)] | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Annotated[str, Field(max_length=253)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = None


class LabelRequirement(ApiModel):
    """What a label must be."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: LabelValues = ()


class LabelSelector(ApiModel):
    """A Kubernetes label selector."""

    match_labels: LabelMap = {}
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] = ()


class NodeRequirement(ApiModel):
    """What a node's label must be."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: LabelValues = ()


class NodeSelectorTerm(ApiModel):
    """Selects the nodes that meet all requirements."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(max_length=16)] = ()


class NodeSelector(ApiModel):
    """Selects the nodes that one of the terms selects."""

    node_selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=16)]


class PreferredNodes(ApiModel):
    """Nodes to prefer, with a weight."""

    weight: Weight
    preference: NodeSelectorTerm


class NodeAffinity(ApiModel):
    """A Kubernetes node affinity."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: Annotated[tuple[PreferredNodes, ...], Field(max_length=16)] = ()


class PodAffinityTerm(ApiModel):
    """Pods of the namespace: a term about those of others could keep them from a node."""

    topology_key: LabelKey
    label_selector: LabelSelector | None = None


class WeightedPodAffinityTerm(ApiModel):
    """Pods to prefer, with a weight."""

    weight: Weight
    pod_affinity_term: PodAffinityTerm


class PodAffinity(ApiModel):
    """A Kubernetes pod affinity or anti-affinity."""

    required_during_scheduling_ignored_during_execution: Annotated[tuple[PodAffinityTerm, ...], Field(max_length=16)] = ()
    preferred_during_scheduling_ignored_during_execution: Annotated[tuple[WeightedPodAffinityTerm, ...], Field(max_length=16)] = ()


class Affinity(ApiModel):
    """A Kubernetes affinity."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class TopologySpreadConstraint(ApiModel):
    """A Kubernetes topology spread constraint."""

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    topology_key: LabelKey
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: LabelSelector | None = None


class PodSpecAdditions(ApiModel):
    """Where the pods run and how urgent they are; nothing else of a pod's spec can be set."""

    node_selector: LabelMap = {}
    """Labels of nodes, beside those of the site's nodeSelector."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Tolerations beside those of the site."""
    affinity: Affinity | None = None
    topology_spread_constraints: Annotated[tuple[TopologySpreadConstraint, ...], Field(max_length=16)] = ()
    priority_class_name: Annotated[ObjectName, AfterValidator(_require_own_class)] | None = None
    """One of the classes that the chart's value priorityClasses names."""


class Variable(ApiModel):
    """An environment variable of the trainer, by its value."""

    name: Annotated[str, Field(pattern=VARIABLE_PATTERN, max_length=128), AfterValidator(_require_free_name)]
    value: Annotated[str, Field(max_length=4096)] = ""


class ConfigMapFile(ApiModel):
    """A file in a ConfigMap of the site's namespace."""

    name: ObjectName
    key: Annotated[str, Field(pattern=CONFIG_KEY_PATTERN, max_length=253)] = "ca.crt"


class PodTemplate(ApiModel):
    """What is added to the site's trainer pods: labels, annotations, scheduling, variables and certificates, and nothing else."""

    labels: Annotated[LabelMap, AfterValidator(_require_free_keys)] = {}
    annotations: Annotated[AnnotationMap, AfterValidator(_require_free_keys)] = {}
    spec: PodSpecAdditions = PodSpecAdditions()
    env: Annotated[tuple[Variable, ...], Field(max_length=64)] = ()
    ca_config_map: ConfigMapFile | None = None
    """The certificates that the trainer trusts instead of its image's, in PEM format."""
