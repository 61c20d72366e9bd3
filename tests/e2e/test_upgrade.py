"""An installation of an earlier chart is upgraded: with other CRDs and other rights, and a run that was there before.

`charts/fedpipe-before-guards.tgz` is the chart as it was before it had network and admission policies (its commit: c10a168). It installs
the images under test: its own would take minutes to build.
"""

from pathlib import Path
from typing import Final

import pytest
from charts import helm, set_values
from cluster_user import SITE, Plain, condition
from crds import openapi_schema
from fleet_namespace import SHORT, FleetNamespace
from installed_operator import RELEASE, images
from job_history import duplicate_jobs

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.exclusive]

EARLIER: Final = Path(__file__).parent / "charts" / "fedpipe-before-guards.tgz"
ANY_USER: Final = {"runAsUser": 1000670000, "runAsGroup": 0}
"""As OpenShift gives a namespace: a user that no image knows."""
VALUES: Final[Plain] = {"podSecurityContext": ANY_USER, "jobPodSecurityContext": ANY_USER | {"fsGroup": None}}
UNKNOWN_BEFORE: Final = ("modelClaims", "policy")
"""Fields of a site that the earlier CRD does not have, and this run needs."""
PLANNING: Final = {"bits": [32], "batchSizes": [4]}
"""Of what that CRD has."""


def served_fields(namespace: FleetNamespace, name: str) -> set[str]:
    """The fields of the spec of a CRD as the API server has it."""
    crd = namespace.kubectl.get("customresourcedefinition", name)
    found: Plain = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return set(found)


def install_earlier_chart(namespace: FleetNamespace) -> None:
    """In place of the release under test; the CRDs, which stay, become those of the earlier chart."""
    operator = namespace.operator
    operator.uninstall()
    values = images() | {"rbac.scope": "namespaces", "namespaces": [namespace.name], "scratch": "1Gi"}
    done = helm("install", RELEASE, EARLIER, "-n", operator.kubectl.namespace, *set_values(values))
    assert done.returncode == 0, done.stderr


def test_a_run_that_was_created_under_an_earlier_chart_completes_after_the_upgrade(namespace: FleetNamespace) -> None:
    operator = namespace.operator
    site, run = namespace.site("north"), namespace.run(suspend=True, planning=PLANNING, **SHORT)
    added = {name: site["spec"].pop(name) for name in UNKNOWN_BEFORE}
    install_earlier_chart(namespace)
    try:
        assert served_fields(namespace, SITE).isdisjoint(UNKNOWN_BEFORE)
        namespace.kubectl.apply(site, run)
        before = namespace.get_run()["metadata"]

        operator.upgrade(VALUES)

        assert served_fields(namespace, SITE) == set(openapi_schema("EdgeSite")["properties"]["spec"]["properties"])
        assert namespace.get_run()["metadata"]["uid"] == before["uid"]
        namespace.wait_for_reason("SuspendedBySpec")

        namespace.kubectl.patch(SITE, "north", {"spec": added})
        namespace.patch_run(suspend=False)
        namespace.wait_for_trainer("toy-train-r1-north-a0")
        operator.upgrade(VALUES | {"podAnnotations": {"upgraded": "during the run"}})
        done = namespace.wait_until_complete()
    finally:
        operator.upgrade()

    assert condition(done, "Complete")["status"] == "True"
    assert done["metadata"]["uid"] == before["uid"]
    assert duplicate_jobs(namespace.kubectl) == []
    users = {pod["spec"]["securityContext"]["runAsUser"] for pod in namespace.kubectl.list("pods")}
    assert users == {ANY_USER["runAsUser"]}, "the images run as a user that they do not know"
