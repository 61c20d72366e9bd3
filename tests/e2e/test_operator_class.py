"""Two releases on one cluster: each reconciles the runs and sites of its class, and two of one class are refused at installation."""

import subprocess
from typing import Final

import pytest
from charts import CHART, helm, set_values
from crds import default_status
from fleet_namespace import SECRET, SHORT, FleetNamespace, store_endpoint

from fedpipe_operator.api.meta import LABEL_OPERATOR_CLASS

pytestmark = pytest.mark.e2e

CLASS: Final = "canary"


def another_release(namespace: FleetNamespace, **values: str) -> subprocess.CompletedProcess[str]:
    """Have the API server check another release that would serve the same namespace; nothing is installed."""
    options = set_values({"rbac.scope": "namespaces", "namespaces": [namespace.name], "crds.enabled": False} | values)
    return helm("install", "another", CHART, "-n", namespace.name, "--dry-run=server", *options)


def test_a_release_reconciles_what_has_its_class_and_gives_it_the_default_store(namespace: FleetNamespace) -> None:
    store = {"bucket": "fedpipe", "endpoint": store_endpoint(), "credentialsSecretRef": {"name": SECRET}}
    with namespace.served_by_its_own_operator({"defaultStore": store}) as served:
        mine, nobodys = served.run("mine", **SHORT), served.run("nobodys", **SHORT)
        del mine["spec"]["store"]
        nobodys["metadata"]["labels"][LABEL_OPERATOR_CLASS] = "of-no-release"
        served.kubectl.apply(served.site("north"), mine, nobodys)
        run = served.wait_until_complete("mine")

        assert mine["metadata"]["labels"] == {LABEL_OPERATOR_CLASS: namespace.name}
        assert served.get_run("nobodys")["status"] == default_status("FederatedFineTune")
        assert "store" not in run["spec"]


def test_a_second_release_of_the_same_class_is_refused_for_a_namespace_that_is_served(namespace: FleetNamespace) -> None:
    same, different = another_release(namespace), another_release(namespace, operatorClass=CLASS)

    assert same.returncode != 0
    assert 'serves all namespaces with the same operatorClass "": serve other namespaces, or set another operatorClass' in same.stderr
    assert different.returncode == 0, different.stderr
