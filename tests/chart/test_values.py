"""The chart's values, their schema, the templates and the operator's settings agree."""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml
from charts import CHART, ROOT, Plain, coalesced, values
from jsonschema import Draft7Validator

from fedpipe_operator import settings as environment
from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.parse import parse_object
from fedpipe_operator.api.quantities import QUANTITY_PATTERN
from fedpipe_operator.cluster.identity import TOKEN_FILE
from fedpipe_operator.settings import Settings
from fedpipe_operator.store_identity import ENDPOINT_PATTERN, MODELS_PATTERN, ROLE_PATTERN
from fedpipe_operator.store_policy import StoreRule, parse_store_policy

SCHEMA: Plain = json.loads((CHART / "values.schema.json").read_text())
HELPERS = (CHART / "templates" / "_helpers.tpl").read_text()
PARTS = "".join(file.read_text() for file in sorted((CHART / "templates").glob("_*.tpl")))
TEMPLATES = sorted((CHART / "templates").rglob("*.yaml"))

_OF_SCOPE = {
    "IMAGE_PULL_SECRETS": 'include "fedpipe.pullSecrets"',
    "NAMESPACES": 'include "fedpipe.namespaces"',
    "CA_BUNDLE": 'include "fedpipe.caBundle"',
}
"""Variables that a template derives from more than their value."""
_KUBERNETES = (
    "nodeSelector",
    "affinity",
    "resources",
    "dnsConfig",
    "podSecurityContext",
    "containerSecurityContext",
    "jobPodSecurityContext",
    "livenessProbe",
    "readinessProbe",
)
_FREE = (
    *_KUBERNETES,
    "annotations",
    "labels",
    "for",
    "podAnnotations",
    "podLabels",
    "deploymentAnnotations",
    "commonLabels",
    "storePolicy",
)
"""Maps whose keys the user or Kubernetes chooses."""
_PASSED_WHOLE = ("storeIdentity.",)
"""What a template passes on as a whole."""


def test_every_setting_is_a_value_of_the_same_name() -> None:
    assert {_camel(field.name) for field in fields(Settings)} <= values().keys()


def test_every_setting_is_passed_to_the_operator_from_its_value_and_no_other_variable_is() -> None:
    variables = dict(re.findall(r"- name: FEDPIPE_(\w+)\n  value: \{\{(.*)\}\}", HELPERS))

    assert variables.keys() == {field.name.upper() for field in fields(Settings)} | {"LOG_FORMAT"}
    for name, value in variables.items():
        assert _OF_SCOPE[name] in value if name in _OF_SCOPE else re.search(rf"\.Values\.{_camel(name.lower())}\b", value), name


def test_a_default_is_the_same_in_the_chart_and_in_the_operator() -> None:
    needed = ("trainer_image", "operator_image", "namespaces")
    defaults = {field.name: values()[_camel(field.name)] for field in fields(Settings) if field.name not in needed}
    del defaults["ca_bundle"]["pem"]  # of which the chart makes a ConfigMap
    environ = {f"FEDPIPE_{name.upper()}": _text(value) for name, value in defaults.items()}

    read = environment.read(environ | {f"FEDPIPE_{name.upper()}": "ours" for name in needed})

    assert read == Settings(trainer_image="ours", operator_image="ours", namespaces=("ours",))


def test_the_schema_describes_every_value_and_no_other() -> None:
    assert set(_described(SCHEMA)) == set(_given(values()))


def test_the_defaults_are_valid_by_the_schema() -> None:
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(values())] == []


def test_the_chart_and_the_api_have_the_same_pattern_of_a_quantity() -> None:
    assert SCHEMA["definitions"]["quantity"]["pattern"] == QUANTITY_PATTERN


