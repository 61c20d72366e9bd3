"""The command line: `python tests/cluster check | build | up | images | env | status | down`, and commands that cause outages."""

import argparse
import os
import sys
from collections.abc import Callable

from testcluster import images, lifecycle, outages, packages, preflight, programs, workloads
from testcluster.layout import NODES, STORE_SERVICE, Layout, default_layout
from testcluster.processes import log_of, pid_of
from testcluster.shell import ClusterError, locked

CANNOT_RUN = 3
"""The exit code of a machine that lacks what a cluster needs."""


def _say(line: str) -> None:
    print(line, flush=True)


def check(layout: Layout) -> int:
    """Report what this machine lacks."""
    preflight.require(layout)
    _say("This machine can run a cluster.")
    return 0


def build_programs(layout: Layout) -> int:
    """Install and build the programs of a cluster; start nothing."""
    preflight.require(layout)
    packages.install()
    packages.unpack(layout)
    programs.build_all(layout)
    return 0


def build(layout: Layout) -> int:
    """Build the programs and the product's images; start nothing."""
    build_programs(layout)
    images.build_products(layout)
    return 0


def up(layout: Layout) -> int:
    """Start the cluster, or the processes of it that do not run."""
    build_programs(layout)
    with locked(layout.cache / "cluster.lock"):
        lifecycle.up(layout, _say)
    _say(f"export KUBECONFIG={layout.kubeconfig}")
    return 0


def push_images(layout: Layout) -> int:
    """Build the product's images and push them to the cluster's registry."""
    for image in images.push_products(layout).values():
        _say(image)
    return 0


def env(layout: Layout) -> int:
    """Print the environment as shell commands: `eval "$(python tests/cluster env)"`."""
    for name, value in environment(layout).items():
        _say(f'export {name}="{value}"')
    return 0


def environment(layout: Layout) -> dict[str, str]:
    """The variables by which the end-to-end tests find the cluster, the images and the store."""
    built = {f"FEDPIPE_{product.upper()}_IMAGE": image for product, image in images.names().items()}
    store = {
        "FEDPIPE_STORE_ENDPOINT": workloads.STORE_ENDPOINT,
        "FEDPIPE_STORE_FROM_HOST": f"http://{STORE_SERVICE}:{workloads.STORE_PORT}",
    }
    return {"KUBECONFIG": str(layout.kubeconfig), **built, **store, "PATH": f"{layout.bin}:$PATH"}


def status(layout: Layout) -> int:
    """Print each process, whether it is healthy, and its log."""
    states = lifecycle.state(layout)
    for name, healthy in states.items():
        number = pid_of(layout, name)
        word = "healthy" if healthy else "unhealthy" if number else "stopped"
        _say(f"{name:24} {word:9} {number or '-':>8}  {log_of(layout, name)}")
    return 0 if all(states.values()) else 1


def down(layout: Layout) -> int:
    """Stop the cluster and restore the machine."""
    with locked(layout.cache / "cluster.lock"):
        lifecycle.down(layout)
    return 0


def purge(layout: Layout) -> int:
    """Stop the cluster and delete all programs and images."""
    lifecycle.purge(layout)
    return 0


def restart_api_server(layout: Layout) -> int:
    """Restart the API server."""
    outages.restart_api_server(layout)
    return 0


COMMANDS: dict[str, Callable[[Layout], int]] = {
    "check": check,
    "programs": build_programs,
    "build": build,
    "up": up,
    "images": push_images,
    "env": env,
    "status": status,
    "down": down,
    "purge": purge,
    "restart-api-server": restart_api_server,
}

ON_A_NODE: dict[str, Callable[[Layout, str], None]] = {
    "kill-node": outages.kill_node,
    "start-node": outages.start_node,
    "stop-kubelet": outages.stop_kubelet,
    "drain": outages.drain,
    "uncordon": outages.uncordon,
}


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    commands = argparse.ArgumentParser(
        prog="python tests/cluster", description="A real Kubernetes on this machine, for the end-to-end tests."
    )
    subcommands = commands.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subcommands.add_parser(name, help=command.__doc__)
    for name, on_node in ON_A_NODE.items():
        subcommands.add_parser(name, help=on_node.__doc__).add_argument("node", choices=[node.name for node in NODES])
    return commands


def main(argv: list[str]) -> int:
    """Run the command; return 1 if it fails, 3 if this machine cannot run a cluster."""
    arguments = parser().parse_args(argv)
    layout = default_layout()
    os.umask(0o022)
    try:
        if arguments.command in COMMANDS:
            return COMMANDS[arguments.command](layout)
        ON_A_NODE[arguments.command](layout, arguments.node)
    except preflight.CannotRunError as error:
        print(error, file=sys.stderr)
        return CANNOT_RUN
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
