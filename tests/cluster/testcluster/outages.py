"""Causes outages: restarts the API server, kills and restarts a node, drains a node, kills or pauses a pod."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testcluster import cgroups, control_plane, nodes
from testcluster.kubectl import kubectl
from testcluster.layout import NODES, Layout, node_named
from testcluster.processes import start, stop, wait


def stop_api_server(layout: Layout) -> None:
    """Kill the API server, which cuts every connection."""
    stop(layout, control_plane.api_server(layout).name, at_once=True)


def start_api_server(layout: Layout) -> None:
    """Start the API server with the same state; return when it is ready."""
    start(layout, control_plane.api_server(layout))
    wait(layout, control_plane.api_server(layout))


def restart_api_server(layout: Layout) -> None:
    """Restart the API server, which cuts every connection for some seconds."""
    stop_api_server(layout)
    start_api_server(layout)


def stop_kubelet(layout: Layout, name: str) -> None:
    """Stop the node's kubelet; its pods continue to run."""
    stop(layout, nodes.kubelet(layout, node_named(name)).name)


def kill_node(layout: Layout, name: str) -> None:
    """Kill the node's kubelet, containerd and pods at once, as a power failure would."""
    node = node_named(name)
    for daemon in (nodes.kubelet(layout, node), nodes.containerd(layout, node)):
        stop(layout, daemon.name, at_once=True)
    cgroups.kill(nodes.runtime_group(node))
    cgroups.kill(node.cgroup)


def kill_pod(uid: str) -> None:
    """Kill every process of the pod with SIGKILL, on any node."""
    for group in _groups_of(uid):
        cgroups.kill(group)


@contextmanager
def paused(uid: str) -> Iterator[None]:
    """Pause every process of the pod with SIGSTOP; resume them with SIGCONT at the end."""
    groups = _groups_of(uid)
    cgroups.send_signal(groups, signal.SIGSTOP)
    try:
        yield
    finally:
        cgroups.send_signal(groups, signal.SIGCONT)


def _groups_of(pod: str) -> list[str]:
    """The control groups of the pod with this UID, on any node."""
    return [group for node in NODES for group in cgroups.named(f"pod{pod}", below=node.cgroup)]


def start_node(layout: Layout, name: str) -> None:
    """Start the node; return when it is Ready."""
    node = node_named(name)
    nodes.start_runtime(layout, node)
    nodes.start_kubelet(layout, node)
    nodes.wait_ready(layout, node)


def drain(layout: Layout, name: str) -> None:
    """Cordon the node and evict its pods."""
    kubectl(layout, "drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")


def uncordon(layout: Layout, name: str) -> None:
    """Make the node schedulable again."""
    kubectl(layout, "uncordon", name)


def are_possible(layout: Layout, kubeconfig: str) -> bool:
    """Whether the kubeconfig is that of our own cluster, the only one in which tests may cause outages."""
    return bool(kubeconfig) and Path(kubeconfig).resolve() == layout.kubeconfig.resolve()
