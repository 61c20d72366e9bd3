"""What a platform's administrator expects of a chart: mirrors, labels, private CAs, proxies, monitors. Needs Helm and no cluster."""

import hashlib
import json
from typing import Any

import pytest
from certificates import AUTHORITY
from charts import API_SERVER, Plain, complaint, of_kind, rendered, rendered_tests

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

PEM = AUTHORITY
MONITORING = ("--api-versions", "monitoring.coreos.com/v1")
PROMETHEUS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
CA_FILES = dict.fromkeys(("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), "/etc/fedpipe/ca/ca.crt")


def operator_pod(given: Plain) -> Plain:
    found: Plain = of_kind(rendered(given), "Deployment")[0]["spec"]["template"]["spec"]
    return found


def pod_of_test(given: Plain) -> Plain:
    found: Plain = of_kind(rendered_tests(given), "Pod")[0]["spec"]
    return found


PODS: Any = pytest.mark.parametrize("pod", [operator_pod, pod_of_test], ids=["operator", "helm test"])


def variables(pod: Plain) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in pod["containers"][0]["env"]}


@PODS
@pytest.mark.parametrize(
    ("repository", "image"),
    [
        ("fedpipe-operator", "mirror:5000/team/fedpipe-operator:1"),
        ("team-of-others/fedpipe-operator", "mirror:5000/team/team-of-others/fedpipe-operator:1"),
        ("registry.example/a/fedpipe-operator", "mirror:5000/team/a/fedpipe-operator:1"),
        ("localhost/fedpipe-operator", "mirror:5000/team/fedpipe-operator:1"),
    ],
)
def test_a_mirror_replaces_the_registry_of_an_image(pod: Any, repository: str, image: str) -> None:
    given = {"global.imageRegistry": "mirror:5000/team", "operatorImage": {"repository": repository, "tag": "1"}}

    assert pod(given)["containers"][0]["image"] == image


def test_jobs_have_the_images_of_the_mirror() -> None:
    given = variables(operator_pod({"global.imageRegistry": "mirror:5000"}))

    assert given["FEDPIPE_TRAINER_IMAGE"].startswith("mirror:5000/fedpipe-trainer:")
    assert given["FEDPIPE_OPERATOR_IMAGE"].startswith("mirror:5000/fedpipe-operator:")


@PODS
def test_pull_secrets_of_all_charts_are_used_beside_this_ones(pod: Any) -> None:
    given = {"imagePullSecrets": [{"name": "ours"}], "global.imagePullSecrets": ["all", {"name": "ours"}]}

    assert pod(given)["imagePullSecrets"] == [{"name": "ours"}, {"name": "all"}]
    assert variables(operator_pod(given))["FEDPIPE_IMAGE_PULL_SECRETS"] == "ours,all"


def test_common_labels_are_on_every_object_and_in_no_selector() -> None:
    given = {"commonLabels": {"team": "platform"}, "caBundle.pem": PEM, "storePolicy": {"*": {"buckets": ["fedpipe"]}}}
    objects = rendered(given) + rendered_tests(given)

    assert [one["kind"] for one in objects if one["metadata"]["labels"].get("team") != "platform"] == []
    assert "team" not in of_kind(objects, "Deployment")[0]["spec"]["selector"]["matchLabels"]


@PODS
def test_security_contexts_may_be_left_to_the_cluster(pod: Any) -> None:
    arbitrary = pod({"podSecurityContext": {"runAsUser": None, "runAsGroup": None}})
    without = pod({"podSecurityContext": None, "containerSecurityContext": None})

    assert arbitrary["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert "securityContext" not in without
    assert "securityContext" not in without["containers"][0]


@PODS
def test_the_operator_and_the_test_trust_the_certificates_and_use_the_proxy(pod: Any) -> None:
    given = {"caBundle": {"configMapName": "hospital-ca", "key": "x.pem"}, "proxy": {"https": "http://proxy:1", "noProxy": ".svc"}}
    spec = pod(given)
    ours = {name: value for name, value in variables(spec).items() if not name.startswith("FEDPIPE_")}

    assert ours == CA_FILES | {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "$(KUBERNETES_SERVICE_HOST),.svc"}
    assert {"name": "ca", "configMap": {"name": "hospital-ca", "items": [{"key": "x.pem", "path": "ca.crt"}]}} in spec["volumes"]
    assert {"name": "ca", "mountPath": "/etc/fedpipe/ca", "readOnly": True} in spec["containers"][0]["volumeMounts"]


def test_a_variable_of_extra_env_replaces_the_charts() -> None:
    given = {"proxy.https": "http://proxy:1", "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://mine:1"}]}
    environment = operator_pod(given)["containers"][0]["env"]

    assert [one["value"] for one in environment if one["name"] == "HTTPS_PROXY"] == ["http://mine:1"]


