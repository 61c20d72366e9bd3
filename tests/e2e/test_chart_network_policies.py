"""What the chart's NetworkPolicies let through, by the API's semantics. Needs Helm and no cluster.

In test_network_policies.py, a cluster enforces them.
"""

import pytest
import yaml
from charts import CHART, Plain, helm, of_kind, rendered, rendered_tests, set_values
from lookups import api_server_objects, looked_up
from network_policies import Connection, is_allowed

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

OURS: Plain = {"app.kubernetes.io/name": "fedpipe", "app.kubernetes.io/managed-by": "fedpipe-operator", "fedpipe.io/run": "toy"}
TRAINER = OURS | {"app.kubernetes.io/component": "trainer"}
AGGREGATION = OURS | {"app.kubernetes.io/component": "aggregation"}
API = ("10.96.0.1", "192.0.2.1", "fd00:96::1")
"""Those of `charts.API_SERVER`."""
LINK_LOCAL = ("169.254.169.254", "fe80::a9fe:a9fe", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "127.0.0.1")
STORES = ("10.96.0.20", "203.0.113.9", "2001:db8::9", "10.1.2.3")


def operator_labels(objects: list[Plain]) -> Plain:
    found: Plain = of_kind(objects, "Deployment")[0]["spec"]["template"]["metadata"]["labels"]
    return found


def reaches(objects: list[Plain], labels: Plain, address: str, port: int = 443, *, namespace: str = "fedpipe") -> bool:
    return is_allowed(of_kind(objects, "NetworkPolicy"), Connection(namespace, labels, address, port))


@pytest.mark.parametrize("labels", [TRAINER, AGGREGATION], ids=["trainer", "aggregation"])
@pytest.mark.parametrize("namespace", ["ward", "lab"])
def test_trainers_and_aggregations_reach_any_store_and_neither_the_api_server_nor_a_link_local_address(
    labels: Plain, namespace: str
) -> None:
    objects = rendered({"namespaces": ["ward", "lab"]})

    assert [one for one in STORES if not reaches(objects, labels, one, namespace=namespace, port=9000)] == []
    assert [one for one in (*API, *LINK_LOCAL) if reaches(objects, labels, one, namespace=namespace)] == []


def test_the_operator_reaches_the_api_server_too() -> None:
    objects = rendered()
    labels = operator_labels(objects)

    assert [one for one in (*API, *STORES) if not reaches(objects, labels, one)] == []
    assert [one for one in LINK_LOCAL if reaches(objects, labels, one)] == []


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("address", ["10.96.0.10", "169.254.20.10", "fd00:96::a"])
def test_every_pod_of_ours_reaches_a_name_server_wherever_it_is(protocol: str, address: str) -> None:
    objects = rendered()

    for labels in (operator_labels(objects), TRAINER, AGGREGATION):
        assert is_allowed(of_kind(objects, "NetworkPolicy"), Connection("fedpipe", labels, address, 53, protocol))


def test_nothing_connects_to_a_pod_of_ours() -> None:
    objects = rendered()
    policies = of_kind(objects, "NetworkPolicy")

    for labels in (operator_labels(objects), TRAINER, AGGREGATION):
        assert not is_allowed(policies, Connection("fedpipe", labels, "10.1.2.3", 8080, direction="Ingress"))


def test_with_egress_by_value_nothing_else_is_reached_and_the_api_server_by_the_operator_alone() -> None:
    store = [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 9000, "protocol": "TCP"}]}]
    objects = rendered({"networkPolicy.egress": store})
    operator = operator_labels(objects)

    for labels in (operator, TRAINER, AGGREGATION):
        assert reaches(objects, labels, "203.0.113.9", port=9000)
        assert not reaches(objects, labels, "203.0.113.9", port=9001)
        assert not reaches(objects, labels, "10.96.0.20", port=9000)
    assert [[one for one in API if reaches(objects, labels, one)] for labels in (operator, TRAINER, AGGREGATION)] == [list(API), [], []]


def test_other_pods_and_other_namespaces_are_left_alone() -> None:
    objects = rendered({"namespaces": ["ward"]})

    assert reaches(objects, {"app": "other"}, "10.96.0.1", namespace="ward")
    assert reaches(objects, TRAINER, "10.96.0.1", namespace="elsewhere")


@pytest.mark.parametrize("given", [{}, {"rbac.scope": "cluster"}], ids=["own", "cluster"])
def test_by_default_and_for_the_whole_cluster_the_policies_are_in_the_release_s_namespace(given: Plain) -> None:
    policies = of_kind(rendered(given, namespace="wards"), "NetworkPolicy")

    assert {policy["metadata"]["namespace"] for policy in policies} == {"wards"}
    assert len(policies) == 3