def test_the_chart_and_the_operator_have_the_same_patterns_of_an_identity_and_the_same_token() -> None:
    fields = SCHEMA["properties"]["storeIdentity"]["properties"]
    found = (fields["roleArn"]["pattern"], fields["stsEndpoint"]["pattern"], fields["models"]["items"]["pattern"])

    assert found == (f"^$|{ROLE_PATTERN}", ENDPOINT_PATTERN, MODELS_PATTERN)
    assert f"mountPath: {TOKEN_FILE.parent}\n" in PARTS
    assert f"path: {TOKEN_FILE.name}, audience" in PARTS


def test_the_alerts_that_a_value_names_are_those_of_the_chart() -> None:
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    (pattern,) = SCHEMA["properties"]["prometheusRule"]["properties"]["for"]["patternProperties"]
    names = "|".join(rule["alert"] for group in groups for rule in group["rules"])

    assert pattern == rf"^(\*|{names})$"


WHOLE_AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["one"]}]}]
        },
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}],
    },
    "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone", "namespaceSelector": {}}]},
    "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}}]},
}


@pytest.mark.parametrize(
    "invalid",
    [
        {"maxConcurrentReconcile": 8},
        {"maxConcurrentReconciles": 0},
        {"maxConcurrentReconciles": "8"},
        {"scratch": "20 GB"},
        {"aggregationJobThreshold": 536870912},
        {"logFormat": "xml"},
        {"imagePullPolicy": "Sometimes"},
        {"imagePullSecrets": ["registry"]},
        {"operatorImage": {"repository": "fedpipe operator"}},
        {"operatorImage": {"repository": "fedpipe@sha256:0"}},
        {"trainerImage": {"repository": "fedpipe-trainer", "digest": "sha256:short"}},
        {"replicas": -1},
        {"replicas": 4},
        {"namespaces": ["one"], "rbac": {"scope": "cluster"}},
        {"namespaces": ["One"]},
        {"namespaces": ["*"]},
        {"rbac": {"scope": "everywhere"}},
        {"crds": {"enabled": "yes", "keep": True}},
        {"serviceAccount": {"create": False, "name": ""}},
        {"extraEnv": [{"name": "FEDPIPE_MAX_CONCURRENT_RECONCILES", "value": "9"}]},
        {"resources": {"memory": "2Gi"}},
        {"podAnnotations": {"a": 1}},
        {"healthPort": 80},
        {"networkPolicy": {"apiServerCIDRs": ["10.96.0.1"]}},
        {"networkPolicy": {"apiServerCIDRs": ["kubernetes.default/32"]}},
        {"networkPolicy": {"dns": []}},
        {"networkPolicy": {"egress": [{}]}},
        {"networkPolicy": {"egress": [{"ports": []}]}},
        {"networkPolicy": {"egress": ["10.0.0.0/8"]}},
        {"storePolicy": {"Wards": {}}},
        {"storePolicy": {"wards": {"hosts": ["minio"]}}},
        {"storePolicy": {"wards": {"endpoints": ["minio:9000"]}}},
        {"storePolicy": {"wards": {"endpoints": ["http://minio:9000@evil"]}}},
        {"storePolicy": {"*": {"buckets": "fedpipe"}}},
        {"storePolicy": {"*": {"prefixes": [""]}}},
        {"priorityClasses": ["system-cluster-critical"]},
        {"priorityClasses": "low"},
        {"operatorClass": "a class"},
        {"defaultStore": {"prefix": "runs"}},
        {"storeIdentity": {"roleArn": "fedpipe"}},
        {"storeIdentity": {"roleArn": "arn:aws:iam::123456789012:user/fedpipe"}},
        {"storeIdentity": {"sessionSeconds": 900}},
        {"storeIdentity": {"stsEndpoint": "minio:9000"}},
        {"storeIdentity": {"models": ["fedpipe/*"]}},
        {"storeIdentity": {"models": "fedpipe/models"}},
        {"storeIdentity": {"tokenFile": "/token"}},
        {"defaultStore": {"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}, "endpoint": "minio:9000"}},
        {"global": {"imageRegistry": 5000}},
        {"global": {"imagePullSecrets": "registry"}},
        {"caBundle": {"configMapName": "Ours"}},
        {"caBundle": "hospital-ca"},
        {"caBundle": {"pem": ["-----BEGIN CERTIFICATE-----"]}},
        {"proxy": "http://proxy:3128"},
        {"proxy": {"https": "proxy:3128"}},
        {"proxy": {"https": "http://user:secret@proxy:3128"}},
        {"proxy": {"noProxy": "a, b"}},
        {"huggingFaceEndpoint": "hub.example"},
        {"huggingFaceEndpoint": "https://user:secret@hub.example"},
        {"huggingFaceTokenSecretRef": "hub"},
        {"exportJob": {"memory": "8Gi"}},
        {"exportJob": {"resources": {"requests": {"memory": "8 GB"}}}},
        {"aggregationJob": {"tolerations": {"operator": "Exists"}}},
        {"aggregationJob": {"affinity": {"nodeAfinity": {}}}},
        {"jobPodSecurityContext": {"runAsUser": "65532"}},
        {"podSecurityContext": {"runAsRoot": False}},
        {"containerSecurityContext": {"readOnlyRootFilesystem": "yes"}},
        {"metrics": {"serviceMonitor": {"enabled": "true"}}},
        {"metrics": {"serviceMonitor": {"interval": "30"}}},
        {"metrics": {"podMonitor": {"relabelings": [{}, "x"]}}},
        {"networkPolicy": {"metricsFrom": [{}]}},
        {"networkPolicy": {"metricsFrom": [{"namespace": "monitoring"}]}},
        {"networkPolicy": {"reportsFrom": [{}]}},
        {"reports": {"enabled": "true"}},
        {"reports": {"port": 443}},
        {"reports": {"audience": "two words"}},
        {"reports": {"tlsSecretName": "Ours"}},
        {"reports": {"tls": "ours"}},
        {"extraVolumes": [{"name": "reports-tls", "emptyDir": {}}]},
        {"commonLabels": {"app.kubernetes.io/name": "ours"}},
        {"podLabels": {"team": 7}},
        {"podLabels": {"team": "two words"}},
        {"resources": {"limits": {"memory": "-1"}}},
        {"tolerations": [{"key": "gpu", "operater": "Exists"}]},
        {"topologySpreadConstraints": [{"maxSkew": 1}]},
        {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        {"extraVolumes": [{"name": "data", "emptyDir": {}, "hostPath": {"path": "/x"}}]},
        {"extraVolumeMounts": [{"name": "data", "path": "/data"}]},
        {"extraEnv": [{"name": "A", "value": 1}]},
        {"extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
        {"livenessProbe": {"periodSeconds": 0}},
        {"livenessProbe": {"httpGet": {"path": "/"}}},
        {"dnsPolicy": "Cluster"},
        {"dnsConfig": {"nameserver": "10.0.0.1"}},
        {"test": {"store": {"bucket": "Ours"}}},
        {"resources": {"claims": [{"name": "gpu"}]}},
        {"exportJob": {"resources": {"claims": []}}},
        {"readinessProbe": {"terminationGracePeriodSeconds": 10}},
        {"livenessProbe": {"successThreshold": 2}},
        {"nameOverride": "My_App"},
        {"fullnameOverride": "My App!"},
        {"fullnameOverride": "a" * 51},
        {"networkPolicy": {"apiServerCIDRs": ["999.1.1.1/99"]}},
        {"networkPolicy": {"apiServerCIDRs": ["10.0.0.0/33"]}},
        {"networkPolicy": {"apiServerCIDRs": ["10.0.0/8"]}},
        {"networkPolicy": {"apiServerCIDRs": ["10/0/0/0/8"]}},
        {"networkPolicy": {"apiServerCIDRs": ["0.0.0.0/0"]}},
        {"networkPolicy": {"apiServerCIDRs": [":/999"]}},
        {"networkPolicy": {"apiServerCIDRs": ["::/0"]}},
        {"networkPolicy": {"apiServerCIDRs": ["fd00:1/64"]}},
        {"networkPolicy": {"apiServerCIDRs": ["fd00::1::2/64"]}},
        {"operatorImage": {"repository": "fedpipe:1.0"}},
        {"operatorImage": {"repository": "registry.example:5000/fedpipe:1.0"}},
        {"commonLabels": {"bad key!": "x"}},
        {"commonLabels": {"fedpipe.io/operator-class": "x"}},
        {"podAnnotations": {"bad key!": "x"}},
        {"prometheusRule": {"labels": {"a": "two words"}}},
        {"dashboards": {"labels": {"a": "two words"}}},
        {"nodeSelector": {"a": "b c"}},
        {"exportJob": {"nodeSelector": {"a": "b c"}}},
        {"defaultStore": {"bucket": "a..b"}},
        {"defaultStore": {"bucket": "192.168.1.1"}},
        {"defaultStore": {"bucket": "fedpipe", "region": "us east"}},
        {"defaultStore": {"bucket": "fedpipe", "endpoint": "http://a b"}},
        {"defaultStore": {"bucket": "fedpipe", "endpoint": "https://user:pw@h"}},
        {"defaultStore": {"bucket": "fedpipe", "trainerEndpoint": "https://h:99999"}},
        {"storeIdentity": {"stsEndpoint": "http://a@b?c"}},
        {"storePolicy": {"*": {"endpoints": ["http://a:99999"]}}},
        {"storePolicy": {"*": {"buckets": ["a..b"]}}},
        {"test": {"store": {"bucket": "a..b"}}},
        {"test": {"store": {"endpoint": "http://h:0"}}},
        {"proxy": {"http": "http://x:abc"}},
        {"tracingEndpoint": "http://:4318"},
        {"huggingFaceEndpoint": "https://x:abc"},
        {"prometheusRule": {"for": {"RunBlocked": "1m"}}},
        {"prometheusRule": {"for": {"FedPipeRunBlock": "1m"}}},
        {"prometheusRule": {"for": {"*": "5s5m"}}},
        {"prometheusRule": {"for": {"*": ""}}},
        {"prometheusRule": {"for": {"FedPipeRunBlocked": 60}}},
        {"prometheusRule": {"for": {"*": "soon"}}},
        {"prometheusRule": {"reconcileStuckSeconds": "5m"}},
        {"prometheusRule": {"reconcileStuckSeconds": 0}},
        {"prometheusRule": {"reconcileStuckSeconds": 3600}},
        {"prometheusRule": {"runbook": "docs/alerts.md"}},
        {"dashboards": {"labels": {"grafana_dashboard": 1}}},
        {"dashboards": {"namespace": "Monitoring"}},
    ],
    ids=str,
)
def test_an_invalid_value_is_refused(invalid: Plain) -> None:
    assert not Draft7Validator(SCHEMA).is_valid(coalesced(values(), invalid))


@pytest.mark.parametrize(
    "valid",
    [
        {"namespaces": ["one", "two"]},
        {"replicas": 0},
        {"replicas": 2},
        {"tmpSizeLimit": 4294967296},
        {"tmpSizeLimit": "1Ei"},
        {"livenessProbe": {"terminationGracePeriodSeconds": 10, "successThreshold": 1}},
        {"readinessProbe": {"successThreshold": 2, "timeoutSeconds": None}},
        {"tolerations": [{"key": "a", "operator": "", "value": "b", "tolerationSeconds": None}]},
        {"extraVolumes": [{"name": "data"}]},
        {"podSecurityContext": {"supplementalGroups": None, "fsGroupChangePolicy": None, "seLinuxOptions": None}},
        {"affinity": {"podAffinity": None}},
        {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": None}]},
        {"prometheusRule": {"for": {"*": "1w", "FedPipeRunFailed": "0", "FedPipeStoreErrors": "1h30m"}}},
        {"nameOverride": "42", "fullnameOverride": "a-b"},
        {"operatorImage": {"repository": "registry.example:5000/team/fedpipe__operator.x"}},
        {"operatorImage": {"repository": "[fd00::1]:5000/fedpipe"}, "trainerImage": {"repository": "localhost/fedpipe-trainer"}},
        {"podLabels": {"example.com/a.b_c": "", "x": "a.b"}, "podAnnotations": {"Example.com/a": "two words"}},
        {"defaultStore": {"bucket": "fed.pipe-1", "endpoint": "https://[fd00::1]:65535", "region": "eu_1"}},
        {"storePolicy": {"*": {"endpoints": ["https://S3.example.com/", "http://[FD00::1]:09000", "AWS"]}}},
        {"tracingEndpoint": "http://collector.tracing:4318/v1", "huggingFaceEndpoint": ""},
        {"rbac": {"scope": "cluster", "userRoles": True}},
        {"networkPolicy": {"apiServerCIDRs": ["10.96.0.1/32", "192.0.2.0/24", "fd00:96::1/128", "::ffff:192.0.2.1/128"]}},
        {"operatorClass": "canary"},
        {"storeIdentity": {"roleArn": "arn:aws-cn:iam::123456789012:role/team/fedpipe", "models": ["fedpipe/models", "hub"]}},
        {"storeIdentity": {"roleArn": "arn:minio:iam:::role/oxnUw3DAuQF1uggjXGxI2AmW8IA", "stsEndpoint": "http://minio.minio:9000"}},
        {"defaultStore": {"bucket": "fedpipe", "prefix": "", "credentialsSecretRef": {"name": "store"}, "endpoint": "http://minio:9000"}},
        {"networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 9000}]}]}},
        {"networkPolicy": {"metricsFrom": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "prometheus"}}}]}},
        {"global": {"imageRegistry": "mirror.example:5000/team", "imagePullSecrets": [{"name": "a"}, "b"], "of": {"another": "chart"}}},
        {"caBundle": {"configMapName": "hospital-ca", "key": "bundle.pem"}},
        {"proxy": {"http": "http://proxy.example:3128", "https": "https://[fd00::1]:3128/", "noProxy": "minio.minio,.svc,10.0.0.0/8"}},
        {
            "resources": {
                "requests": {"cpu": 1, "memory": "1.5Gi", "ephemeral-storage": "2e9"},
                "limits": {"cpu": 0.5, "nvidia.com/gpu": "1"},
            }
        },
        {"resources": {"requests": {"cpu": "100m", "memory": "128M", "hugepages-2Mi": "4Mi"}, "limits": {"memory": "2E"}}},
        {"exportJob": {"resources": {"limits": None}, "priorityClassName": "system-cluster-critical"}},
        {"tolerations": [{}, {"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": -1}]},
        {"affinity": WHOLE_AFFINITY},
        {"podSecurityContext": None, "containerSecurityContext": None, "jobPodSecurityContext": None},
        {"podSecurityContext": {"runAsUser": None, "fsGroup": 1000670000, "seLinuxOptions": {"level": "s0:c26,c5"}}},
        {"containerSecurityContext": {"capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}},
        {"extraVolumes": [{"name": "data", "hostPath": {"path": "/x"}}, {"name": "csi", "csi": {"driver": "x"}}]},
        {"extraVolumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True, "subPath": "a"}]},
        {"extraEnv": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "B", "value": ""}]},
        {"metrics": {"serviceMonitor": {"interval": "1m30s", "labels": {"release": "prometheus"}, "relabelings": [{"action": "keep"}]}}},
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}},
        {"prometheusRule": {"for": {"*": "1s", "FedPipeRunBlocked": "1h30m"}, "runbook": "https://wiki.example.com/alerts.md"}},
        {"dashboards": {"namespace": "monitoring", "annotations": {"grafana_folder": "FedPipe"}}},
    ],
    ids=str,
)
def test_a_valid_value_is_accepted(valid: Plain) -> None:
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(coalesced(values(), valid))] == []


