"""Which addresses the operator never connects to for a run, whatever its spec names. Pure: resolved addresses in, reasons out.

A run's author writes the endpoint of its store, and the operator calls it from inside the cluster. So each address that a name
resolves to is checked, at every connection (`connections`): the name itself says nothing, and may resolve to another address each time.
"""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

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
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
"""Linux connects 0.0.0.0 to the machine itself."""
API_SERVER_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
API_SERVER_NAME: Final = "kubernetes.default.svc"


def refused(address: str, api_servers: Iterable[str] = ()) -> str | None:
    """Why the operator does not connect to this resolved address; None: it may.

    Args:
        address: as `socket.getaddrinfo` gives it, an IPv6 zone included. What is no IP address is refused.
        api_servers: addresses of the Kubernetes API server.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        servers = {one for server in api_servers for one in _meanings(ipaddress.ip_address(server))}
    except ValueError:
        return "it is not an IP address"
    return next((why for one in _meanings(parsed) if (why := _why_refused(one, servers)) is not None), None)


def api_server_addresses(environ: Mapping[str, str], resolve: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """The API server's addresses, sorted: of the variable that Kubernetes sets in every pod, and of the Service's name.

    `resolve` gives the addresses of a name; a name that does not resolve has none.
    """
    names = [API_SERVER_NAME, *([host] if (host := environ.get(API_SERVER_VARIABLE)) else [])]
    return tuple(sorted({address for name in names for address in resolve(name)}))


def _meanings(address: Address) -> tuple[Address, ...]:
    """The address, and the IPv4 addresses that an IPv6 address stands for: mapped, compatible, NAT64, 6to4, Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in (*_NAT64, _IPV4_COMPATIBLE)):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return (address, *(one for one in found if one is not None))


def _why_refused(address: Address, api_servers: Iterable[Address]) -> str | None:
    if address in api_servers:
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
