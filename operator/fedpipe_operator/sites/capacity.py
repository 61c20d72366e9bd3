"""The capacity of a site's pool as its nodes report it, checked against the site's claim. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.api import EdgeSite, Reason, parse_quantity
from fedpipe_operator.api.edgesite import ClaimedCapacity, DiscoveredCapacity
from fedpipe_operator.formatting import bytes_text

GPU_PRODUCT: Final = "nvidia.com/gpu.product"
GPU_MEMORY: Final = "nvidia.com/gpu.memory"
"""Labels that NVIDIA's GPU feature discovery sets; the memory is that of one device, in MiB."""
_MIB: Final = 2**20


@dataclass(frozen=True)
class Node:
    """The properties of a node that decide whether a trainer pod can run there."""

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, float]
    """By resource: the amount that pods may use, in base units (bytes, cores, devices)."""
    schedulable: bool
    """Whether the node is ready and not cordoned."""
    uid: str = ""


@dataclass(frozen=True)
class PoolProblem:
    """Why the site's pods are unschedulable on every node of the pool, even when the nodes are idle."""

    reason: Reason
    message: str


def pool_nodes(site: EdgeSite, nodes: Iterable[Node]) -> list[Node]:
    """The nodes that the site's trainer pods may run on."""
    wanted = site.spec.pool_labels
    return [node for node in nodes if wanted.items() <= node.labels.items()]


def claimed_capacity(site: EdgeSite) -> ClaimedCapacity:
    """The claim of `spec.capacity` in base units."""
    capacity = site.spec.capacity
    return ClaimedCapacity(
        cpu=parse_quantity(capacity.cpu) if capacity.cpu else None,
        memory=int(parse_quantity(capacity.memory)) if capacity.memory else None,
        accelerator_memory=int(parse_quantity(capacity.accelerator.memory)) if capacity.accelerator else None,
    )


def discovered_capacity(site: EdgeSite, nodes: Iterable[Node]) -> DiscoveredCapacity:
    """The largest amount that any one node of the pool has, for each resource separately."""
    pool = pool_nodes(site, nodes)
    resource = site.spec.capacity.accelerator.resource if site.spec.capacity.accelerator else "nvidia.com/gpu"
    return DiscoveredCapacity(
        nodes=len(pool),
        ready=sum(node.schedulable for node in pool),
        cpu=_max_allocatable(pool, "cpu"),
        memory=int(_max_allocatable(pool, "memory")),
        accelerators=int(_max_allocatable(pool, resource)),
        accelerator_product=min((node.labels[GPU_PRODUCT] for node in pool if GPU_PRODUCT in node.labels), default=""),
        accelerator_memory=max((_device_memory(node) for node in pool), default=0),
    )


def find_pool_problem(site: EdgeSite, nodes: Sequence[Node]) -> PoolProblem | None:
    """Why the site's pods can never be scheduled in its pool; None if at least one node is large enough."""
    pool = pool_nodes(site, nodes)
    selector = ", ".join(f"{name}={value}" for name, value in sorted(site.spec.pool_labels.items()))
    if not pool:
        advice = "correct nodeSelector, or label the pool's nodes"
        return PoolProblem(Reason.NO_NODE, f"no node carries the labels {selector or 'of nodeSelector'}: {advice}")
    if any(not _shortages(site, node) for node in pool):
        return None
    best = min(pool, key=lambda node: (len(_shortages(site, node)), node.name))
    return PoolProblem(
        Reason.CAPACITY_TOO_LARGE,
        f"no node of the pool is large enough for spec.capacity; {best.name} comes closest and has {'; '.join(_shortages(site, best))}:"
        " lower spec.capacity, or add a node",
    )


def _shortages(site: EdgeSite, node: Node) -> list[str]:
    """The resources of which the claim exceeds the node's allocatable amount, as `have of want`."""
    want, have, accelerator = claimed_capacity(site), node.allocatable, site.spec.capacity.accelerator
    short = []
    if want.cpu is not None and want.cpu > have.get("cpu", 0.0):
        short.append(f"{have.get('cpu', 0.0):g} of {want.cpu:g} cores")
    if want.memory is not None and want.memory > have.get("memory", 0.0):
        short.append(f"{bytes_text(have.get('memory', 0.0))} of {bytes_text(want.memory)} of memory")
    if accelerator is not None and accelerator.count > have.get(accelerator.resource, 0.0):
        short.append(f"{have.get(accelerator.resource, 0.0):g} of {accelerator.count} {accelerator.resource}")
    if want.accelerator_memory is not None and 0 < _device_memory(node) < want.accelerator_memory:
        short.append(f"{bytes_text(_device_memory(node))} of {bytes_text(want.accelerator_memory)} of device memory")
    return short


def _max_allocatable(nodes: Iterable[Node], resource: str) -> float:
    return max((node.allocatable.get(resource, 0.0) for node in nodes), default=0.0)


def _device_memory(node: Node) -> int:
    """Memory of one device in bytes; 0 if the node has no such label."""
    text = node.labels.get(GPU_MEMORY, "")
    return int(text) * _MIB if text.isdecimal() else 0