def test_the_policies_may_be_left_out() -> None:
    assert of_kind(rendered({"networkPolicy.enabled": False}), "NetworkPolicy") == []


def test_a_release_whose_api_server_is_not_known_is_refused_with_what_to_set() -> None:
    done = helm("template", "fedpipe", CHART)
    without = helm("template", "fedpipe", CHART, "--set", "networkPolicy.enabled=false")

    assert done.returncode != 0
    assert "networkPolicy.apiServerCIDRs is empty, and Helm is not connected to a cluster" in done.stderr
    assert without.returncode == 0


def refused_api_servers(pod: Plain) -> str:
    """Where the operator, or `helm test`, is told that the API server is, beside its Service."""
    (found,) = (one["value"] for one in pod["containers"][0]["env"] if one["name"] == "FEDPIPE_API_SERVERS")
    return str(found)


def operators_pod(objects: list[Plain]) -> Plain:
    pod: Plain = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
    return pod


def in_a_cluster(given: Plain, options: list[str]) -> list[Plain]:
    """What Helm renders where it finds the objects of these options."""
    done = helm("template", "fedpipe", CHART, "--namespace", "fedpipe", *options, *set_values(given))
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def test_the_addresses_by_value_are_refused_by_the_operator_and_by_helm_test_with_every_port() -> None:
    (tests_pod,) = of_kind(rendered_tests(), "Pod")

    assert refused_api_servers(operators_pod(rendered())) == "10.96.0.1/32,192.0.2.1/32,fd00:96::1/128"
    assert refused_api_servers(tests_pod["spec"]) == "10.96.0.1/32,192.0.2.1/32,fd00:96::1/128"
    assert refused_api_servers(operators_pod(rendered({"networkPolicy.enabled": False}))) == "10.96.0.1/32,192.0.2.1/32,fd00:96::1/128"


@pytest.mark.parametrize("given", [{}, {"networkPolicy.enabled": False}], ids=["with policies", "without"])
def test_the_endpoints_that_helm_finds_are_refused_with_their_port_since_others_may_listen_on_a_nodes_address(given: Plain) -> None:
    """In whatever order they are found: another one would be another pod of the operator."""
    with looked_up(api_server_objects(["10.96.0.1", "fd00:96::1"], ["192.0.2.11", "192.0.2.10", "fd00::a"], [6443])) as options:
        objects = in_a_cluster(given, options)

    assert refused_api_servers(operators_pod(objects)) == "10.96.0.1,192.0.2.10:6443,192.0.2.11:6443,[fd00::a]:6443,fd00:96::1"


def test_the_policies_are_about_every_port_of_the_endpoints_that_helm_finds() -> None:
    with looked_up(api_server_objects(["10.96.0.1"], ["192.0.2.10"], [6443])) as options:
        objects = in_a_cluster({}, options)

    assert [reaches(objects, TRAINER, one, port) for one in ("10.96.0.1", "192.0.2.10") for port in (443, 6443)] == [False] * 4
    assert reaches(objects, operator_labels(objects), "192.0.2.10", 6443)
    assert reaches(objects, TRAINER, "192.0.2.11")


def test_an_endpoint_without_a_port_is_refused_with_every_port() -> None:
    with looked_up(api_server_objects(["10.96.0.1"], ["192.0.2.10"], [])) as options:
        objects = in_a_cluster({}, options)

    assert refused_api_servers(operators_pod(objects)) == "10.96.0.1,192.0.2.10"


def test_the_addresses_by_value_are_not_asked_for() -> None:
    asked: list[str] = []
    with looked_up(api_server_objects(["10.96.0.1"], ["192.0.2.10"], [6443]), asked) as options:
        objects = in_a_cluster({"networkPolicy.apiServerCIDRs": ["198.51.100.0/24"]}, options)

    assert refused_api_servers(operators_pod(objects)) == "198.51.100.0/24"
    assert not [path for path in asked if path.endswith("/kubernetes")]


def test_who_may_create_nothing_of_the_cluster_and_no_policies_is_not_refused_for_what_he_may_not_look_up() -> None:
    asked: list[str] = []
    narrow = {"networkPolicy.enabled": False, "watchNodes": False, "rbac.userRoles": False, "rbac.guardPolicies": False}
    with looked_up(api_server_objects(["10.96.0.1"], ["192.0.2.10"], [6443]), asked) as options:
        objects = in_a_cluster(narrow | {"crds.enabled": False}, options)

    assert refused_api_servers(operators_pod(objects)) == ""
    assert not [path for path in asked if path.endswith("/kubernetes")]


def test_without_policies_and_without_a_cluster_to_ask_there_is_a_release() -> None:
    assert refused_api_servers(operators_pod(in_a_cluster({"networkPolicy.enabled": False}, []))) == ""
