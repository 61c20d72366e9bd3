"""The environment of the operator, read once."""

import platform
import re

import pytest

from fedpipe_operator.api import StoreSpec
from fedpipe_operator.api.meta import SecretReference
from fedpipe_operator.pod_settings import CaBundle, PodDefaults, Proxy, ReportServer, Resources, SecretKey
from fedpipe_operator.settings import Replica, Settings, read, read_replica
from fedpipe_operator.store_identity import StoreIdentity
from fedpipe_operator.store_policy import StorePolicy, StoreRule

NEEDED = {
    "FEDPIPE_TRAINER_IMAGE": "registry/trainer:1",
    "FEDPIPE_OPERATOR_IMAGE": "registry/operator:1",
    "FEDPIPE_NAMESPACES": "wards",
}


def test_two_images_and_a_namespace_are_enough() -> None:
    assert read(NEEDED) == Settings("registry/trainer:1", "registry/operator:1", ("wards",))


def test_the_whole_cluster_is_served_only_if_that_is_written() -> None:
    assert read(NEEDED | {"FEDPIPE_NAMESPACES": "*"}).namespaces == ()
    with pytest.raises(ValueError, match="FEDPIPE_NAMESPACES is not set"):
        read(NEEDED | {"FEDPIPE_NAMESPACES": ""})


def test_every_setting_can_be_set() -> None:
    given = {
        "NAMESPACES": "wards, labs",
        "IMAGE_PULL_POLICY": "Always",
        "IMAGE_PULL_SECRETS": "registry",
        "WATCH_NODES": "false",
        "AGGREGATION_JOB_THRESHOLD": "1Gi",
        "SCRATCH": "5Gi",
        "JOB_TTL_SECONDS": "60",
        "PENDING_GRACE_SECONDS": "45",
        "MAX_CONCURRENT_RECONCILES": "2",
        "PRIORITY_CLASSES": "batch, low",
        "OPERATOR_CLASS": "canary",
        "DEFAULT_STORE": '{"bucket": "fedpipe", "prefix": "runs", "credentialsSecretRef": {"name": "store"}}',
        "STORE_POLICY": '{"wards": {"endpoints": ["AWS"], "buckets": ["fedpipe"], "prefixes": ["runs"]}, "*": {}}',
        "CA_BUNDLE": '{"configMapName": "fedpipe-ca", "key": "bundle.pem"}',
        "PROXY": '{"http": "http://proxy:1", "https": "http://proxy:2", "noProxy": ".svc"}',
        "HUGGING_FACE_ENDPOINT": "https://hub.example/api/hf",
        "HUGGING_FACE_TOKEN_SECRET_REF": '{"name": "hub", "key": "read"}',
        "EXPORT_JOB": '{"resources": {"limits": {"memory": "8Gi", "cpu": 2}}, "tolerations": [{"operator": "Exists"}]}',
        "AGGREGATION_JOB": '{"nodeSelector": {"a": "b"}, "affinity": {"nodeAffinity": {}}, "priorityClassName": "high"}',
        "JOB_POD_SECURITY_CONTEXT": '{"runAsNonRoot": true}',
        "HEALTH_PORT": "9000",
        "METRICS_PORT": "9001",
        "REPORTS": '{"enabled": true, "port": 9002, "audience": "", "tlsSecretName": "reports"}',
        "LOG_FORMAT": "plain",
        "TRACING_ENDPOINT": "http://collector:4318",
    }

    assert read(NEEDED | {f"FEDPIPE_{name}": value for name, value in given.items()}) == Settings(
        trainer_image="registry/trainer:1",
        operator_image="registry/operator:1",
        namespaces=("wards", "labs"),
        image_pull_policy="Always",
        image_pull_secrets=("registry",),
        watch_nodes=False,
        aggregation_job_threshold=2**30,
        scratch="5Gi",
        job_ttl_seconds=60,
        pending_grace_seconds=45,
        max_concurrent_reconciles=2,
        priority_classes=("batch", "low"),
        operator_class="canary",
        default_store=StoreSpec(bucket="fedpipe", prefix="runs", credentials_secret_ref=SecretReference(name="store")),
        store_policy=StorePolicy({"wards": StoreRule(("AWS",), ("fedpipe",), ("runs",)), "*": StoreRule()}),
        ca_bundle=CaBundle(config_map_name="fedpipe-ca", key="bundle.pem"),
        proxy=Proxy(http="http://proxy:1", https="http://proxy:2", no_proxy=".svc"),
        hugging_face_endpoint="https://hub.example/api/hf",
        hugging_face_token_secret_ref=SecretKey(name="hub", key="read"),
        export_job=PodDefaults(resources=Resources(limits={"memory": "8Gi", "cpu": 2}), tolerations=({"operator": "Exists"},)),
        aggregation_job=PodDefaults(node_selector={"a": "b"}, affinity={"nodeAffinity": {}}, priority_class_name="high"),
        job_pod_security_context={"runAsNonRoot": True},
        health_port=9000,
        metrics_port=9001,
        reports=ReportServer(enabled=True, port=9002, audience="", tls_secret_name="reports"),  # noqa: S106 -- a name
        log_format="plain",
        tracing_endpoint="http://collector:4318",
    )


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("NAMESPACES", "wards, lab-*", "write namespace names separated by commas"),
        ("NAMESPACES", "wards, *", r"write namespace names separated by commas, or \* for all of the cluster"),
        ("NAMESPACES", ",", "write namespace names separated by commas"),
        ("IMAGE_PULL_POLICY", "Sometimes", "write one of Always, IfNotPresent, Never"),
        ("WATCH_NODES", "yes", "write true or false"),
        ("TRACING_ENDPOINT", "collector:4318", "write a URL without a query"),
        ("TRACING_ENDPOINT", "http://user:password@collector:4318", "write a URL without a query"),
        ("TRACING_ENDPOINT", "http://collector:4318?token=1", "write a URL without a query"),
        ("AGGREGATION_JOB_THRESHOLD", "much", "write a number with an optional suffix"),
        ("MAX_CONCURRENT_RECONCILES", "0", "write a whole number above 0"),
        ("TRAINER_IMAGE", "two words", "write an image name"),
        ("PRIORITY_CLASSES", "low, system-node-critical", "system-… are for the cluster's own pods"),
        ("OPERATOR_CLASS", "a class", "write the value of a label"),
        ("DEFAULT_STORE", '{"prefix": "runs"}', "write a JSON object with the fields of spec.store: bucket: Field required"),
        ("DEFAULT_STORE", '{"bucket": "B", "x": 1}', "bucket: .*x: Extra inputs"),
        ("CA_BUNDLE", '{"configMapName": "Ours"}', "configMapName: "),
        ("CA_BUNDLE", '{"pem": "x"}', "pem: unknown field"),
        ("PROXY", "http://proxy:3128", "Invalid JSON"),
        ("HUGGING_FACE_ENDPOINT", "hub.example", "write a URL without a query"),
        ("HUGGING_FACE_TOKEN_SECRET_REF", '{"name": 1}', "name: must be a string"),
        ("EXPORT_JOB", '{"memory": "8Gi"}', "memory: unknown field"),
        ("AGGREGATION_JOB", '{"resources": {"memory": "8Gi"}}', "resources.memory: unknown field"),
        ("REPORTS", '{"enabled": true, "port": 80}', "port: "),
        ("REPORTS", '{"tls": "x"}', "tls: unknown field"),
        ("JOB_POD_SECURITY_CONTEXT", "65532", "write a JSON object"),
        ("STORE_IDENTITY", '{"roleArn": "fedpipe"}', "roleArn: invalid format 'fedpipe'"),
        ("STORE_IDENTITY", '{"sessionSeconds": 900}', "sessionSeconds: is 900, but must be at least 1800"),
        ("STORE_POLICY", "{", "write a JSON object"),
        ("STORE_POLICY", "[]", "write a JSON object: a rule for each namespace"),
        ("STORE_POLICY", '{"wards": {"hosts": []}}', "wards: write an object with the lists endpoints, buckets, prefixes"),
        ("STORE_POLICY", '{"*": {"buckets": "fedpipe"}}', r"\*.buckets: write a list of texts, none of them empty"),
    ],
)
def test_an_invalid_value_is_reported_with_its_variable_and_what_to_write(name: str, value: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"FEDPIPE_{name} is {re.escape(repr(value))}: .*{advice}"):
        read(NEEDED | {f"FEDPIPE_{name}": value})


