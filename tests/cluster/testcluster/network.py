"""Sets up and removes the bridge with the control plane's and the nodes' addresses, and the iptables rules for the pods' packets."""

import ipaddress
import json
from pathlib import Path

from testcluster.layout import BRIDGE, CHAINS, CLUSTER, HOST, NODES, POLICY_QUEUE, POLICY_TABLE, SERVICES
from testcluster.shell import run, try_to_run

_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")
"""The kernel's open queues, a line for each; the number is the first column."""
_TO_THE_QUEUE = f"-m conntrack --ctstate NEW -j NFQUEUE --queue-num {POLICY_QUEUE} --queue-bypass"
_RULES = f"""*filter
:FEDPIPE-PODS - [0:0]
-A FEDPIPE-PODS -s {CLUSTER} -j ACCEPT
-A FEDPIPE-PODS -d {CLUSTER} -j ACCEPT
-I INPUT -j FEDPIPE-PODS
-I FORWARD -j FEDPIPE-PODS
COMMIT
*nat
:FEDPIPE-OUT - [0:0]
-A FEDPIPE-OUT -s {CLUSTER} ! -d {CLUSTER} -j MASQUERADE
-A POSTROUTING -j FEDPIPE-OUT
COMMIT
*mangle
:FEDPIPE-POLICIES - [0:0]
{"".join(f"-A FEDPIPE-POLICIES -{end} {node.pods} {_TO_THE_QUEUE}{chr(10)}" for node in NODES for end in "sd")}-I INPUT -j FEDPIPE-POLICIES
-I FORWARD -j FEDPIPE-POLICIES
COMMIT
"""
"""Accepts the pods' packets on machines whose firewall drops forwarded ones, masquerades what pods send outside, and puts the first packet
of each connection from or to a pod into the queue of the NetworkPolicies, after a Service's address was replaced by an endpoint's. While no
program reads the queue, its packets pass."""


_FAMILIES = {"iptables": "ip", "ip6tables": "ip6"}


def bridge_exists() -> bool:
    """Whether the bridge exists."""
    return Path(f"/sys/class/net/{BRIDGE}").exists()


def policies_are_enforced() -> bool:
    """Whether a program reads the queue of the NetworkPolicies."""
    return _QUEUES.exists() and str(POLICY_QUEUE) in [line.split()[0] for line in _QUEUES.read_text().splitlines()]


def set_up() -> None:
    """Create the bridge with its addresses, routes and rules."""
    if not bridge_exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "link", "set", BRIDGE, "up")
    present = {
        entry["local"] for device in json.loads(run("ip", "-j", "-4", "addr", "show", "dev", BRIDGE)) for entry in device["addr_info"]
    }
    for address in (HOST, *(node.address for node in NODES)):
        if address not in present:
            run("ip", "addr", "add", f"{address}/24", "dev", BRIDGE)
    for network in (CLUSTER, SERVICES):  # without them, packets to deleted pods or unknown Services would leave the machine
        run("ip", "route", "replace", network, "dev", BRIDGE, "src", HOST)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    if "FEDPIPE-PODS" not in run("iptables-save"):
        run("iptables-restore", "--noflush", given=_RULES)


def tear_down(tables_before: list[str]) -> None:
    """Remove our rules, those of kubelet and kube-proxy, the tables that are now empty and did not exist before, and the bridge."""
    for program in _FAMILIES:
        if removal := removal_of_chains(try_to_run(f"{program}-save")):
            run(f"{program}-restore", "--noflush", given=removal)
    try_to_run("nft", "delete", "table", "inet", POLICY_TABLE)
    for table in tables(only_bare=True):
        if table not in tables_before:
            try_to_run("nft", "delete", "table", *table.split())
    if bridge_exists():
        run("ip", "link", "delete", BRIDGE)


def removal_of_chains(saved: str, prefixes: tuple[str, ...] = CHAINS) -> str:
    """The input for iptables-restore that removes the chains with these prefixes and nothing else, from the output of iptables-save."""
    tables = [_removal_of_table(table, prefixes) for table in saved.split("COMMIT\n")]
    return "".join(table for table in tables if table)


def _removal_of_table(table: str, prefixes: tuple[str, ...]) -> str:
    lines = table.splitlines()
    names = [line[1:].split()[0] for line in lines if line.startswith(":")]
    ours = [name for name in names if name.startswith(prefixes)]
    if not ours:
        return ""
    rules = [line for line in lines if line.startswith("-A ")]
    jumps = [f"-D{rule[2:]}" for rule in rules if rule.split()[1] not in ours and set(rule.split()) & set(ours)]
    head = next(line for line in lines if line.startswith("*"))
    return "\n".join([head, *jumps, *(f"-F {name}" for name in ours), *(f"-X {name}" for name in ours), "COMMIT"]) + "\n"


def tables(*, only_bare: bool = False) -> list[str]:
    """The existing tables, such as `ip nat`; with `only_bare`, only the empty ones."""
    return [
        f"{family} {name}"
        for program, family in _FAMILIES.items()
        for name in tables_in(try_to_run(f"{program}-save"), only_bare=only_bare)
    ]


def tables_in(saved: str, *, only_bare: bool) -> list[str]:
    """The tables in the output of iptables-save; with `only_bare`, only those without a rule, a custom chain or a policy."""
    found = [table for part in saved.split("COMMIT\n") if (table := [line for line in part.splitlines() if line and line[0] != "#"])]
    return [head[1:] for head, *lines in found if not only_bare or all(line[0] == ":" and line.split()[1] == "ACCEPT" for line in lines)]


def other_kubernetes(saved: str) -> bool:
    """Whether chains of a kubelet or kube-proxy exist."""
    return any(line.startswith(":KUBE-") for line in saved.splitlines())


def overlapping(routes: str) -> str:
    """The one of our networks that overlaps a route in /proc/net/route, the default route aside; empty if none."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    known = [ipaddress.ip_network(f"{_address(row[1])}/{_address(row[7])}") for row in rows if row[7] != "00000000"]
    return next((ours for ours in (CLUSTER, SERVICES) if any(network.overlaps(ipaddress.ip_network(ours)) for network in known)), "")


def _address(hexadecimal: str) -> str:
    """Decode an address, whose bytes the kernel writes in reverse order."""
    return str(ipaddress.IPv4Address(bytes.fromhex(hexadecimal)[::-1]))
