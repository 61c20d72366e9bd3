"""The cluster removes the rules that it added to the machine, and no others."""

import pytest
from testcluster import network

SAVED = """# Generated
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:FEDPIPE-OUT - [0:0]
-A PREROUTING -m comment --comment "kubernetes  portals" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A POSTROUTING -j FEDPIPE-OUT
-A KUBE-SERVICES -d 10.96.0.1/32 -j FEDPIPE-OUT
COMMIT
# Completed
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
COMMIT
*mangle
:INPUT ACCEPT [0:0]
COMMIT
"""


def test_only_our_chains_and_the_jumps_to_them_are_removed() -> None:
    assert network.removal_of_chains(SAVED).splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kubernetes  portals" -j KUBE-SERVICES',
        "-D POSTROUTING -j FEDPIPE-OUT",
        "-F KUBE-SERVICES",
        "-F FEDPIPE-OUT",
        "-X KUBE-SERVICES",
        "-X FEDPIPE-OUT",
        "COMMIT",
    ]


def test_nothing_is_removed_without_chains_of_ours() -> None:
    assert network.removal_of_chains("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n") == ""
    assert network.removal_of_chains("") == ""


def test_a_table_with_a_custom_chain_or_policy_is_not_bare() -> None:
    assert network.tables_in(SAVED, only_bare=False) == ["nat", "filter", "mangle"]
    assert network.tables_in(SAVED, only_bare=True) == ["mangle"]


def test_another_kubernetes_is_detected() -> None:
    assert network.other_kubernetes(SAVED)
    assert not network.other_kubernetes(SAVED.replace("KUBE-", "CUBE-"))


@pytest.mark.parametrize(
    ("destination", "mask", "taken"),
    [
        pytest.param("00000000", "00000000", "", id="the default route"),
        pytest.param("0002A8C0", "00FFFFFF", "", id="192.168.2.0/24"),
        pytest.param("0003C70A", "00FFFFFF", "10.199.0.0/16", id="10.199.3.0/24"),
        pytest.param("0000000A", "000000FF", "10.199.0.0/16", id="10.0.0.0/8"),
        pytest.param("0000600A", "0000FFFF", "10.96.0.0/16", id="10.96.0.0/16"),
    ],
)
def test_networks_in_use_are_reported(destination: str, mask: str, taken: str) -> None:
    routes = f"Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\nx0\t{destination}\t00000000\t1\t0\t0\t0\t{mask}\n"

    assert network.overlapping(routes) == taken
