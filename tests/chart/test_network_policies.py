"""The chart's NetworkPolicies agree with the operator: on the labels of pods, and on addresses that nothing calls for a run."""

import ipaddress

import pytest
import yaml
from charts import CHART
from stand_in_runs import a_run

from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.manifests.metadata import metadata
from fedpipe_operator.store import addresses

REFUSED = yaml.safe_load((CHART / "files" / "refused-addresses.yaml").read_text())
TEMPLATE = (CHART / "templates" / "task-network-policies.yaml").read_text()


@pytest.mark.parametrize("network", REFUSED)
def test_an_address_that_the_chart_refuses_is_one_that_the_operator_refuses(network: str) -> None:
    first, last = (str(ipaddress.ip_network(network)[at]) for at in (0, -1))

    assert addresses.refused(first) is not None
    assert addresses.refused(last) is not None


@pytest.mark.parametrize("address", [*map(str, sorted(addresses._METADATA, key=str)), "169.254.169.254", "fe80::1", "127.0.0.1", "::1"])
def test_where_clouds_serve_credentials_no_pod_of_ours_connects_to(address: str) -> None:
    assert any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in REFUSED)


@pytest.mark.parametrize(
    ("kind", "component"), [(TaskKind.TRAIN, "trainer"), (TaskKind.EXPORT, "trainer"), (TaskKind.AGGREGATE, "aggregation")]
)
def test_the_policies_select_pods_by_the_labels_that_the_operator_gives_them(kind: TaskKind, component: str) -> None:
    labels = metadata(a_run(), Job(name="job", kind=kind, site="", round=1, attempt=0))["labels"]

    assert (labels["app.kubernetes.io/managed-by"], labels["app.kubernetes.io/component"]) == ("fedpipe-operator", component)
    assert "{app.kubernetes.io/managed-by: fedpipe-operator, app.kubernetes.io/component: {{ . }}}" in TEMPLATE
    assert 'range list "trainer" "aggregation"' in TEMPLATE
