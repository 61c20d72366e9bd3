"""The components' configuration files, as strings; nothing here touches the machine."""

import json
from typing import Any

from testcluster.layout import CLUSTER, DNS_HEALTH_PORT, DNS_SERVICE, DOMAIN, HOST, NODES, REGISTRY, Layout, Node
from testcluster.versions import PROGRAMS

PAUSE = f"{REGISTRY}/pause:{PROGRAMS['pause'].version}"
STORE = f"{REGISTRY}/minio:{PROGRAMS['minio'].version}"

_UNUSED = (
    *(f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")),
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
)
"""Plugins of containerd whose requirements this machine does not have."""


def containerd(layout: Layout, node: Node) -> str:
    """A node's containerd: its own folders and network, and our registry over plain HTTP."""
    folder = layout.node(node)
    return f"""version = 2
root = "{layout.images(node)}"
state = "{folder}/containerd"
oom_score = 0
disabled_plugins = [{", ".join(f'"{plugin}"' for plugin in _UNUSED)}]

[grpc]
  address = "{layout.socket(node)}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{layout.run}/registries"
"""


def registry_hosts() -> str:
    """A containerd's access to our registry."""
    return f'server = "http://{REGISTRY}"\n\n[host."http://{REGISTRY}"]\n  capabilities = ["pull", "resolve"]\n'


def pod_network(layout: Layout, node: Node) -> str:
    """A node's pod network: each pod has its own veth pair to the machine, so that every packet passes the machine's rules."""
    addresses = {"type": "host-local", "subnet": node.pods, "dataDir": f"{layout.node(node)}/addresses", "routes": [{"dst": "0.0.0.0/0"}]}
    return _json({"cniVersion": "1.0.0", "name": network_name(node), "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}]})


def network_name(node: Node) -> str:
    """The name of the node's pod network."""
    return f"fedpipe-{node.name}"


def kubelet(layout: Layout, node: Node, *, memory: int) -> str:
    """A node's kubelet: it offers the node's share of the machine's `memory` bytes, and renews its lease often to reveal a loss early."""
    return _json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": node.address,
            "healthzBindAddress": node.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(layout.certificate("ca"))},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{layout.socket(node)}",
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": DOMAIN,
            "podLogsDir": f"{layout.node(node)}/pod-logs",
            "volumePluginDir": f"{layout.node(node)}/volume-plugins",
            "nodeLeaseDurationSeconds": 12,
            "nodeStatusUpdateFrequency": "4s",
            "serializeImagePulls": False,
            # Otherwise, an image that a test puts in another one's place (`substitution`) would be pulled again: it has another record.
            "imagePullCredentialsVerificationPolicy": "NeverVerify",
        }
        | _kubelet_resources(node, memory)
    )


def _kubelet_resources(node: Node, memory: int) -> dict[str, Any]:
    elsewhere = memory - memory // len(NODES)
    return {
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "systemReserved": {"memory": str(elsewhere)},
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        "imageGCHighThresholdPercent": 100,
    }


def proxy(layout: Layout) -> str:
    """kube-proxy: one for all nodes, since they share this machine's rules; it does not change the machine's conntrack settings."""
    return _json(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "bindAddress": HOST,
            "clientConnection": {"kubeconfig": str(layout.user("kube-proxy"))},
            "clusterCIDR": CLUSTER,
            "conntrack": {"maxPerCore": 0, "min": 0},
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "hostnameOverride": NODES[0].name,
            "iptables": {"localhostNodePorts": False, "minSyncPeriod": "0s"},
            "mode": "iptables",
            "nodePortAddresses": [f"{HOST}/24"],
        }
    )


def name_server(layout: Layout) -> str:
    """CoreDNS: it answers the cluster's names and forwards all others to this machine's servers."""
    return f""".:53 {{
    bind {HOST}
    errors
    health 127.0.0.1:{DNS_HEALTH_PORT}
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {layout.kubeconfig}
        pods insecure
        ttl 5
    }}
    forward . /etc/resolv.conf
    cache 5
}}
"""


def registry(layout: Layout) -> str:
    """The image registry."""
    return _json(
        {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(layout.registry)}},
            "http": {"addr": REGISTRY},
        }
    )


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
