"""Starts and stops the cluster."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from testcluster import access, certificates, cgroups, configs, control_plane, images, machine, network, nodes, workloads
from testcluster.kubectl import apply, kubectl
from testcluster.layout import CGROUP, NODES, Layout
from testcluster.processes import Daemon, running, start, stop, wait
from testcluster.programs import binary
from testcluster.shell import ClusterError, try_to_run


def up(layout: Layout, say: Callable[[str], None]) -> None:
    """Start the processes that do not run; return when all are healthy."""
    if layout.run.exists() and not running(layout):
        say("removing the state of a cluster whose processes have ended")
        down(layout)
    began = time.monotonic()
    _prepare(layout)
    _start_control_plane(layout)
    for node in NODES:
        nodes.start_kubelet(layout, node)
    images.push_our_programs(layout)
    _apply_workloads(layout)
    for node in NODES:
        nodes.wait_ready(layout, node)
    _start_and_wait(layout, control_plane.around_the_nodes(layout))
    kubectl(layout, "rollout", "status", "deployment/minio", f"--namespace={workloads.STORE_NAMESPACE}", "--timeout=120s")
    say(f"up after {time.monotonic() - began:.1f} s: {', '.join(node.name for node in NODES)} are Ready, the store answers")


def _prepare(layout: Layout) -> None:
    machine.save_state(layout)
    certificates.make_all(layout)
    access.write_all(layout)
    network.set_up()
    nodes.write_configs(layout)
    for name, text in _config_files(layout).items():
        (layout.run / name).write_text(text)
    workloads.make_bucket(layout)
    layout.bin.mkdir(exist_ok=True)
    for program in ("kubectl", "helm", "kwok"):
        link = layout.bin / program
        link.unlink(missing_ok=True)
        link.symlink_to(binary(layout, program))


def _config_files(layout: Layout) -> dict[str, str]:
    return {"kube-proxy.json": configs.proxy(layout), "Corefile": configs.name_server(layout), "registry.json": configs.registry(layout)}


def _start_control_plane(layout: Layout) -> None:
    _start_and_wait(layout, control_plane.foundations(layout))
    start(layout, control_plane.api_server(layout))
    for node in NODES:
        nodes.start_runtime(layout, node)
    wait(layout, control_plane.api_server(layout))
    _start_and_wait(layout, control_plane.around_the_api(layout))


def _start_and_wait(layout: Layout, daemons: list[Daemon]) -> None:
    for daemon in daemons:
        start(layout, daemon)
    for daemon in daemons:
        wait(layout, daemon)


def _apply_workloads(layout: Layout) -> None:
    file = layout.run / "store-credentials.json"
    if not file.exists():
        file.write_text(json.dumps(workloads.new_credentials()))
        file.chmod(0o600)
    apply(layout, *workloads.name_service(), *workloads.store(layout, json.loads(file.read_text())))


def down(layout: Layout) -> None:
    """Stop every process and restore the machine; programs and images stay in the cache."""
    for node in NODES:
        stop(layout, nodes.kubelet(layout, node).name, at_once=True)
        cgroups.kill(node.cgroup)
        _delete_containers(layout, node.name)
    for name in running(layout):
        stop(layout, name, at_once=True)
    if left := cgroups.kill(CGROUP):
        raise ClusterError(f"These processes do not end: {sorted(left)}")
    for folder in (layout.run, layout.cache / "images"):
        machine.unmount(folder)
    cgroups.remove(CGROUP)
    machine.restore(layout)
    shutil.rmtree(layout.run, ignore_errors=True)


def _delete_containers(layout: Layout, name: str) -> None:
    """Delete the containers from containerd, so that its folder keeps only images."""
    node = next(node for node in NODES if node.name == name)
    if not layout.socket(node).exists():
        return
    ctr = ("ctr", "--address", str(layout.socket(node)), "--connect-timeout", "2s", "--namespace", "k8s.io")
    for kind in ("tasks", "containers"):
        found = try_to_run(*ctr, kind, "list", "--quiet").split()
        if found:
            try_to_run(*ctr, kind, "delete", *(("--force",) if kind == "tasks" else ()), *found)


def purge(layout: Layout) -> None:
    """Stop the cluster and remove the cache."""
    down(layout)
    shutil.rmtree(layout.cache)


def state(layout: Layout) -> dict[str, bool]:
    """Each process of the cluster, and whether it runs and is healthy."""
    daemons = [
        *control_plane.foundations(layout),
        control_plane.api_server(layout),
        *control_plane.around_the_api(layout),
        *control_plane.around_the_nodes(layout),
    ]
    daemons += [daemon(layout, node) for node in NODES for daemon in (nodes.containerd, nodes.kubelet)]
    alive = running(layout)
    return {daemon.name: daemon.name in alive and daemon.is_healthy() for daemon in daemons}


def is_up(layout: Layout) -> bool:
    """Whether every process is healthy."""
    return Path(layout.kubeconfig).exists() and all(state(layout).values())
