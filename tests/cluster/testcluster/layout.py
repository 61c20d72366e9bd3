"""Where everything lies and which addresses it has: the paths, the bridge, the ports and the nodes."""

import os
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]

BRIDGE = "fedpipe0"
"""The bridge that carries the control plane's address and the nodes'."""
HOST = "10.199.0.1"
"""The address of API server, registry and name server: reachable from pods, and from nowhere outside this machine."""
MACHINES = "10.199.0.0/24"
CLUSTER = "10.199.0.0/16"
"""Nodes and pods."""
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
STORE_SERVICE = "10.96.0.20"
DOMAIN = "cluster.local"

API_PORT = 6443
REGISTRY = f"{HOST}:5000"
ETCD_PORT, ETCD_PEER_PORT = 22379, 22380
DNS_HEALTH_PORT = 22381

CGROUP = "fedpipe-test"
"""The control group above everything that is started; `down` ends whatever is in it."""
CHAINS = ("KUBE-", "FEDPIPE-")
"""What the names of our chains of iptables begin with."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: a kubelet and a containerd with an address and a network of pods of their own."""

    name: str
    number: int
    labels: dict[str, str] = field(default_factory=dict)
    gpus: int = 0

    @property
    def address(self) -> str:
        """Its InternalIP, an address of the bridge."""
        return f"10.199.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """Its pods' network."""
        return f"10.199.{self.number}.0/24"

    @property
    def cgroup(self) -> str:
        """Above its pods, relative to the machine's root group."""
        return f"{CGROUP}/{self.name}"


def _pool(name: str, product: str, memory: int, count: int) -> dict[str, str]:
    """The labels of a GPU pool: our own, and those that GPU feature discovery writes (memory in MiB)."""
    gpu = {"product": product, "memory": str(memory), "count": str(count)}
    return {"fedpipe.io/pool": name} | {f"nvidia.com/gpu.{key}": value for key, value in gpu.items()}


NODES = (
    Node("node-one", 1, _pool("small", "NVIDIA-T4", 15360, 2), gpus=2),
    Node("node-two", 2, _pool("large", "NVIDIA-A10", 24576, 4) | {"fedpipe.io/medium": "true"}, gpus=4),
)
"""Two nodes, three pools: `fedpipe.io/pool=small`, `fedpipe.io/pool=large`, and `fedpipe.io/medium=true` beside the large one."""


@dataclass(frozen=True)
class Layout:
    """The folders: what is built and kept in `cache`, one cluster's state in `cache/run`."""

    cache: Path

    @property
    def run(self) -> Path:
        """The state of the cluster; `down` removes it."""
        return self.cache / "run"

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.run / "logs"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.run / "kubeconfig"

    @property
    def bin(self) -> Path:
        """Links to kubectl, helm and kwok, for a PATH."""
        return self.run / "bin"

    @property
    def registry(self) -> Path:
        """The registry's blobs: kept, so that nothing is pushed twice."""
        return self.cache / "registry"

    @property
    def store(self) -> Path:
        """MinIO's buckets: both nodes see them at this path."""
        return self.run / "store"

    def node(self, node: Node) -> Path:
        """A node's state."""
        return self.run / node.name

    def images(self, node: Node) -> Path:
        """A node's containerd root: kept, so that nothing is pulled twice."""
        return self.cache / "images" / node.name

    def socket(self, node: Node) -> Path:
        """Of the node's containerd."""
        return self.node(node) / "containerd.sock"

    def user(self, name: str) -> Path:
        """The kubeconfig of one of the cluster's components."""
        return self.run / "users" / f"{name}.kubeconfig"

    def certificate(self, name: str) -> Path:
        """A certificate; its key lies beside it as `.key`."""
        return self.run / "certificates" / f"{name}.crt"

    def key(self, name: str) -> Path:
        """A private key."""
        return self.run / "certificates" / f"{name}.key"


def node_called(name: str) -> Node:
    """The node of this name."""
    return next(node for node in NODES if node.name == name)


def default_layout() -> Layout:
    """Below FEDPIPE_CACHE, else below `~/.cache/fedpipe`."""
    folder = Path(os.environ.get("FEDPIPE_CACHE") or Path.home() / ".cache" / "fedpipe").expanduser().resolve()
    return Layout(folder / "cluster")