def test_by_default_the_release_s_own_namespace_is_served() -> None:
    assert (values()["rbac"]["scope"], values()["namespaces"]) == ("namespaces", [])


def test_a_policy_for_stores_that_the_schema_permits_is_one_that_the_operator_reads() -> None:
    policy = {"*": {"endpoints": ["https://s3.example.com"]}, "wards": {"endpoints": ["http://minio:9000", "AWS"], "buckets": ["fedpipe"]}}

    assert Draft7Validator(SCHEMA).is_valid(values() | {"storePolicy": policy})
    assert parse_store_policy(json.dumps(policy)).rules["wards"] == StoreRule(("http://minio:9000", "AWS"), ("fedpipe",))


def test_every_value_is_used() -> None:
    text = PARTS + "".join(template.read_text() for template in TEMPLATES)

    assert [path for path in _given(values()) if f".Values.{path.split('.')[0]}" not in text] == []
    within = [path for path in _given(values()) if not path.startswith(_PASSED_WHOLE)]
    assert [path for path in within if not re.search(rf"[.\"]{path.split('.')[-1]}\b", text)] == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_template_takes_object_names_from_the_helpers(template: Any) -> None:
    """Only names within a pod, such as those of containers, are written out."""
    literal_names = re.findall(r"^  name: (?!\{\{ include)(.*)$", template.read_text(), re.MULTILINE)

    assert literal_names == []


