"""What a set of NetworkPolicies lets through, by the words of the Kubernetes API: for rules of addresses and ports.

It evaluates no selector of peers: a packet is one of an address that belongs to no pod.
"""

import ipaddress
from dataclasses import dataclass
from typing import Any, Literal

Plain = dict[str, Any]


@dataclass(frozen=True)
class Connection:
    """A connection between a pod and an address, by what the first packet shows."""

    namespace: str
    labels: dict[str, str]
    address: str
    port: int = 443
    protocol: str = "TCP"
    direction: Literal["Ingress", "Egress"] = "Egress"
    """As the pod sees it."""


def is_allowed(policies: list[Plain], connection: Connection) -> bool:
    """Whether the connection is allowed: some rule of a policy for the pod and the direction matches, or there is no such policy."""
    for_pod = [policy for policy in policies if _selects(policy, connection)]
    return not for_pod or any(_matches(rule, connection) for policy in for_pod for rule in _rules(policy, connection.direction))


def _selects(policy: Plain, connection: Connection) -> bool:
    spec = policy["spec"]
    assert set(spec["podSelector"]) == {"matchLabels"}
    is_here = policy["metadata"]["namespace"] == connection.namespace
    return (
        is_here and connection.direction in spec["policyTypes"] and spec["podSelector"]["matchLabels"].items() <= connection.labels.items()
    )


def _rules(policy: Plain, direction: str) -> list[Plain]:
    found: list[Plain] = policy["spec"].get(direction.lower(), [])
    return found


def _matches(rule: Plain, connection: Connection) -> bool:
    peers = rule.get({"Ingress": "from", "Egress": "to"}[connection.direction])
    ports = rule.get("ports")
    return (not peers or any(_is_peer(peer, connection.address) for peer in peers)) and (
        not ports or any((one.get("protocol", "TCP"), one["port"]) == (connection.protocol, connection.port) for one in ports)
    )


def _is_peer(peer: Plain, address: str) -> bool:
    if set(peer) != {"ipBlock"}:
        return False
    block = peer["ipBlock"]
    return _lies_in(address, block["cidr"]) and not any(_lies_in(address, one) for one in block.get("except", []))


def _lies_in(address: str, cidr: str) -> bool:
    network = ipaddress.ip_network(cidr)
    return ipaddress.ip_address(address) in network
