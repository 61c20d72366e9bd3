"""Every rule of the CRDs, as the real API server enforces it: each refuses with its own message, and nothing else is in its way."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_user import FFT, Kubectl, Plain, as_list
from crds import openapi_schema
from installed_operator import Operator, namespace

pytestmark = pytest.mark.e2e

RUN: Plain = {
    "apiVersion": "fedpipe.io/v1alpha1",
    "kind": "FederatedFineTune",
    "metadata": {"name": "triage"},
    "spec": {
        "model": {"source": "pvc://models/base"},
        "task": {"type": "SequenceClassification", "text": "text"},
        "planning": {"ranks": [4]},
        "aggregation": {"method": "Exact"},
        "store": {"bucket": "fedpipe"},
        "suspend": True,
    },
}
WARD: Plain = {
    "apiVersion": "fedpipe.io/v1alpha1",
    "kind": "EdgeSite",
    "metadata": {"name": "ward"},
    "spec": {"data": {"train": "a.csv", "validation": "b.csv", "volume": {"persistentVolumeClaim": {"claimName": "notes"}}}},
}
GENERATION: Plain = {"type": "CausalLM", "prompt": "{a}", "response": "{b}"}

WRITTEN: dict[str, tuple[Plain, Plain]] = {
    "EdgeSite: metadata.name": (WARD, {"metadata": {"name": "3rd"}}),
    "FederatedFineTune: metadata.name": (RUN, {"metadata": {"name": "3rd"}}),
    "FederatedFineTune: aggregation.method FedIT": (RUN, {"spec": {"aggregation": {"method": "FedIT"}}}),
    "FederatedFineTune: rounds.target.metric": (RUN, {"spec": {"rounds": {"target": {"metric": "bleu", "value": 1}}}}),
    "FederatedFineTune: ranks are all 0": (RUN, {"spec": {"planning": {"ranks": [0]}}}),
    "FederatedFineTune: CausalLM and Seq2SeqLM need": (RUN, {"spec": {"task": {"type": "CausalLM", "text": None, "prompt": "{a}"}}}),
    "FederatedFineTune: text, label and labels belong": (RUN, {"spec": {"task": GENERATION | {"label": "x"}}}),
    "FederatedFineTune: prompt, response and slotPattern belong": (RUN, {"spec": {"task": {"prompt": "{a}"}}}),
    "FederatedFineTune: prompt names no column": (RUN, {"spec": {"task": GENERATION | {"text": None, "prompt": "a"}}}),
    "FederatedFineTune: response names no column": (RUN, {"spec": {"task": GENERATION | {"text": None, "response": "b"}}}),
}
"""What may not be created, by the beginning of the message: an object that is right, and the change that makes it wrong."""

CHANGED: dict[str, Plain] = {
    "FederatedFineTune: spec.model": {"model": {"source": "pvc://models/other"}},
    "FederatedFineTune: spec.task": {"task": {"text": "body"}},
    "FederatedFineTune: spec.store": {"store": {"bucket": "another"}},
    "FederatedFineTune: spec.planning": {"planning": {"ranks": [8]}},
    "FederatedFineTune: spec.aggregation.method": {"aggregation": {"method": "ZeroPad"}},
}
"""What may not be changed in a run."""

ALLOWED = (
    {"suspend": False},
    {"rounds": {"count": 3}},
    {"sites": {"quorum": 0.5}},
    {"deletionPolicy": "Delete"},
    {"export": {"merged": False}},
)


@pytest.fixture(scope="module")
def kubectl(operator: Operator) -> Iterator[Kubectl]:
    """A namespace with one run that is suspended from the start."""
    assert operator
    kubectl = Kubectl("e2e-rules")
    kubectl.apply(namespace(kubectl.namespace))
    kubectl.apply(RUN)
    yield kubectl
    kubectl("delete", FFT, "--all")
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


def rules() -> Iterator[str]:
    """Kind and message of every rule of the CRDs."""
    for kind in ("EdgeSite", "FederatedFineTune"):
        for message in _messages(openapi_schema(kind)):
            yield f"{kind}: {message}"


def _messages(schema: Plain) -> Iterator[str]:
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", []))
    for inner in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from _messages(inner)


def with_change(document: Plain, change: Plain) -> Plain:
    """The document with a merge patch applied to it; None removes a field."""
    made = copy.deepcopy(document)
    for name, value in change.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = with_change(made.get(name, {}), value) if isinstance(value, dict) else value
    return made


def test_every_rule_is_in_one_of_the_tables() -> None:
    known = [*WRITTEN, *CHANGED]

    assert [rule for rule in rules() if sum(rule.startswith(begin) for begin in known) != 1] == []
    assert [begin for begin in known if not any(rule.startswith(begin) for rule in rules())] == []


@pytest.mark.parametrize("begin", WRITTEN)
def test_what_breaks_a_rule_is_refused_with_its_message(kubectl: Kubectl, begin: str) -> None:
    document, change = WRITTEN[begin]
    (message,) = [rule.partition(": ")[2] for rule in rules() if rule.startswith(begin)]

    assert message in kubectl.refused("create", "--dry-run=server", "-f", "-", given=as_list(with_change(document, change)))


@pytest.mark.parametrize("begin", CHANGED)
def test_what_the_rounds_rest_on_may_not_change(kubectl: Kubectl, begin: str) -> None:
    (message,) = [rule.partition(": ")[2] for rule in rules() if rule.startswith(begin)]

    assert message in kubectl.refused("patch", FFT, "triage", "--type=merge", "-p", json.dumps({"spec": CHANGED[begin]}))


def test_nor_may_a_field_be_taken_out_whose_default_is_another(kubectl: Kubectl) -> None:
    assert "spec.planning may not change in a run" in kubectl.refused(
        "patch", FFT, "triage", "--type=merge", "-p", '{"spec": {"planning": null}}'
    )


@pytest.mark.parametrize("change", ALLOWED, ids=lambda change: next(iter(change)))
def test_what_they_do_not_rest_on_may(kubectl: Kubectl, change: Plain) -> None:
    kubectl("patch", FFT, "triage", "--type=merge", "--dry-run=server", "-p", json.dumps({"spec": change}))


def test_unknown_fields_are_refused_too(kubectl: Kubectl) -> None:
    wrong: Any = with_change(WARD, {"spec": {"colour": "red"}})

    assert re.search(r'unknown field "(spec\.)?colour"', kubectl.refused("create", "--dry-run=server", "-f", "-", given=as_list(wrong)))


def test_a_status_may_not_be_written_by_a_viewer(kubectl: Kubectl) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "viewers"},
        "subjects": [{"kind": "User", "name": "viola", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"},
    }
    kubectl.apply(binding)
    viola = Kubectl(kubectl.namespace, user="viola")

    assert viola("get", FFT, "triage", "-o", "name")
    assert "forbidden" in viola.refused(
        "patch", FFT, "triage", "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"round": 9}})
    )
    assert "forbidden" in viola.refused("delete", FFT, "triage")
