"""Who may set a site's data policy: the verb `update` on `edgesites/policy`, for which the chart's admission policy asks."""

import json
from typing import Final

import pytest
from cluster_user import SITE, Kubectl, Plain, list_manifest
from smallest_documents import SITE_DOCUMENT

pytestmark = pytest.mark.e2e

ANOTHER: Final = SITE_DOCUMENT | {"metadata": {"name": "another"}}
CHANGES: Final = {
    "the policy": {"policy": {"minSites": 1}},
    "the data": {"data": {"train": "others.jsonl"}},
    "the cache": {"cache": {"persistentVolumeClaim": {"claimName": "another"}}},
    "the claims for models": {"modelClaims": ["models"]},
}


def role(name: str, rules: list[Plain]) -> list[Plain]:
    """A role of these rules, and its binding to the user of the same name."""
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": name}],
        },
    ]


@pytest.fixture(scope="module")
def guarded(empty_namespace: Kubectl) -> Kubectl:
    """A namespace with a site, a user who may update sites, and one who owns the data of this site as well."""
    sites = {"apiGroups": ["fedpipe.io"], "resources": ["edgesites"], "verbs": ["create", "get", "patch", "update"]}
    policies = {"apiGroups": ["fedpipe.io"], "resources": ["edgesites/policy"], "resourceNames": ["ward"], "verbs": ["update"]}
    empty_namespace.apply(SITE_DOCUMENT, *role("a-caretaker", [sites]), *role("an-owner", [sites, policies]))
    return empty_namespace


@pytest.mark.parametrize("change", CHANGES)
def test_who_may_update_sites_may_not_change_what_is_the_data_owner_s(guarded: Kubectl, change: str) -> None:
    caretaker = Kubectl(guarded.namespace, "a-caretaker")
    patch = json.dumps({"spec": CHANGES[change]})

    assert "edgesites/policy" in caretaker.rejection("patch", SITE, "ward", "--type=merge", "--dry-run=server", "-p", patch)


def test_who_may_update_sites_may_change_everything_else(guarded: Kubectl) -> None:
    patch = json.dumps({"spec": {"maxConcurrentJobs": 2}})

    Kubectl(guarded.namespace, "a-caretaker")("patch", SITE, "ward", "--type=merge", "--dry-run=server", "-p", patch)


@pytest.mark.parametrize("change", CHANGES)
def test_the_data_owner_of_a_site_changes_it(guarded: Kubectl, change: str) -> None:
    patch = json.dumps({"spec": CHANGES[change]})

    Kubectl(guarded.namespace, "an-owner")("patch", SITE, "ward", "--type=merge", "--dry-run=server", "-p", patch)


@pytest.mark.parametrize("user", ["a-caretaker", "an-owner"])
def test_a_site_is_created_only_with_the_right_to_its_policy(guarded: Kubectl, user: str) -> None:
    given = list_manifest(ANOTHER)

    assert "edgesites/policy" in Kubectl(guarded.namespace, user).rejection("create", "--dry-run=server", "-f", "-", given=given)
