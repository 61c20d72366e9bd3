"""`helm test` on a cluster: what it says of a release that works, and of one whose store does not."""

from collections.abc import Iterator
from typing import Final

import pytest
from charts import helm
from cluster_user import Plain
from fleet_namespace import BUCKET, SECRET, OpenNamespace, store_endpoint
from installed_operator import RELEASE, Operator

pytestmark = pytest.mark.e2e

STORE: Final = {"bucket": BUCKET, "prefix": "helm-test", "credentialsSecretRef": {"name": SECRET}}


@pytest.fixture(scope="module")
def release(open_namespace: OpenNamespace) -> Iterator[Operator]:
    """A release beside that of the other tests, in a namespace with the store's key pair."""
    with open_namespace("e2e-helm-test") as namespace, namespace.served_by_its_own_operator() as served:
        yield served.operator


def outcome_of(release: Operator, store: Plain) -> tuple[int, list[str]]:
    """The exit status of `helm test`, and the lines of its checks, once the release has this store to test."""
    release.upgrade({"test.store": {"endpoint": store_endpoint()} | store})
    done = helm("test", RELEASE, "-n", release.kubectl.namespace, "--logs", "--timeout=3m")
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith(("ok  ", "FAILED", "left out"))]


def test_a_release_that_works_passes_every_check(release: Operator) -> None:
    status, lines = outcome_of(release, STORE)

    assert (status, [line.partition(":")[0] for line in lines]) == (
        0,
        [f"ok        {name}" for name in ("crds", "operator", "certificates", "plan", "store")],
    )
    assert lines[-1] == (
        "ok        store: objects are written and read, also by presigned URLs; uploads are bound to their size; they are deleted"
    )


def test_a_store_that_does_not_work_fails_with_what_to_do(release: Operator) -> None:
    status, lines = outcome_of(release, STORE | {"bucket": "no-such-bucket"})

    assert status != 0
    assert lines[-1].startswith("FAILED    store: BucketMissing: ")
    assert lines[-1].endswith("create the bucket or correct its name")


def test_a_missing_secret_fails_with_its_name(release: Operator) -> None:
    status, lines = outcome_of(release, STORE | {"credentialsSecretRef": {"name": "no-such-secret"}})

    assert status != 0
    assert "CredentialsMissing: the Secret no-such-secret of this namespace has not both AWS_ACCESS_KEY_ID" in lines[-1]
    assert [line for line in lines if line.startswith("ok  ")] != []
