"""What the API server refuses by itself: every CEL rule of both kinds, with its message."""

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from cluster_user import FFT, Kubectl, Plain, as_list
from crds import openapi_schema
from smallest_documents import RUN_DOCUMENT, SITE_DOCUMENT

pytestmark = pytest.mark.e2e

CAUSAL: Final = {"type": "CausalLM", "prompt": "{question}", "response": "{answer}"}

CREATED: Final[dict[str, Plain]] = {
    "aggregation.method FedIT averages equal ranks only": {"aggregation": {"method": "FedIT"}},
    "rounds.target.metric is not measured for this task": {"rounds": {"target": {"metric": "bleu", "value": 1}}},
    "CausalLM and Seq2SeqLM need prompt and response": {"task": {"type": "CausalLM", "prompt": "{question}"}},
    "text, label and labels belong to SequenceClassification": {"task": CAUSAL | {"label": "topic"}},
    "prompt, response and slotPattern belong to CausalLM and Seq2SeqLM": {"task": {"type": "SequenceClassification", "slotPattern": "x"}},
    "prompt contains no column": {"task": CAUSAL | {"prompt": "the question"}},
    "response contains no column": {"task": CAUSAL | {"response": "{}"}},
    "ranks are all 0, so nothing would be trained": {"planning": {"ranks": [0, 0]}},
}
"""By the beginning of a rule's message, what of a run's spec breaks it."""
NAMED: Final = {
    "metadata.name is the prefix of the names of the site's objects": SITE_DOCUMENT,
    "metadata.name is the prefix of the names of the run's objects": RUN_DOCUMENT,
}
CHANGED: Final[list[tuple[str, Plain]]] = [
    ("spec.model may not change in a run", {"model": {"source": "pvc://models/other"}}),
    ("spec.task may not change in a run", {"task": {"maxLength": 64}}),
    ("spec.store may not change in a run, which has its rounds there", {"store": {"prefix": "elsewhere"}}),
    ("spec.store may not change in a run, which has its rounds there", {"store": {"endpoint": None}}),
    ("spec.planning may not change in a run", {"planning": {"ranks": [4]}}),
    ("spec.planning may not change in a run", {"planning": None}),
    ("spec.aggregation.method may not change in a run", {"aggregation": {"method": "ZeroPad"}}),
]
ALLOWED: Final[list[Plain]] = [
    {"suspend": True},
    {"rounds": {"count": 7, "deadline": "7m"}},
    {"sites": {"quorum": 0.5}},
    {"training": {"learningRate": 0.01}},
    {"aggregation": {"maxNorm": 10}},
    {"deletionPolicy": "Delete"},
    {"ttlSecondsAfterFinished": 60},
]


def rules(schema: Plain) -> Iterator[str]:
    """The messages of all rules in a schema and below it."""
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for one in inner:
        if isinstance(one, dict):
            yield from rules(one)


KINDS: Final = ("EdgeSite", "FederatedFineTune")
MESSAGES: Final = {message.partition(":")[0]: message for kind in KINDS for message in rules(openapi_schema(kind))}


def created(kubectl: Kubectl, document: Plain) -> str:
    """What is said of a document that may not be."""
    return kubectl.refused("create", "--dry-run=server", "-f", "-", given=as_list(document))


def changed(document: Plain, **spec: Any) -> Plain:
    found = copy.deepcopy(document)
    found["spec"] |= spec
    return found


@pytest.fixture(scope="module")
def run_there(quarters: Kubectl) -> Kubectl:
    """A namespace with a run in it that is suspended."""
    quarters.apply(RUN_DOCUMENT)
    return quarters


def test_no_rule_is_without_a_case() -> None:
    assert sorted(MESSAGES) == sorted({*CREATED, *NAMED, *(begin for begin, _ in CHANGED)})


@pytest.mark.parametrize("begin", CREATED)
def test_a_run_that_makes_no_sense_is_refused(quarters: Kubectl, begin: str) -> None:
    assert MESSAGES[begin] in created(quarters, changed(RUN_DOCUMENT, **CREATED[begin]))


@pytest.mark.parametrize("begin", NAMED)
def test_a_name_that_cannot_begin_others_is_refused(quarters: Kubectl, begin: str) -> None:
    assert MESSAGES[begin] in created(quarters, NAMED[begin] | {"metadata": {"name": "1.st"}})


@pytest.mark.parametrize(("begin", "spec"), CHANGED, ids=lambda value: value if isinstance(value, str) else json.dumps(value))
def test_what_the_rounds_rest_on_may_not_change(run_there: Kubectl, begin: str, spec: Plain) -> None:
    said = run_there.refused("patch", FFT, "run", "--dry-run=server", "--type=merge", "-p", json.dumps({"spec": spec}))

    assert MESSAGES[begin] in said


@pytest.mark.parametrize("spec", ALLOWED, ids=json.dumps)
def test_all_else_may_change(run_there: Kubectl, spec: Plain) -> None:
    run_there("patch", FFT, "run", "--dry-run=server", "--type=merge", "-p", json.dumps({"spec": spec}))


def test_a_field_that_nobody_knows_is_refused(quarters: Kubectl) -> None:
    assert 'unknown field "sits"' in created(quarters, changed(RUN_DOCUMENT, sits={}))
