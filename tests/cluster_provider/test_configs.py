"""The components' configuration files are valid, and no two nodes share a folder, a network or an address."""

import json
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from testcluster import access, certificates, configs, control_plane, layout, nodes, workloads
from testcluster.layout import NODES, Layout, Node

HERE = Layout(Path("/somewhere/cluster"))
MEMORY = 16 << 30


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.name)
def test_a_containerd_pulls_from_our_registry_and_uses_its_own_folders(node: Node) -> None:
    config = tomllib.loads(configs.containerd(HERE, node))

    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"].startswith(f"{layout.REGISTRY}/pause:")
    assert cri["registry"]["config_path"] == "/somewhere/cluster/run/registries"
    assert config["root"] == f"/somewhere/cluster/images/{node.name}"
    assert config["state"].startswith(f"/somewhere/cluster/run/{node.name}/")


def test_a_registrys_hosts_file_is_toml() -> None:
    assert tomllib.loads(configs.registry_hosts())["server"] == f"http://{layout.REGISTRY}"


def test_the_nodes_share_the_machines_memory() -> None:
    kubelets = [json.loads(configs.kubelet(HERE, node, memory=MEMORY)) for node in NODES]

    assert sum(MEMORY - int(kubelet["systemReserved"]["memory"]) for kubelet in kubelets) == MEMORY


def test_no_two_nodes_share_anything() -> None:
    for what in (
        [node.address for node in NODES],
        [node.pods for node in NODES],
        [node.cgroup for node in NODES],
        [HERE.socket(node) for node in NODES],
        [json.loads(configs.pod_network(HERE, node))["plugins"][0]["ipam"]["dataDir"] for node in NODES],
        [nodes.kubelet(HERE, node).name for node in NODES],
    ):
        assert len(set(what)) == len(NODES)


def test_addresses_lie_in_their_networks() -> None:
    cluster, services = ip_network(layout.CLUSTER), ip_network(layout.SERVICES)

    assert all(ip_address(address) in services for address in (layout.API_SERVICE, layout.DNS_SERVICE, layout.STORE_SERVICE))
    assert all(ip_address(address) in ip_network(layout.MACHINES) for address in (layout.HOST, *(node.address for node in NODES)))
    assert all(
        ip_network(node.pods).subnet_of(cluster) and not ip_network(node.pods).overlaps(ip_network(layout.MACHINES)) for node in NODES
    )
    assert not cluster.overlaps(services)


def test_the_nodes_have_three_pools() -> None:
    labels = [node.labels for node in NODES]

    assert {each["fedpipe.io/pool"] for each in labels} == {"small", "large"}
    assert [each.get("fedpipe.io/medium") for each in labels] == [None, "true"]
    assert [int(node.labels["nvidia.com/gpu.count"]) for node in NODES] == [node.gpus for node in NODES]


def test_gpus_are_advertised_in_the_nodes_status() -> None:
    assert json.loads(nodes.gpu_patch(Node("n", 1, gpus=2))) == {
        "status": {"capacity": {"nvidia.com/gpu": "2"}, "allocatable": {"nvidia.com/gpu": "2"}}
    }


def test_etcd_listens_on_loopback_only_and_everything_else_on_our_bridge() -> None:
    urls = [word for word in control_plane.etcd(HERE).argv if word.startswith("http")]
    api = control_plane.api_server(HERE).argv

    assert urls
    assert all(url.startswith("http://127.0.0.1:") for url in urls)
    assert f"--bind-address={layout.HOST}" in api
    assert f"bind {layout.HOST}\n" in configs.name_server(HERE)
    assert json.loads(configs.registry(HERE))["http"]["addr"] == layout.REGISTRY


def test_the_api_servers_certificate_has_its_names_and_addresses() -> None:
    for name in (f"IP:{layout.HOST}", f"IP:{layout.API_SERVICE}", "DNS:kubernetes.default.svc"):
        assert name in certificates.api_names().split(",")


def test_a_token_file_names_each_user_with_its_group() -> None:
    lines = access.token_lines({"admin": "t1", "system:kube-proxy": "t2"})

    assert lines == "t1,admin,admin,system:masters\nt2,system:kube-proxy,system:kube-proxy\n"


def test_a_kubeconfig_has_one_user_and_the_authority() -> None:
    document = json.loads(access.kubeconfig(user="admin", token="t", authority=b"pem"))  # noqa: S106 - no real token

    assert document["users"] == [{"name": "admin", "user": {"token": "t"}}]
    assert document["clusters"][0]["cluster"] == {"server": "https://10.199.0.1:6443", "certificate-authority-data": "cGVt"}


def test_the_stores_secret_has_the_keys_that_a_run_reads() -> None:
    credentials = workloads.new_credentials()

    assert sorted(credentials) == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert workloads.store_secret("runs", credentials)["metadata"] == {"name": "fedpipe-store", "namespace": "runs"}
