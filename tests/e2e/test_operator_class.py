"""Two releases on one cluster: each reconciles the runs and sites of its class, and two of one class are refused at installation."""

import subprocess
from typing import Final

import pytest
from charts import CHART, Plain, helm, set_values
from crds import default_status
from fleet_namespace import SECRET, SHORT, FleetNamespace, store_endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]

CLASS: Final = "canary"
LABEL: Final = "fedpipe.io/operator-class"


def of_the_class(manifest: Plain) -> Plain:
    manifest["metadata"]["labels"] |= {LABEL: CLASS}
    return manifest


def another_release(namespace: FleetNamespace, **values: str) -> subprocess.CompletedProcess[str]:
    """Have the API server check another release that would serve the same namespace; nothing is installed."""
    options = set_values({"rbac.scope": "namespaces", "namespaces": [namespace.name], "crds.enabled": False} | values)
    return helm("install", "another", CHART, "-n", namespace.name, "--dry-run=server", *options)


def test_a_release_reconciles_what_has_its_class_and_gives_it_the_default_store(namespace: FleetNamespace) -> None:
    store = {"bucket": "fedpipe", "endpoint": store_endpoint(), "credentialsSecretRef": {"name": SECRET}}
    mine, other = (namespace.run(name, **SHORT) for name in ("mine", "other"))
    del mine["spec"]["store"]
    namespace.operator.upgrade({"operatorClass": CLASS, "defaultStore": store})
    try:
        namespace.kubectl.apply(of_the_class(namespace.site("north")), of_the_class(mine), other)
        run = namespace.wait_until_complete("mine")
        assert namespace.get_run("other")["status"] == default_status("FederatedFineTune")
    finally:
        namespace.operator.upgrade()

    assert "store" not in run["spec"]


def test_a_second_release_of_the_same_class_is_refused_for_a_namespace_that_is_served(namespace: FleetNamespace) -> None:
    same, different = another_release(namespace), another_release(namespace, operatorClass=CLASS)

    assert same.returncode != 0
    assert 'serves all namespaces with the same operatorClass "": serve other namespaces, or set another operatorClass' in same.stderr
    assert different.returncode == 0, different.stderr
