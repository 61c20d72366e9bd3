"""The commands of docs/operations.md and docs/network-policies.md, as they are written, in the test's namespace."""

from pathlib import Path
from typing import Final

import pytest
import yaml
from cluster_user import FFT
from crds import ROOT
from fleet_namespace import SHORT, FleetNamespace
from readmes import blocks, follow
from worker_session import Lock

pytestmark = pytest.mark.e2e

BACKUP, UPGRADE, PAUSE, FORCED_DELETION = blocks((ROOT / "docs" / "operations.md").read_text())
(POLICIES,) = blocks((ROOT / "docs" / "network-policies.md").read_text())
HERE: Final = Path("/usr/bin")
"""Nothing of the test is in front of the cluster's own programs."""


def as_written(commands: str, namespace: FleetNamespace, folder: Path = ROOT) -> None:
    """Run the commands with the names of the test's objects."""
    follow(commands.replace("NAMESPACE", namespace.name).replace("RUN", "toy"), folder=folder, first_in_path=HERE)


def test_the_backup_has_every_site_and_run_of_the_namespace(namespace: FleetNamespace, tmp_path: Path) -> None:
    namespace.kubectl.apply(namespace.site("north"), namespace.run(suspend=True))

    as_written(BACKUP, namespace, tmp_path)

    items = yaml.safe_load((tmp_path / "fedpipe-objects.yaml").read_text())["items"]
    saved = {(one["kind"], one["metadata"]["name"]) for one in items if one["metadata"]["namespace"] == namespace.name}
    assert saved == {("EdgeSite", "north"), ("FederatedFineTune", "toy")}


def test_a_run_is_suspended_and_goes_on_until_it_is_complete(namespace: FleetNamespace) -> None:
    namespace.start("north", **SHORT)

    as_written(PAUSE, namespace)

    namespace.wait_until_complete()
    assert "SuspendedBySpec" in namespace.events("FederatedFineTune", "toy")


def test_the_upgrade_keeps_the_values_and_the_operator_ready(namespace: FleetNamespace, cluster_lock: Lock) -> None:
    cluster_lock.acquire_exclusive()
    before = namespace.operator.pods()[0]["spec"]["containers"][0]["image"]

    as_written(UPGRADE, namespace)

    namespace.wait("one operator is left", lambda: len(namespace.operator.pods()) == 1)
    assert namespace.operator.pods()[0]["spec"]["containers"][0]["image"] == before


def test_a_run_whose_results_cannot_be_deleted_is_deleted_without_them(namespace: FleetNamespace) -> None:
    run = namespace.run(deletionPolicy="Delete")
    run["spec"]["store"] |= {"credentialsSecretRef": {"name": "no-such-secret"}}
    namespace.kubectl.apply(namespace.site("north"), run)
    namespace.wait_for_reason("SecretMissing")
    namespace.kubectl("delete", FFT, "toy", "--wait=false")
    namespace.wait("the operator says why", lambda: "ResultsNotDeleted" in namespace.events("FederatedFineTune", "toy"))

    as_written(FORCED_DELETION, namespace)

    namespace.kubectl("wait", "--for=delete", f"{FFT}/toy", "--timeout=60s")


def test_the_policies_for_tasks_are_created_where_helm_does_not_know_the_namespace(namespace: FleetNamespace) -> None:
    as_written(POLICIES.replace("{wards,labs}", f"{{{namespace.name}}}"), namespace)

    assert len(namespace.kubectl.list("networkpolicies")) == 2
