"""The nodes: each has a containerd, a kubelet, the labels of a GPU pool, and GPUs that exist only in its status."""

import json
import os
from functools import partial
from pathlib import Path

from testcluster import cgroups, configs
from testcluster.kubectl import kubectl
from testcluster.layout import NODES, REGISTRY, Layout, Node
from testcluster.processes import Daemon, answers, start, wait
from testcluster.programs import binary
from testcluster.shell import run, try_to_run


def runtime_group(node: Node) -> str:
    """The control group of the node's containerd and its shims."""
    return f"{node.cgroup}.runtime"


def containerd(layout: Layout, node: Node) -> Daemon:
    """The node's container runtime."""
    argv = ("containerd", "--config", str(layout.node(node) / "containerd.toml"))
    return Daemon(f"containerd-{node.name}", argv, partial(_containerd_answers, layout, node), runtime_group(node))


def _containerd_answers(layout: Layout, node: Node) -> bool:
    return "Server:" in try_to_run("ctr", "--address", layout.socket(node), "--connect-timeout", "2s", "version")


def kubelet(layout: Layout, node: Node) -> Daemon:
    """The node's kubelet."""
    folder = layout.node(node)
    argv = (
        str(binary(layout, "kubelet")),
        *(f"--config={folder / 'kubelet.json'}", f"--kubeconfig={layout.user(node.name)}", f"--root-dir={folder / 'kubelet'}"),
        *(f"--cert-dir={folder / 'certificates'}", f"--hostname-override={node.name}", f"--node-ip={node.address}"),
        f"--node-labels={','.join(f'{key}={value}' for key, value in node.labels.items())}",
    )
    return Daemon(f"kubelet-{node.name}", argv, partial(answers, f"http://{node.address}:10248/healthz"), runtime_group(node))


def write_configs(layout: Layout) -> None:
    """Write the configuration files of the nodes' processes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hosts = layout.run / "registries" / REGISTRY
    _write(hosts / "hosts.toml", configs.registry_hosts())
    for node in NODES:
        folder = layout.node(node)
        _write(folder / "containerd.toml", configs.containerd(layout, node))
        _write(folder / "kubelet.json", configs.kubelet(layout, node, memory=memory))
        _write(folder / "cni" / "10-pods.conflist", configs.pod_network(layout, node))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def remove_image(layout: Layout, image: str) -> None:
    """Remove the image from every node, so that the next pod pulls it, even if its tag was used before."""
    for node in NODES:
        remove_image_from(layout, node, image)


def remove_image_from(layout: Layout, node: Node, image: str) -> None:
    """Remove the image from this node."""
    try_to_run(*_ctr(layout, node), "images", "remove", "--sync", image)


def replace_image(layout: Layout, node: Node, image: str, *, by: str) -> None:
    """Pull the image `by` to this node, and give it the name of `image` there."""
    # By a pod, since a kubelet's pull gets only the layers that the node lacks.
    pod = f"pull-on-{node.name}"
    overrides = json.dumps({"spec": {"nodeName": node.name}})
    kubectl(layout, "run", pod, f"--image={by}", "--restart=Never", f"--overrides={overrides}", "--command", "--", "true")
    kubectl(layout, "wait", f"pod/{pod}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    kubectl(layout, "delete", "pod", pod)
    run(*_ctr(layout, node), "images", "tag", "--force", by, image)


def images(layout: Layout, node: Node) -> dict[str, str]:
    """The digests of the node's images by name; an image has up to three names: with its tag, with its digest, and its id."""
    lines = try_to_run(*_ctr(layout, node), "images", "list").splitlines()[1:]
    return {name: digest for name, _, digest, *_ in map(str.split, lines)}


def _ctr(layout: Layout, node: Node) -> tuple[str, ...]:
    return ("ctr", "--address", str(layout.socket(node)), "--namespace", "k8s.io")


def start_runtime(layout: Layout, node: Node) -> None:
    """Start the node's containerd and wait for it."""
    layout.images(node).mkdir(parents=True, exist_ok=True)
    start(layout, containerd(layout, node))
    wait(layout, containerd(layout, node))


def start_kubelet(layout: Layout, node: Node) -> None:
    """Start the node's kubelet, without waiting."""
    cgroups.create(node.cgroup)
    start(layout, kubelet(layout, node))


def wait_ready(layout: Layout, node: Node) -> None:
    """Wait until the node is Ready, then set its GPUs, which a starting kubelet may reset."""
    wait(layout, kubelet(layout, node))
    kubectl(layout, "wait", "--for=create", f"node/{node.name}", "--timeout=60s")
    kubectl(layout, "wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=90s")
    kubectl(layout, "patch", "node", node.name, "--subresource=status", "--type=merge", "-p", gpu_patch(node))


def gpu_patch(node: Node) -> str:
    """The patch of the node's status that adds its GPUs, as a device plugin would."""
    gpus = {"nvidia.com/gpu": str(node.gpus)}
    return json.dumps({"status": {"capacity": gpus, "allocatable": gpus}})
