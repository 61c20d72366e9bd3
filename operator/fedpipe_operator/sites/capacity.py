"""What a site's pool can carry, by its nodes, held against what the site claims. Pure: values in, values out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.api import EdgeSite, Reason, amount
from fedpipe_operator.api.edgesite import ClaimedCapacity, DiscoveredCapacity
from fedpipe_operator.units import bytes_text

GPU_PRODUCT: Final = "nvidia.com/gpu.product"
GPU_MEMORY: Final = "nvidia.com/gpu.memory"
"""Labels that NVIDIA's feature discovery writes; the memory is of one device, in MiB."""
_MIB: Final = 2**20


@dataclass(frozen=True)
class Node:
    """A node, as far as it matters to where a trainer can run."""

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, float]
    """What pods may have of it, in plain numbers, by resource."""
    takes_pods: bool
    """Whether it is ready and not cordoned."""
    uid: str = ""


@dataclass(frozen=True)
class Misfit:
    """Why no node of the pool can ever take the site's pods."""

    reason: Reason
    message: str


def pool(site: EdgeSite, nodes: Iterable[Node]) -> list[Node]:
    """The nodes that the site's trainer pods may run on."""
    return [node for node in nodes if site.spec.node_selector.items() <= node.labels.items()]


def claimed(site: EdgeSite) -> ClaimedCapacity:
    """The claim in plain numbers."""
    capacity = site.spec.capacity
    return ClaimedCapacity(
        cpu=amount(capacity.cpu) if capacity.cpu else None,
        memory=int(amount(capacity.memory)) if capacity.memory else None,
        accelerator_memory=int(amount(capacity.accelerator.memory)) if capacity.accelerator else None,
    )


def discovered(site: EdgeSite, nodes: Iterable[Node]) -> DiscoveredCapacity:
    """The most that any one node of the pool offers, figure by figure."""
    mine = pool(site, nodes)
    resource = site.spec.capacity.accelerator.resource if site.spec.capacity.accelerator else "nvidia.com/gpu"
    return DiscoveredCapacity(
        nodes=len(mine),
        ready=sum(node.takes_pods for node in mine),
        cpu=_most(mine, "cpu"),
        memory=int(_most(mine, "memory")),
        accelerators=int(_most(mine, resource)),
        accelerator_product=min((node.labels[GPU_PRODUCT] for node in mine if GPU_PRODUCT in node.labels), default=""),
        accelerator_memory=max((_device_memory(node) for node in mine), default=0),
    )


def misfit(site: EdgeSite, nodes: Sequence[Node]) -> Misfit | None:
    """Why no node of the pool can ever take a pod of this site, idle or not; None if one can."""
    mine = pool(site, nodes)
    selector = ", ".join(f"{name}={value}" for name, value in sorted(site.spec.node_selector.items()))
    if not mine:
        advice = "correct nodeSelector, or label the pool's nodes"
        return Misfit(Reason.NO_NODE, f"no node carries the labels {selector or 'of nodeSelector'}: {advice}")
    if any(not _shortages(site, node) for node in mine):
        return None
    best = min(mine, key=lambda node: (len(_shortages(site, node)), node.name))
    return Misfit(
        Reason.CLAIM_TOO_LARGE,
        f"no node of the pool can carry the claim; {best.name} comes closest and has {'; '.join(_shortages(site, best))}:"
        " lower spec.capacity, or add a node",
    )


def _shortages(site: EdgeSite, node: Node) -> list[str]:
    """What the claim asks for and the node does not have, even when it is idle."""
    want, have, accelerator = claimed(site), node.allocatable, site.spec.capacity.accelerator
    short = []
    if want.cpu is not None and want.cpu > have.get("cpu", 0.0):
        short.append(f"{have.get('cpu', 0.0):g} of {want.cpu:g} cores")
    if want.memory is not None and want.memory > have.get("memory", 0.0):
        short.append(f"{bytes_text(have.get('memory', 0.0))} of {bytes_text(want.memory)} of memory")
    if accelerator is not None and accelerator.count > have.get(accelerator.resource, 0.0):
        short.append(f"{have.get(accelerator.resource, 0.0):g} of {accelerator.count} {accelerator.resource}")
    if want.accelerator_memory is not None and 0 < _device_memory(node) < want.accelerator_memory:
        short.append(f"{bytes_text(_device_memory(node))} of {bytes_text(want.accelerator_memory)} of memory in a device")
    return short


def _most(nodes: Iterable[Node], resource: str) -> float:
    return max((node.allocatable.get(resource, 0.0) for node in nodes), default=0.0)


def _device_memory(node: Node) -> int:
    """Bytes of one device; 0 where the node does not say."""
    text = node.labels.get(GPU_MEMORY, "")
    return int(text) * _MIB if text.isdecimal() else 0
