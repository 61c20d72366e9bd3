"""The operator's own calls against the real API server, where a stand-in could not tell right from wrong."""

import pytest
from cluster_user import Kubectl

from fedpipe_operator.cluster.api import SECRETS, in_cluster

pytestmark = pytest.mark.e2e


def test_a_delete_takes_the_object_that_was_meant_and_no_other_of_its_name(quarters: Kubectl) -> None:
    api, secret = in_cluster(), {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "namesake"}}
    quarters.apply(secret)
    older = quarters.get("secret", "namesake")["metadata"]["uid"]
    quarters("delete", "secret", "namesake")
    quarters.apply(secret)
    newer = quarters.get("secret", "namesake")["metadata"]["uid"]

    api.delete(SECRETS, quarters.namespace, "namesake", uid=older)
    assert quarters.get("secret", "namesake")["metadata"]["uid"] == newer

    api.delete(SECRETS, quarters.namespace, "namesake", uid=newer)
    assert api.get(SECRETS, quarters.namespace, "namesake") is None
    api.delete(SECRETS, quarters.namespace, "namesake", uid=newer)  # what is gone is no error