def test_without_certificates_and_proxy_no_pod_has_anything_of_them() -> None:
    for pod in (operator_pod({}), pod_of_test({})):
        assert [one["name"] for one in pod["volumes"]] == ["tmp"]
        assert [name for name in variables(pod) if not name.startswith("FEDPIPE_")] == []


def test_certificates_in_the_values_are_in_the_release_s_and_every_served_namespace() -> None:
    objects = rendered({"caBundle.pem": PEM, "namespaces": ["ward", "lab"]})
    (name,) = {one["metadata"]["name"] for one in of_kind(objects, "ConfigMap")}
    deployment = of_kind(objects, "Deployment")[0]["spec"]["template"]

    assert {one["metadata"]["namespace"]: one["data"] for one in of_kind(objects, "ConfigMap")} == {
        key: {"ca.crt": PEM} for key in ("fedpipe", "ward", "lab")
    }
    assert f'"configMapName":"{name}"' in variables(deployment["spec"])["FEDPIPE_CA_BUNDLE"]
    assert deployment["spec"]["volumes"][-1]["configMap"]["name"] == name
    assert deployment["metadata"]["annotations"]["fedpipe.io/ca-bundle"] == hashlib.sha256(PEM.encode()).hexdigest()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"caBundle.pem": "no PEM"}, "caBundle.pem is no certificate in PEM format: it must have at least one block"),
        ({"caBundle.pem": "-----BEGIN CERTIFICATE-----\n"}, "caBundle.pem is no certificate in PEM format"),
        ({"caBundle.pem": PEM + "-----BEGIN EC PRIVATE KEY-----"}, "caBundle.pem contains a private key: remove it"),
        ({"caBundle.pem": PEM, "rbac.scope": "cluster"}, "set caBundle.configMapName to its name"),
        ({"caBundle": {"pem": PEM, "configMapName": "theirs"}}, "both set: remove caBundle.pem to use the ConfigMap theirs"),
        (
            {"metrics.serviceMonitor.enabled": True},
            "metrics.serviceMonitor.enabled is true, and the cluster has no monitoring.coreos.com/v1",
        ),
        ({"metrics.podMonitor.enabled": True}, "metrics.podMonitor.enabled is true, and the cluster has no monitoring.coreos.com/v1"),
    ],
    ids=str,
)
def test_what_cannot_work_is_a_sentence_at_install(given: Plain, sentence: str) -> None:
    said = complaint(given)

    assert sentence in said
    assert PEM.splitlines()[1] not in said


def test_a_monitor_that_no_connection_is_allowed_to_is_a_sentence_at_install() -> None:
    said = complaint({"metrics.podMonitor.enabled": True}, *MONITORING)

    assert "metrics.podMonitor.enabled is true, and networkPolicy.metricsFrom names no pod that may connect to the metrics" in said
    assert of_kind(rendered({"metrics.podMonitor.enabled": True, "networkPolicy.enabled": False}, *MONITORING), "PodMonitor")


@pytest.mark.parametrize(
    ("kind", "value", "endpoints"),
    [("ServiceMonitor", "serviceMonitor", "endpoints"), ("PodMonitor", "podMonitor", "podMetricsEndpoints")],
)
def test_a_monitor_scrapes_the_metrics_as_the_values_say(kind: str, value: str, endpoints: str) -> None:
    relabelings, metric_relabelings = [{"action": "labeldrop", "regex": "pod"}], [{"action": "keep", "sourceLabels": ["run"]}]
    given = {
        "enabled": True,
        "interval": "1m",
        "scrapeTimeout": "20s",
        "labels": {"release": "prometheus"},
        "annotations": {"a": "b"},
        "relabelings": relabelings,
        "metricRelabelings": metric_relabelings,
    }
    objects = rendered({f"metrics.{value}": given, "networkPolicy.metricsFrom": PROMETHEUS}, *MONITORING)
    (monitor,) = of_kind(objects, kind)
    (service,) = of_kind(objects, "Service")
    pod = of_kind(objects, "Deployment")[0]["spec"]["template"]

    assert monitor["spec"][endpoints] == [
        {
            "port": "metrics",
            "path": "/metrics",
            "interval": "1m",
            "scrapeTimeout": "20s",
            "honorLabels": True,
            "relabelings": [{"targetLabel": "release", "replacement": "fedpipe/fedpipe"}, *relabelings],
            "metricRelabelings": metric_relabelings,
        }
    ]
    assert (monitor["metadata"]["labels"]["release"], monitor["metadata"]["annotations"]) == ("prometheus", {"a": "b"})
    for labels in (service["metadata"]["labels"], pod["metadata"]["labels"]):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_service_leads_to_the_metrics_and_prometheus_may_connect_to_them_alone() -> None:
    objects = rendered({"networkPolicy.metricsFrom": PROMETHEUS, "metricsPort": 9100})
    (service,) = of_kind(objects, "Service")
    policy = next(one for one in of_kind(objects, "NetworkPolicy") if one["metadata"]["name"] == "fedpipe")

    assert service["spec"]["ports"] == [{"name": "metrics", "port": 9100, "targetPort": "metrics"}]
    assert policy["spec"]["ingress"] == [{"from": PROMETHEUS, "ports": [{"port": "metrics"}]}]
    assert of_kind(rendered({"metrics.service.enabled": False}), "Service") == []


