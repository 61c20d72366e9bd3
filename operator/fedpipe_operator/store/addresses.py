"""Which addresses the operator never connects to for a run, whatever its spec names. Pure: resolved addresses in, reasons out.

A run's author writes the endpoint of its store, and the operator calls it from inside the cluster. So each address that a name
resolves to is checked, at every connection (`connections`): the name itself says nothing, and may resolve to another address each time.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA: Final = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure's host agent
            "192.0.0.192",  # Oracle Cloud
            "fd00:ec2::254",  # AWS
            "fd20:ce::254",  # Google Cloud
        ),
    )
)
"""Where clouds serve a machine its credentials, beside the link-local 169.254.169.254."""
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
"""RFC 6052 and RFC 8215: the last four bytes are the IPv4 address that a gateway connects to."""
_IPV4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_IPV4_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_BITS_BEFORE_IPV4: Final = 96
"""In each of these forms, the IPv4 address is what follows."""
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
"""Linux connects 0.0.0.0 to the machine itself."""
API_SERVER_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
API_SERVER_NAME: Final = "kubernetes.default.svc"
FURTHER_VARIABLE: Final = "FEDPIPE_API_SERVERS"
"""Of the chart: where the API server is beside its Service, separated by commas."""
_WITH_PORT: Final = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[^:]+)):(?P<port>[0-9]{1,5})")
_LAST_PORT: Final = 65535


class ApiServer(NamedTuple):
    """Where the Kubernetes API server is, or may be."""

    networks: tuple[Network, ...]
    """One, and what it means as IPv4."""
    port: int | None = None
    """None: every port. An endpoint's address is a node's, where others may listen on other ports."""

    def has(self, address: Address, port: int | None) -> bool:
        """Whether a connection to this address would be one to it; without a port, to any of the address's."""
        return (port is None or self.port in {None, port}) and any(address in network for network in self.networks)


def parse_api_server(text: str) -> ApiServer:
    """The API server at `192.0.2.10`, `192.0.2.0/24`, `fd00::1`, `192.0.2.10:6443` or `[fd00::1]:6443`.

    Raises:
        ValueError: it is none of these.
    """
    found = _WITH_PORT.fullmatch(text)
    try:
        network = ipaddress.ip_network((found["six"] or found["four"]) if found else text, strict=False)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither an address nor a network, with a port or without") from error
    port = int(found["port"]) if found else None
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise ValueError(f"{text!r} has no port from 1 to {_LAST_PORT}")
    return ApiServer(_networks(network), port)


def refused(address: str, api_servers: Iterable[str] = (), port: int | None = None) -> str | None:
    """Why the operator does not connect to this resolved address; None: it may.

    Args:
        address: as `socket.getaddrinfo` gives it, an IPv6 zone included. What is no IP address is refused.
        api_servers: where the Kubernetes API server is, each as `parse_api_server` reads it.
        port: to which it would connect; None: it is not known, so that an address is refused that has any port of the API server.
    """
    servers = tuple(map(parse_api_server, api_servers))
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "it is not an IP address"
    return next((why for one in _meanings(parsed) if (why := _why_refused(one, port, servers)) is not None), None)


def api_server_addresses(environ: Mapping[str, str], resolve: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """Where the API server is, sorted: of the variable that Kubernetes sets in every pod, of the Service's name, and what the chart says.

    `resolve` gives the addresses of a name; a name that does not resolve has none.

    Raises:
        ValueError: the chart's variable is not what the chart writes.
    """
    names = [API_SERVER_NAME, *([host] if (host := environ.get(API_SERVER_VARIABLE)) else [])]
    return tuple(sorted({address for name in names for address in resolve(name)} | _further(environ.get(FURTHER_VARIABLE, ""))))


def _further(text: str) -> set[str]:
    found = {one for part in text.split(",") if (one := part.strip())}
    for one in found:
        try:
            parse_api_server(one)
        except ValueError as error:
            raise ValueError(f"{FURTHER_VARIABLE} is {text!r}: {error}") from error
    return found


def _meanings(address: Address) -> tuple[Address, ...]:
    """The address, and the IPv4 addresses that an IPv6 address stands for: mapped, compatible, NAT64, 6to4, Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in (*_NAT64, _IPV4_COMPATIBLE)):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return (address, *(one for one in found if one is not None))


def _networks(network: Network) -> tuple[Network, ...]:
    """The network, and the IPv4 network that its IPv6 addresses stand for by their last four bytes: mapped, compatible, NAT64."""
    if isinstance(network, ipaddress.IPv4Network) or network.prefixlen <= _BITS_BEFORE_IPV4:
        return (network,)
    if not any(network.subnet_of(form) for form in (*_NAT64, _IPV4_COMPATIBLE, _IPV4_MAPPED)):
        return (network,)
    begins = int(network.network_address) & 0xFFFFFFFF
    return (network, ipaddress.IPv4Network((begins, network.prefixlen - _BITS_BEFORE_IPV4)))


def _why_refused(address: Address, port: int | None, api_servers: Iterable[ApiServer]) -> str | None:
    if any(server.has(address, port) for server in api_servers):
        return "it is the Kubernetes API server's"
    if address.is_loopback:
        return "it is a loopback address, which leads into the operator's own pod"
    if address.is_link_local or address in _METADATA:
        return "it is a link-local address, where a cloud serves a machine's credentials"
    if address.is_unspecified or (isinstance(address, ipaddress.IPv4Address) and address in _THIS_NETWORK):
        return "it is no address of a server, and leads into the operator's own pod"
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return "it is the address of many machines"
    return None
