"""The chart's values, their schema, the templates and the operator's settings agree."""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml
from charts import CHART, ROOT, Plain, values
from jsonschema import Draft7Validator

from fedpipe_operator import settings as environment
from fedpipe_operator.api.quantities import QUANTITY_PATTERN
from fedpipe_operator.settings import Settings
from fedpipe_operator.store_policy import StoreRule, parse_store_policy

SCHEMA: Plain = json.loads((CHART / "values.schema.json").read_text())
HELPERS = (CHART / "templates" / "_helpers.tpl").read_text()
TEMPLATES = sorted((CHART / "templates").glob("*.yaml"))

_OF_SCOPE = {"IMAGE_PULL_SECRETS": "$secrets", "NAMESPACES": 'include "fedpipe.namespaces"'}
"""Variables that a template derives from more than their value."""
_FREE = ("annotations", "labels", "for", "podAnnotations", "nodeSelector", "affinity", "requests", "limits", "storePolicy")
"""Maps whose keys the user chooses."""


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
    environ = {f"FEDPIPE_{name.upper()}": _text(value) for name, value in defaults.items()}

    read = environment.read(environ | {f"FEDPIPE_{name.upper()}": "ours" for name in needed})

    assert read == Settings(trainer_image="ours", operator_image="ours", namespaces=("ours",))


def test_the_schema_describes_every_value_and_no_other() -> None:
    assert set(_described(SCHEMA)) - {"global"} == set(_given(values()))


def test_the_defaults_are_valid_by_the_schema() -> None:
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(values())] == []


def test_the_chart_and_the_api_have_the_same_pattern_of_a_quantity() -> None:
    assert SCHEMA["definitions"]["quantity"]["pattern"] == QUANTITY_PATTERN


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
        {"prometheusRule": {"for": {"RunBlocked": "1m"}}},
        {"prometheusRule": {"for": {"FedPipeRunBlocked": 60}}},
        {"prometheusRule": {"for": {"*": "soon"}}},
        {"prometheusRule": {"runbook": "docs/alerts.md"}},
        {"dashboards": {"labels": {"grafana_dashboard": 1}}},
        {"dashboards": {"namespace": "Monitoring"}},
    ],
    ids=str,
)
def test_an_invalid_value_is_refused(invalid: Plain) -> None:
    assert not Draft7Validator(SCHEMA).is_valid(values() | invalid)


@pytest.mark.parametrize(
    "valid",
    [
        {"namespaces": ["one", "two"]},
        {"rbac": {"scope": "cluster", "userRoles": True}},
        {"networkPolicy": {"apiServerCIDRs": ["10.96.0.1/32", "192.0.2.0/24", "fd00:96::1/128", "::ffff:192.0.2.1/128"]}},
        {"networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 9000}]}]}},
        {"prometheusRule": {"for": {"*": "1s", "FedPipeRunBlocked": "1h30m"}, "runbook": "https://wiki.example.com/alerts.md"}},
        {"dashboards": {"namespace": "monitoring", "annotations": {"grafana_folder": "FedPipe"}}},
    ],
    ids=str,
)
def test_a_valid_value_is_accepted(valid: Plain) -> None:
    assert Draft7Validator(SCHEMA).is_valid(values() | valid)


def test_by_default_the_release_s_own_namespace_is_served() -> None:
    assert (values()["rbac"]["scope"], values()["namespaces"]) == ("namespaces", [])


def test_a_policy_for_stores_that_the_schema_permits_is_one_that_the_operator_reads() -> None:
    policy = {"*": {"endpoints": ["https://s3.example.com"]}, "wards": {"endpoints": ["http://minio:9000", "AWS"], "buckets": ["fedpipe"]}}

    assert Draft7Validator(SCHEMA).is_valid(values() | {"storePolicy": policy})
    assert parse_store_policy(json.dumps(policy)).rules["wards"] == StoreRule(("http://minio:9000", "AWS"), ("fedpipe",))


def test_every_value_is_used() -> None:
    text = HELPERS + "".join(template.read_text() for template in TEMPLATES)

    assert [path for path in _given(values()) if f".Values.{path.split('.')[0]}" not in text] == []


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
