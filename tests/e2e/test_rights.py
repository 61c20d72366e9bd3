"""Who may do what: people by their roles, which are Kubernetes' own with the chart's additions."""

import json
from typing import Final

import pytest
from cluster_user import FFT, SITE, Kubectl, Plain, as_list
from smallest_documents import RUN_DOCUMENT, SITE_DOCUMENT

pytestmark = pytest.mark.e2e

STATUS: Final = json.dumps({"status": {"round": 7}})


def bound(role: str) -> Plain:
    """Somebody of this name gets the role in the namespace."""
    about = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"a-{role}"}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role},
        "roleRef": about,
        "subjects": [subject],
    }


@pytest.fixture(scope="module")
def home(quarters: Kubectl) -> Kubectl:
    """A namespace with a site and a run, where people have roles."""
    quarters.apply(SITE_DOCUMENT, RUN_DOCUMENT, *map(bound, ("view", "edit", "admin")))
    return quarters


def as_a(role: str, home: Kubectl) -> Kubectl:
    return Kubectl(home.namespace, f"a-{role}")


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_everybody_may_look(home: Kubectl, role: str) -> None:
    assert as_a(role, home).get(FFT, "run")["metadata"]["name"] == "run"
    assert as_a(role, home).get(SITE, "ward")["metadata"]["name"] == "ward"


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_nobody_may_write_a_status(home: Kubectl, role: str) -> None:
    said = as_a(role, home).refused("patch", FFT, "run", "--subresource=status", "--type=merge", "-p", STATUS)

    assert "forbidden" in said.lower()
    assert "status" in said


def test_a_viewer_may_change_nothing(home: Kubectl) -> None:
    viewer, change = as_a("view", home), json.dumps({"spec": {"suspend": False}})

    assert "orbidden" in viewer.refused("patch", FFT, "run", "--type=merge", "-p", change)
    assert "orbidden" in viewer.refused("delete", FFT, "run")


def test_an_editor_makes_runs_and_no_sites(home: Kubectl) -> None:
    editor = as_a("edit", home)
    another = {"metadata": {"name": "another"}}

    editor("create", "--dry-run=server", "-f", "-", given=as_list(RUN_DOCUMENT | another))
    assert "orbidden" in editor.refused("create", "--dry-run=server", "-f", "-", given=as_list(SITE_DOCUMENT | another))


def test_an_admin_makes_sites(home: Kubectl) -> None:
    as_a("admin", home)("create", "--dry-run=server", "-f", "-", given=as_list(SITE_DOCUMENT | {"metadata": {"name": "another"}}))
