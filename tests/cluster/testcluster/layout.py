"""The cluster's layout: paths, bridge, addresses, ports and nodes."""

import os
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]

BRIDGE = "fedpipe0"
"""The bridge that carries the control plane's address and the nodes'."""
HOST = "10.199.0.1"
"""The address of the API server, the registry and the name server: reachable from pods, not from other machines."""
MACHINES = "10.199.0.0/24"
CLUSTER = "10.199.0.0/16"
"""The network of nodes and pods."""
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
STORE_SERVICE = "10.96.0.20"
DOMAIN = "cluster.local"

API_PORT = 6443
REGISTRY = f"{HOST}:5000"
ETCD_PORT, ETCD_PEER_PORT = 22379, 22380
DNS_HEALTH_PORT = 22381

POLICY_QUEUE = 10199
"""The netfilter queue whose packets are held to the NetworkPolicies."""
POLICY_TABLE = "fedpipe-network-policies"
"""The nftables table that the program of that queue creates where the kernel lets it; it has no effect."""

CGROUP = "fedpipe-test"
"""The control group above every process of the cluster; `down` kills all processes in it."""
CHAINS = ("KUBE-", "FEDPIPE-")
"""The prefixes of our iptables chains."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: a kubelet and a containerd with their own address and pod network."""

    name: str
    number: int
    labels: dict[str, str] = field(default_factory=dict)
    gpus: int = 0

    @property
    def address(self) -> str:
        """The node's InternalIP, an address of the bridge."""
        return f"10.199.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The node's pod network."""
        return f"10.199.{self.number}.0/24"

    @property
    def cgroup(self) -> str:
        """The control group above the node's pods, relative to the machine's root group."""
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
    """The folders: `cache` keeps what is built, `cache/run` has the running cluster's state."""

    cache: Path

    @property
    def run(self) -> Path:
        """The cluster's state; `down` removes it."""
        return self.cache / "run"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.run / "logs"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.run / "kubeconfig"

    @property
    def bin(self) -> Path:
        """Links to kubectl, helm and kwok, for a PATH."""
        return self.run / "bin"

    @property
    def registry(self) -> Path:
        """The registry's blobs; kept, so that no image is pushed twice."""
        return self.cache / "registry"

    @property
    def store(self) -> Path:
        """MinIO's buckets; both nodes have them at this path."""
        return self.run / "store"

    def node(self, node: Node) -> Path:
        """A node's state."""
        return self.run / node.name

    def images(self, node: Node) -> Path:
        """A node's containerd root; kept, so that no image is pulled twice."""
        return self.cache / "images" / node.name

    def socket(self, node: Node) -> Path:
        """The socket of the node's containerd."""
        return self.node(node) / "containerd.sock"

    def user(self, name: str) -> Path:
        """The kubeconfig of one of the cluster's components."""
        return self.run / "users" / f"{name}.kubeconfig"

    def certificate(self, name: str) -> Path:
        """A certificate; its key is in the same folder with the suffix `.key`."""
        return self.run / "certificates" / f"{name}.crt"

    def key(self, name: str) -> Path:
        """A private key."""
        return self.run / "certificates" / f"{name}.key"


def node_named(name: str) -> Node:
    """The node of this name."""
    return next(node for node in NODES if node.name == name)


def default_layout() -> Layout:
    """The layout below FEDPIPE_CACHE, else below `~/.cache/fedpipe`."""
    folder = Path(os.environ.get("FEDPIPE_CACHE") or Path.home() / ".cache" / "fedpipe").expanduser().resolve()
    return Layout(folder / "cluster")
