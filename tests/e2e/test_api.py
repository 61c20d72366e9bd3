"""The operator's API client against a real API server, for behaviour that a stand-in cannot check."""

import pytest
from cluster_user import Kubectl

from fedpipe_operator.cluster.api import SECRETS, in_cluster

pytestmark = pytest.mark.e2e


def test_a_delete_by_uid_spares_a_newer_object_of_the_same_name(empty_namespace: Kubectl) -> None:
    api, secret = in_cluster(), {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "namesake"}}
    empty_namespace.apply(secret)
    older = empty_namespace.get("secret", "namesake")["metadata"]["uid"]
    empty_namespace("delete", "secret", "namesake")
    empty_namespace.apply(secret)
    newer = empty_namespace.get("secret", "namesake")["metadata"]["uid"]

    api.delete(SECRETS, empty_namespace.namespace, "namesake", uid=older)
    assert empty_namespace.get("secret", "namesake")["metadata"]["uid"] == newer

    api.delete(SECRETS, empty_namespace.namespace, "namesake", uid=newer)
    assert api.get(SECRETS, empty_namespace.namespace, "namesake") is None
    api.delete(SECRETS, empty_namespace.namespace, "namesake", uid=newer)  # deleting what is already gone is no error
