"""Names and labels in what Helm renders: always texts, each key once, and no name of two releases. Needs Helm and no cluster."""

import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from certificates import AUTHORITY
from charts import API_SERVER, CHART, Plain, helm, of_kind, rendered, set_values
from strict_yaml import strict_objects

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

MONITORING: Final = ("--api-versions", "monitoring.coreos.com/v1")
EVERY_PART: Final[Plain] = {
    "replicas": 2,
    "reports": {"enabled": True, "tlsSecretName": "42"},
    "metrics.serviceMonitor.enabled": True,
    "prometheusRule.enabled": True,
    "dashboards": {"enabled": True, "namespace": "42"},
    "networkPolicy.metricsFrom": [{"podSelector": {}}],
    "storePolicy": {"*": {"buckets": ["fedpipe"]}},
    "caBundle": {"pem": AUTHORITY, "key": "true"},
    "imagePullSecrets": [{"name": "42"}],
    "priorityClassName": "42",
    "operatorClass": "42",
    "defaultStore": {"bucket": "fedpipe", "credentialsSecretRef": {"name": "42"}},
    "operatorImage": {"repository": "42", "tag": "10"},
}
"""Every optional object, and names that YAML could read as numbers or truth."""
LABELS: Final = ("labels", "annotations", "matchLabels", "nodeSelector", "data")
NAMES: Final = ("name", "namespace", "priorityClassName", "serviceAccountName", "secretName", "policyName", "image", "value", "key")
SERVICE: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""What Kubernetes takes as the name of a Service."""


def strictly_rendered(given: Plain, name: str = "fp", namespace: str = "ns") -> list[Plain]:
    """All objects of a release, also those of `helm test`."""
    done = helm("template", name, CHART, "--namespace", namespace, *MONITORING, *set_values(API_SERVER | given))
    assert done.returncode == 0, done.stderr
    return strict_objects(done.stdout)


def texts(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What must be a text: names, namespaces, labels, annotations, selectors and variables' values; without the schemas of CRDs."""
    if isinstance(found, list):
        for one in found:
            yield from texts(one, path)
    if isinstance(found, dict):
        for name, value in found.items():
            within = f"{path}.{name}"
            if name in LABELS or within.endswith(".spec.selector"):
                yield from ((f"{within}.{key}", one) for key, one in value.items() if not isinstance(one, dict))
            elif name in NAMES:
                yield within, value
            elif name in ("resourceNames", "values", "args"):
                yield from ((within, one) for one in value)
            if name != "openAPIV3Schema":
                yield from texts(value, within)


@pytest.mark.parametrize(
    ("name", "namespace", "given"),
    [
        ("fp", "2024", {}),
        ("fp", "no", {}),
        ("42", "ns", {}),
        ("fp", "ns", {"nameOverride": "42"}),
        ("fp", "1e3", {"fullnameOverride": "42"}),
        ("fp", "ns", {"namespaces": ["42", "on"]}),
        ("fp", "ns", {"serviceAccount": {"create": False, "name": "42"}}),
        ("fp", "ns", {"test.store": {"bucket": "fedpipe", "credentialsSecretRef": {"name": "42"}}}),
    ],
    ids=str,
)
def test_names_that_look_like_numbers_are_texts(name: str, namespace: str, given: Plain) -> None:
    objects = strictly_rendered(EVERY_PART | given, name, namespace)

    wrong = [(one["kind"], path, value) for one in objects for path, value in texts(one) if not isinstance(value, str)]
    assert wrong == []
    assert {one["metadata"].get("namespace", namespace) for one in of_kind(objects, "Deployment")} == {namespace}


@pytest.mark.parametrize("name", ["42", "a.b", "9" * 53], ids=str)
def test_a_service_has_a_legal_name_whatever_the_release_is_called(name: str) -> None:
    objects = rendered({"reports.enabled": True}, name=name)

    assert [one["metadata"]["name"] for one in of_kind(objects, "Service") if not SERVICE.fullmatch(one["metadata"]["name"])] == []
    assert "." not in of_kind(objects, "Deployment")[0]["metadata"]["name"]


def test_a_label_of_a_kind_of_object_replaces_a_common_one_and_no_label_of_the_charts_own() -> None:
    given: Plain = EVERY_PART | {
        "commonLabels": {"team": "all", "rbac.authorization.k8s.io/aggregate-to-admin": "false"},
        "podLabels": {"team": "pods"},
        "metrics.service.labels": {"team": "services"},
        "metrics.serviceMonitor.labels": {"team": "monitors"},
        "prometheusRule.labels": {"team": "rules"},
        "dashboards.labels": {"team": "dashboards"},
        "podAnnotations": {"fedpipe.io/ca-bundle": "theirs", "a": "b"},
    }
    objects = strictly_rendered(given)
    pod = of_kind(objects, "Deployment")[0]["spec"]["template"]["metadata"]
    teams = {one["metadata"]["name"]: one["metadata"]["labels"]["team"] for one in objects}

    assert (pod["labels"]["team"], teams["fp-fedpipe-metrics"], teams["ns.fp-fedpipe.fedpipe-run"]) == ("pods", "services", "dashboards")
    assert {
        one["kind"]: one["metadata"]["labels"]["team"] for one in objects if one["kind"] in ("ServiceMonitor", "PrometheusRule", "Role")
    } == {
        "ServiceMonitor": "monitors",
        "PrometheusRule": "rules",
        "Role": "all",
    }
    assert pod["annotations"]["a"] == "b"
    assert re.fullmatch("[0-9a-f]{64}", pod["annotations"]["fedpipe.io/ca-bundle"])
    (admin,) = (one for one in of_kind(objects, "ClusterRole") if one["metadata"]["name"].endswith(".admin"))
    assert admin["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "true"


WIDE: Final = EVERY_PART | {"rbac.scope": "cluster", "caBundle": {}, "crds.enabled": False}
SERVED: Final = EVERY_PART | {"namespaces": ["wards"], "dashboards.namespace": "monitoring", "crds.enabled": False}


@pytest.mark.parametrize("given", [WIDE, SERVED], ids=["cluster", "namespaces"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("b", "a", {"fullnameOverride": "b-fedpipe"}), ("fedpipe", "a-b", {})),
        (("fedpipe", "a", {}), ("fedpipe-nodes", "a", {})),
        (("fedpipe", "a", {}), ("fedpipe-run-stores", "a", {})),
    ],
    ids=str,
)
def test_no_two_releases_have_a_name_outside_their_namespaces_in_common(given: Plain, one: Any, other: Any) -> None:
    both = [
        {
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
            for each in rendered(given | values, *MONITORING, name=name, namespace=namespace)
            if each["metadata"].get("namespace") != namespace
        }
        for name, namespace, values in (one, other)
    ]

    assert both[0] & both[1] == set()
