"""What goes wrong in a cluster, on purpose: an API server that restarts, a node that dies and comes back, a node that is emptied."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testcluster import cgroups, control_plane, nodes
from testcluster.kubectl import kubectl
from testcluster.layout import NODES, Layout, node_called
from testcluster.processes import start, stop, wait


def stop_api_server(layout: Layout) -> None:
    """Every connection is cut, and from now on nobody answers."""
    stop(layout, control_plane.api_server(layout).name, at_once=True)


def start_api_server(layout: Layout) -> None:
    """The API server answers again, from the same state."""
    start(layout, control_plane.api_server(layout))
    wait(layout, control_plane.api_server(layout))


def restart_api_server(layout: Layout) -> None:
    """Cut every connection, and answer again some seconds later."""
    stop_api_server(layout)
    start_api_server(layout)


def stop_kubelet(layout: Layout, name: str) -> None:
    """Nobody hears of the node any more, while its pods go on."""
    stop(layout, nodes.kubelet(layout, node_called(name)).name)


def kill_node(layout: Layout, name: str) -> None:
    """The node dies as if its power were cut: kubelet, containerd and every pod at once."""
    node = node_called(name)
    for daemon in (nodes.kubelet(layout, node), nodes.containerd(layout, node)):
        stop(layout, daemon.name, at_once=True)
    cgroups.kill(nodes.runtime_group(node))
    cgroups.kill(node.cgroup)


def kill_pod(uid: str) -> None:
    """Every process of the pod dies at once, by SIGKILL; on whichever node it is."""
    for group in _groups_of(uid):
        cgroups.kill(group)


@contextmanager
def held_still(uid: str) -> Iterator[None]:
    """Every process of the pod stands still meanwhile: it hears nothing, and goes on as if no time had passed."""
    groups = _groups_of(uid)
    cgroups.tell(groups, signal.SIGSTOP)
    try:
        yield
    finally:
        cgroups.tell(groups, signal.SIGCONT)


def _groups_of(pod: str) -> list[str]:
    """The control groups of this pod, by its uid, on whichever node it is."""
    return [group for node in NODES for group in cgroups.called(f"pod{pod}", below=node.cgroup)]


def start_node(layout: Layout, name: str) -> None:
    """The node is there again and Ready."""
    node = node_called(name)
    nodes.start_runtime(layout, node)
    nodes.start_kubelet(layout, node)
    nodes.wait_ready(layout, node)


def drain(layout: Layout, name: str) -> None:
    """Nothing new comes to the node, and what runs there is evicted."""
    kubectl(layout, "drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")


def uncordon(layout: Layout, name: str) -> None:
    """The node takes pods again."""
    kubectl(layout, "uncordon", name)


def are_possible(layout: Layout, kubeconfig: str) -> bool:
    """Whether the cluster that the tests were given is ours, and so ours to break."""
    return bool(kubeconfig) and Path(kubeconfig).resolve() == layout.kubeconfig.resolve()
