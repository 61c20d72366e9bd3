"""The default store by a token of the operator's service account: a run without any key pair in its namespace completes."""

import pytest
from charts import helm
from cluster_user import condition
from fleet_namespace import BUCKET, SHORT, FleetNamespace
from identity_policies import minio_policy
from identity_store import identity_store_in
from installed_operator import RELEASE

from fedpipe_operator.store_identity import AUDIENCE

pytestmark = pytest.mark.e2e


def test_a_run_and_helm_test_use_the_default_store_with_the_operators_identity_and_a_run_elsewhere_does_not_begin(
    namespace: FleetNamespace,
) -> None:
    with identity_store_in(namespace, AUDIENCE, minio_policy(namespace.name)) as store:
        given = {"bucket": BUCKET, "endpoint": store.endpoint}
        values = {"defaultStore": given, "storeIdentity": {"roleArn": store.role}, "aggregationJobThreshold": "1"}
        with namespace.served_by_its_own_operator(values) as served:
            tested = helm("test", RELEASE, "-n", namespace.name, "--logs", "--timeout=3m")
            mine, other = (served.run(name, **SHORT) for name in ("mine", "elsewhere"))
            del mine["spec"]["store"]
            other["spec"]["store"] = {"bucket": "other-team", "endpoint": store.endpoint}
            served.kubectl.apply(*(served.site(name) for name in ("north", "south")), mine, other)
            served.wait_for_reason("CredentialsMissing", name="elsewhere", seconds=120)
            run = served.wait_until_complete("mine")
            aggregation = served.job("mine-aggregate-r1-a0")
            keys = store.keys()

    tried = f"ok        store: {store.role} gives a session to the operator's service account; objects are written and read, "
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert [line for line in tested.stdout.splitlines() if line.startswith(tried)], tested.stdout
    container = aggregation["spec"]["template"]["spec"]["containers"][0]
    assert condition(run, "Complete")["status"] == "True"
    assert keys, "the run's objects are in the bucket"
    assert [key for key in keys if not key.startswith(f"fedpipe/{namespace.name}/mine/{run['metadata']['uid']}/")] == []
    assert {one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"] if "valueFrom" in one} == {aggregation["metadata"]["name"]}