def test_the_crds_are_those_of_the_repository() -> None:
    assert (CHART / "files" / "crds").resolve() == ROOT / "crds"
    assert "files/crds/*.yaml" in (CHART / "templates" / "crds.yaml").read_text()


def test_the_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert (chart["version"], chart["appVersion"]) == (project["version"], project["version"])


def test_the_chart_lists_the_crds() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    crds = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml"))]

    listed = yaml.safe_load(chart["annotations"]["artifacthub.io/crds"])

    assert {crd["name"]: (crd["kind"], crd["version"]) for crd in listed} == {
        crd["metadata"]["name"]: (crd["spec"]["names"]["kind"], crd["spec"]["versions"][0]["name"]) for crd in crds
    }


def test_the_chart_lists_the_images_of_its_values_in_its_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    listed = {one["name"]: one["image"] for one in yaml.safe_load(chart["annotations"]["artifacthub.io/images"])}

    assert listed == {name: f"{values()[f'{name}Image']['repository']}:{chart['appVersion']}" for name in ("operator", "trainer")}


def test_the_chart_s_examples_are_valid_objects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    kinds = {"EdgeSite": EdgeSite, "FederatedFineTune": FederatedFineTune}
    examples = yaml.safe_load(chart["annotations"]["artifacthub.io/crdsExamples"])

    assert [example["kind"] for example in examples] == list(kinds)
    assert [problem for example in examples for problem in parse_object(example, kinds[example["kind"]])[1]] == []


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _text(value: Any) -> str:
    """A value as the template writes it into an environment variable."""
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


def _given(found: Plain, above: str = "") -> Iterator[str]:
    """The path of every value."""
    for name, value in found.items():
        yield above + name
        if isinstance(value, dict) and name not in _FREE:
            yield from _given(value, f"{above}{name}.")


def _described(schema: Plain, above: str = "") -> Iterator[str]:
    """The path of every property of a schema, except within lists."""
    for name, inner in schema.get("properties", {}).items():
        yield above + name
        reference = inner.get("$ref", "").rpartition("/")[2]
        yield from _described(SCHEMA["definitions"].get(reference, inner), f"{above}{name}.")
