"""Which resolved addresses the operator never connects to."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator.store.addresses import api_server_addresses, parse_api_server, refused

API = ("10.96.0.1", "fd00:10:96::1")

REFUSED = [
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("::1", "loopback"),
    ("::ffff:127.0.0.1", "loopback"),
    ("::ffff:7f00:1", "loopback"),
    ("::7f00:1", "loopback"),
    ("64:ff9b::7f00:1", "loopback"),
    ("2002:7f00:1::", "loopback"),
    ("169.254.169.254", "link-local"),
    ("169.254.0.1", "link-local"),
    ("::ffff:169.254.169.254", "link-local"),
    ("64:ff9b::a9fe:a9fe", "link-local"),
    ("64:ff9b:1::a9fe:a9fe", "link-local"),
    ("2002:a9fe:a9fe::1", "link-local"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "link-local"),
    ("febf:ffff::1", "link-local"),
    ("fd00:ec2::254", "link-local"),
    ("100.100.100.200", "link-local"),
    ("168.63.129.16", "link-local"),
    ("0.0.0.0", "no address of a server"),  # noqa: S104 -- that it is no address to connect to is what is tested
    ("0.1.2.3", "no address of a server"),
    ("::", "no address of a server"),
    ("::ffff:0.0.0.0", "no address of a server"),
    ("224.0.0.1", "many machines"),
    ("ff02::1", "many machines"),
    ("255.255.255.255", "many machines"),
    ("10.96.0.1", "API server"),
    ("::ffff:10.96.0.1", "API server"),
    ("64:ff9b::a60:1", "API server"),
    ("fd00:10:96::1", "API server"),
    ("FD00:10:96:0::1", "API server"),
    ("minio.minio", "not an IP address"),
    ("", "not an IP address"),
]
ALLOWED = ["10.96.0.2", "192.168.1.10", "172.17.0.2", "52.216.1.1", "fd00:10:96::2", "2600:1f18::1", "::ffff:10.0.0.5", "64:ff9b::0a00:5"]


@pytest.mark.parametrize(("address", "why"), REFUSED, ids=[address or "empty" for address, _ in REFUSED])
def test_an_address_of_the_cluster_itself_is_refused_with_a_reason(address: str, why: str) -> None:
    assert why in (refused(address, API) or "allowed")


@pytest.mark.parametrize("address", ALLOWED)
def test_any_other_address_is_allowed(address: str) -> None:
    assert refused(address, API) is None


@pytest.mark.parametrize(
    "form", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376"]
)
def test_decimal_octal_and_short_forms_are_refused_because_what_they_resolve_to_is(form: str) -> None:
    resolved = socket.getaddrinfo(form, 80, type=socket.SOCK_STREAM)[0][4][0]

    assert refused(str(resolved)) is not None


@given(st.ip_addresses(v=4), st.sampled_from(["{}", "::ffff:{}", "64:ff9b::{}", "::{}"]))
def test_an_ipv4_address_means_the_same_however_ipv6_writes_it(address: ipaddress.IPv4Address, form: str) -> None:
    assert (refused(form.format(address), API) is None) == (refused(str(address), API) is None)


@given(st.ip_addresses(network="127.0.0.0/8") | st.ip_addresses(network="169.254.0.0/16") | st.ip_addresses(network="fe80::/10"))
def test_no_loopback_or_link_local_address_is_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert refused(str(address)) is not None


@given(st.ip_addresses())
def test_no_address_of_the_api_server_is_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert refused(str(address), [str(address)]) is not None


ENDPOINTS = ("192.0.2.10:6443", "[fd00::a]:6443", "198.51.100.0/24", "fd00:1::/64", "::ffff:203.0.113.0/124")
"""As the chart writes them: those that Helm finds have a port, those of its values none."""


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("192.0.2.10", 6443),
        ("::ffff:192.0.2.10", 6443),
        ("64:ff9b::c000:20a", 6443),
        ("fd00::a", 6443),
        ("198.51.100.0", 6443),
        ("198.51.100.255", 9000),
        ("::ffff:198.51.100.7", 443),
        ("fd00:1::ffff", 443),
        ("203.0.113.15", 443),
        ("::ffff:203.0.113.1", 443),
    ],
)
def test_where_the_chart_says_that_the_api_server_is_the_operator_does_not_connect(address: str, port: int) -> None:
    assert refused(address, ENDPOINTS, port) == "it is the Kubernetes API server's"


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("192.0.2.10", 9000),
        ("fd00::a", 9000),
        ("192.0.2.11", 6443),
        ("fd00::b", 6443),
        ("198.51.101.1", 443),
        ("fd00:1:0:1::1", 443),
        ("203.0.113.16", 443),
    ],
)
def test_another_port_of_an_endpoints_address_is_allowed_since_a_store_may_listen_on_the_same_node(address: str, port: int) -> None:
    assert refused(address, ENDPOINTS, port) is None


@pytest.mark.parametrize("address", ["192.0.2.10", "fd00::a"])
def test_an_endpoints_address_is_refused_where_the_port_is_not_known(address: str) -> None:
    assert refused(address, ENDPOINTS) == "it is the Kubernetes API server's"


@given(st.ip_addresses(), st.integers(1, 65535))
def test_no_endpoint_is_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    endpoint = f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"

    assert refused(str(address), [endpoint], port) is not None


@pytest.mark.parametrize(
    "text", ["", "kubernetes", "192.0.2.10:", "192.0.2.10:0", "192.0.2.10:65536", "10.0.0.0/33", "fd00::1:6443:9:9:9:9:9"]
)
def test_what_is_no_address_of_an_api_server_is_an_error_and_refuses_nothing_in_silence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is neither an address nor a network|has no port from 1 to 65535"):
        parse_api_server(text)


@given(st.text(max_size=40))
def test_every_text_has_an_answer_and_only_ip_addresses_are_allowed(text: str) -> None:
    if refused(text, API) is None:
        ipaddress.ip_address(text.partition("%")[0])


def test_the_api_servers_addresses_are_those_of_its_variable_and_of_its_name() -> None:
    resolved = {"kubernetes.default.svc": ["10.96.0.1", "fd00::1"], "10.43.0.1": ["10.43.0.1"]}

    assert api_server_addresses({"KUBERNETES_SERVICE_HOST": "10.43.0.1"}, lambda name: resolved.get(name, [])) == (
        "10.43.0.1",
        "10.96.0.1",
        "fd00::1",
    )
    assert api_server_addresses({}, lambda _name: []) == ()


def test_the_api_servers_endpoints_are_those_that_the_chart_names() -> None:
    environ = {"FEDPIPE_API_SERVERS": "192.0.2.10:6443, 198.51.100.0/24", "KUBERNETES_SERVICE_HOST": "10.96.0.1"}

    assert api_server_addresses(environ, lambda name: [name] if name == "10.96.0.1" else []) == (
        "10.96.0.1",
        "192.0.2.10:6443",
        "198.51.100.0/24",
    )


def test_an_endpoint_that_cannot_be_read_is_told_with_its_variable() -> None:
    with pytest.raises(ValueError, match=r"FEDPIPE_API_SERVERS is '192\.0\.2\.10,nowhere': 'nowhere' is neither an address nor a network"):
        api_server_addresses({"FEDPIPE_API_SERVERS": "192.0.2.10,nowhere"}, lambda _name: [])
