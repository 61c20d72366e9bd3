"""`helm test` on a cluster: what it says of a release that works, and of one whose store does not."""

from collections.abc import Iterator
from typing import Final

import pytest
from charts import helm
from cluster_user import Plain
from fleet_namespace import BUCKET, SECRET, store_credentials, store_endpoint
from installed_operator import RELEASE, Operator

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]

STORE: Final = {"bucket": BUCKET, "prefix": "helm-test", "credentialsSecretRef": {"name": SECRET}}


@pytest.fixture
def secret(operator: Operator) -> Iterator[None]:
    """The store's key pair, in the release's namespace."""
    keys = store_credentials()
    pair = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    operator.kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": pair})
    yield
    operator.kubectl("delete", "secret", SECRET)
    operator.kubectl("delete", "pod", f"{RELEASE}-test", "--ignore-not-found")
    operator.upgrade()


def outcome_of(operator: Operator, store: Plain) -> tuple[int, list[str]]:
    """The exit status of `helm test`, and the lines of its checks, once the release has this store to test."""
    operator.upgrade({"test.store": {"endpoint": store_endpoint()} | store})
    done = helm("test", RELEASE, "-n", operator.kubectl.namespace, "--logs", "--timeout=3m")
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith(("ok  ", "FAILED", "left out"))]


@pytest.mark.usefixtures("secret")
def test_a_release_that_works_passes_every_check(operator: Operator) -> None:
    status, lines = outcome_of(operator, STORE)

    assert (status, [line.partition(":")[0] for line in lines]) == (
        0,
        [f"ok        {name}" for name in ("crds", "operator", "certificates", "plan", "store")],
    )
    assert lines[-1] == (
        "ok        store: objects are written and read, also by presigned URLs; uploads are bound to their size; they are deleted"
    )


@pytest.mark.usefixtures("secret")
def test_a_store_that_does_not_work_fails_with_what_to_do(operator: Operator) -> None:
    status, lines = outcome_of(operator, STORE | {"bucket": "no-such-bucket"})

    assert status != 0
    assert lines[-1].startswith("FAILED    store: BucketMissing: ")
    assert lines[-1].endswith("create the bucket or correct its name")


@pytest.mark.usefixtures("secret")
def test_a_missing_secret_fails_with_its_name(operator: Operator) -> None:
    status, lines = outcome_of(operator, STORE | {"credentialsSecretRef": {"name": "no-such-secret"}})

    assert status != 0
    assert "CredentialsMissing: the Secret no-such-secret of this namespace has not both AWS_ACCESS_KEY_ID" in lines[-1]
    assert [line for line in lines if line.startswith("ok  ")] != []
