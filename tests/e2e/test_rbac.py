"""Permissions of users with Kubernetes' roles view, edit and admin, to which the chart adds rules."""

import json
from typing import Final

import pytest
from cluster_user import FFT, SITE, Kubectl, list_manifest, role_binding
from smallest_documents import RUN_DOCUMENT, SITE_DOCUMENT

pytestmark = pytest.mark.e2e

STATUS: Final = json.dumps({"status": {"round": 7}})


@pytest.fixture(scope="module")
def populated_namespace(empty_namespace: Kubectl) -> Kubectl:
    """A namespace with a site, a run and a user of each role."""
    empty_namespace.apply(SITE_DOCUMENT, RUN_DOCUMENT, *map(role_binding, ("view", "edit", "admin")))
    return empty_namespace


def as_user(role: str, populated_namespace: Kubectl) -> Kubectl:
    return Kubectl(populated_namespace.namespace, f"a-{role}")


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_every_role_may_read(populated_namespace: Kubectl, role: str) -> None:
    assert as_user(role, populated_namespace).get(FFT, "run")["metadata"]["name"] == "run"
    assert as_user(role, populated_namespace).get(SITE, "ward")["metadata"]["name"] == "ward"


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_no_role_may_write_a_status(populated_namespace: Kubectl, role: str) -> None:
    message = as_user(role, populated_namespace).rejection("patch", FFT, "run", "--subresource=status", "--type=merge", "-p", STATUS)

    assert "forbidden" in message.lower()
    assert "status" in message


def test_a_viewer_may_change_nothing(populated_namespace: Kubectl) -> None:
    viewer, change = as_user("view", populated_namespace), json.dumps({"spec": {"suspend": False}})

    assert "orbidden" in viewer.rejection("patch", FFT, "run", "--type=merge", "-p", change)
    assert "orbidden" in viewer.rejection("delete", FFT, "run")


def test_an_editor_creates_runs_and_no_sites(populated_namespace: Kubectl) -> None:
    editor = as_user("edit", populated_namespace)
    another = {"metadata": {"name": "another"}}

    editor("create", "--dry-run=server", "-f", "-", given=list_manifest(RUN_DOCUMENT | another))
    assert "orbidden" in editor.rejection("create", "--dry-run=server", "-f", "-", given=list_manifest(SITE_DOCUMENT | another))


def test_an_admin_creates_sites(populated_namespace: Kubectl) -> None:
    as_user("admin", populated_namespace)(
        "create", "--dry-run=server", "-f", "-", given=list_manifest(SITE_DOCUMENT | {"metadata": {"name": "another"}})
    )