def test_by_default_nobody_may_connect_to_the_operator_and_no_monitor_is_created() -> None:
    objects = rendered({}, *MONITORING)

    assert all("ingress" not in one["spec"] for one in of_kind(objects, "NetworkPolicy"))
    assert {one["kind"] for one in objects} & {"ServiceMonitor", "PodMonitor"} == set()


def test_helm_test_may_read_one_deployment_and_nothing_else() -> None:
    objects = rendered_tests()
    (role,) = of_kind(objects, "Role")

    assert of_kind(objects, "ClusterRole") == of_kind(objects, "ClusterRoleBinding") == []
    assert role["rules"] == [{"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["fedpipe"], "verbs": ["get"]}]
    assert of_kind(objects, "Pod")[0]["spec"]["serviceAccountName"] == of_kind(objects, "RoleBinding")[0]["subjects"][0]["name"]


def test_no_selector_of_the_operator_matches_the_pod_of_helm_test() -> None:
    selector = of_kind(rendered(), "Deployment")[0]["spec"]["selector"]["matchLabels"]

    assert not selector.items() <= of_kind(rendered_tests(), "Pod")[0]["metadata"]["labels"].items()


def test_helm_test_has_the_store_of_the_values_and_its_secret() -> None:
    store = {"bucket": "fedpipe", "endpoint": "http://minio.minio:9000", "credentialsSecretRef": {"name": "store"}}
    environment = pod_of_test({"test.store": store})["containers"][0]["env"]
    by_reference = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in environment if "valueFrom" in one}

    assert {one["name"]: one["value"] for one in environment if "value" in one} == {
        "FEDPIPE_TEST_STORE": '{"bucket":"fedpipe","endpoint":"http://minio.minio:9000","prefix":"fedpipe-test","region":"us-east-1"}',
        "FEDPIPE_TEST_SECRET": "store",
        "FEDPIPE_API_SERVERS": ",".join(sorted(API_SERVER["networkPolicy.apiServerCIDRs"])),
    }
    assert by_reference == {
        name: {"name": "store", "key": name, "optional": True}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    }


ROLE = "arn:minio:iam:::role/oxnUw3DAuQF1uggjXGxI2AmW8IA"
IDENTITY = {
    "defaultStore": {"bucket": "fedpipe", "endpoint": "http://minio:9000"},
    "storeIdentity": {"roleArn": ROLE, "audience": "fedpipe"},
}


TOKEN = {"serviceAccountToken": {"path": "token", "audience": "fedpipe", "expirationSeconds": 3600}}


@PODS
def test_the_operator_and_helm_test_have_a_token_for_the_identity_of_the_operators_account(pod: Any) -> None:
    found = pod(IDENTITY)
    mount = {"name": "store-token", "mountPath": "/var/run/secrets/fedpipe.io/store", "readOnly": True}

    assert found["serviceAccountName"] == "fedpipe"
    assert {"name": "store-token", "projected": {"sources": [TOKEN]}} in found["volumes"]
    assert mount in found["containers"][0]["volumeMounts"]


@PODS
@pytest.mark.parametrize("given", [{}, {"defaultStore": {"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}}}], ids=str)
def test_without_an_identity_no_pod_has_a_token_for_it(pod: Any, given: Plain) -> None:
    assert "store-token" not in {one["name"] for one in pod(given)["volumes"]}


def test_helm_test_opens_the_default_store_by_the_operators_identity_in_a_folder_of_runs_that_is_no_namespaces() -> None:
    found = variables(pod_of_test(IDENTITY | {"namespaces": ["wards"]}))

    assert json.loads(found["FEDPIPE_TEST_STORE"]) == IDENTITY["defaultStore"] | {"prefix": "fedpipe/_helm-test"}
    assert json.loads(found["FEDPIPE_TEST_IDENTITY"])["roleArn"] == ROLE
    assert "FEDPIPE_TEST_SECRET" not in found


@pytest.mark.parametrize(("prefix", "folder"), [("", "_helm-test"), ("team/runs", "team/runs/_helm-test")])
def test_helm_test_writes_below_the_prefix_of_the_default_store(prefix: str, folder: str) -> None:
    store = IDENTITY["defaultStore"] | {"prefix": prefix}

    assert json.loads(variables(pod_of_test(IDENTITY | {"defaultStore": store}))["FEDPIPE_TEST_STORE"])["prefix"] == folder


def test_only_for_the_identity_does_helm_test_run_as_the_operator_which_may_then_read_its_deployment() -> None:
    other = {"test.store": {"bucket": "other", "credentialsSecretRef": {"name": "store"}}}
    with_identity, with_other = rendered_tests(IDENTITY), rendered_tests(IDENTITY | other)

    for objects, account in ((with_identity, "fedpipe"), (with_other, "fedpipe-test")):
        pod, binding = of_kind(objects, "Pod")[0]["spec"], of_kind(objects, "RoleBinding")[0]
        assert (pod["serviceAccountName"], binding["subjects"][0]["name"]) == (account, account)
        assert binding["metadata"]["annotations"]["helm.sh/hook"] == "test", "it goes with the test"
    assert of_kind(with_identity, "ServiceAccount") == []
    (pod,) = of_kind(with_other, "Pod")
    assert "store-token" not in {one["name"] for one in pod["spec"]["volumes"]}
    assert "FEDPIPE_TEST_IDENTITY" not in variables(pod["spec"])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"storeIdentity.roleArn": ROLE}, "storeIdentity.roleArn is set, and defaultStore is not: set the store that it is for"),
        (
            {"defaultStore": {"bucket": "fedpipe"}},
            "defaultStore has no credentialsSecretRef: set it to a Secret in each namespace with runs",
        ),
        (
            {"storeIdentity.roleArn": ROLE, "defaultStore": {"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}}},
            "storeIdentity.roleArn and defaultStore.credentialsSecretRef are both set: remove one of the two",
        ),
    ],
)
def test_an_identity_that_does_not_fit_the_default_store_is_a_sentence_at_install(given: Plain, sentence: str) -> None:
    assert sentence in complaint(given)


def test_the_pod_of_helm_test_is_in_the_circumstances_of_the_operators() -> None:
    given: Plain = {
        "proxy.https": "http://proxy:1",
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://mine:1"}, {"name": "AWS_ACCESS_KEY_ID", "value": "x"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"]},
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "nodeSelector": {"kind": "control"},
        "tolerations": [{"operator": "Exists"}],
        "test.store": {"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}},
    }
    operator, test = operator_pod(given), pod_of_test(given)
    same = ("securityContext", "dnsPolicy", "dnsConfig", "affinity", "priorityClassName", "nodeSelector", "tolerations")

    assert {name: test[name] for name in same} == {name: operator[name] for name in same}
    assert (variables(test)["HTTPS_PROXY"], variables(operator)["HTTPS_PROXY"]) == ("http://mine:1", "http://mine:1")
    assert (test["volumes"][-1], test["containers"][0]["volumeMounts"][-1]) == (given["extraVolumes"][0], given["extraVolumeMounts"][0])
    names = [one["name"] for one in test["containers"][0]["env"]]
    assert len(set(names)) == len(names), "the key pair of test.store counts"


def test_the_pod_of_helm_test_has_the_labels_and_annotations_of_the_pod_but_remains_a_test() -> None:
    given = {"podLabels": {"team": "platform"}, "podAnnotations": {"a": "b", "helm.sh/hook": "pre-install"}}
    found = of_kind(rendered_tests(given), "Pod")[0]["metadata"]

    assert (found["labels"]["team"], found["labels"]["app.kubernetes.io/component"]) == ("platform", "test")
    assert (found["annotations"]["a"], found["annotations"]["helm.sh/hook"]) == ("b", "test")


@pytest.mark.parametrize(
    ("served", "tested"),
    [({}, True), ({"namespaces": ["fedpipe", "wards"]}, True), ({"namespaces": ["wards"]}, False), ({"rbac.scope": "cluster"}, False)],
    ids=str,
)
def test_helm_test_has_the_default_store_where_its_secret_must_exist(served: Plain, tested: bool) -> None:
    store = {"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}}
    test = pod_of_test({"defaultStore": store} | served)

    assert variables(test)["FEDPIPE_TEST_STORE"] == ('{"bucket":"fedpipe","prefix":"fedpipe/_helm-test"}' if tested else "{}")
    assert ("FEDPIPE_TEST_SECRET" in variables(test)) is tested