IDENTITY = '{"roleArn": "arn:aws:iam::123456789012:role/fedpipe", "sessionSeconds": 7200, "models": ["hub/models"]}'


def test_the_operators_identity_is_for_the_default_store() -> None:
    given = {"FEDPIPE_DEFAULT_STORE": '{"bucket": "fedpipe"}', "FEDPIPE_STORE_IDENTITY": IDENTITY}

    assert read(NEEDED | given).store_identity == StoreIdentity(
        role_arn="arn:aws:iam::123456789012:role/fedpipe", session_seconds=7200, models=("hub/models",)
    )


@pytest.mark.parametrize(
    ("store", "identity", "advice"),
    [
        ("{}", IDENTITY, "there is no default store that it would be for: set defaultStore"),
        (
            '{"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}}',
            IDENTITY,
            "credentialsSecretRef as well: remove one of the two",
        ),
        ('{"bucket": "hub"}', IDENTITY.replace("hub/models", "hub"), "hub has objects of runs (hub/fedpipe), which every run could read"),
        ('{"bucket": "hub", "prefix": ""}', IDENTITY, "hub/models has objects of runs (hub), which every run could read"),
        (
            '{"bucket": "hub", "prefix": "a"}',
            IDENTITY.replace("hub/models", "hub/a/b"),
            "hub/a/b has objects of runs (hub/a), which every run could",
        ),
    ],
)
def test_an_identity_that_does_not_fit_the_default_store_is_refused(store: str, identity: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"FEDPIPE_STORE_IDENTITY is .*{re.escape(advice)}"):
        read(NEEDED | {"FEDPIPE_DEFAULT_STORE": store, "FEDPIPE_STORE_IDENTITY": identity})


def test_a_missing_image_is_reported_with_its_variable() -> None:
    with pytest.raises(ValueError, match="FEDPIPE_TRAINER_IMAGE is not set"):
        read({})


def test_a_replica_is_its_pod_and_outside_of_a_pod_its_machine() -> None:
    environ = {"FEDPIPE_POD_NAME": "fedpipe-1", "FEDPIPE_POD_NAMESPACE": "platform", "FEDPIPE_LEASE_NAME": "ours"}
    environ["FEDPIPE_MEMORY_BYTES"] = "1073741824"

    assert read_replica(environ) == Replica(pod="fedpipe-1", lease="ours", namespace="platform", memory_bytes=2**30)
    assert read_replica({}) == Replica(pod=platform.node(), lease="fedpipe", namespace="default", memory_bytes=2 * 2**30)
