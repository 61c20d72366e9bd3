"""The API server enforces every CEL rule of both kinds, with its message."""

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from cluster_user import FFT, Kubectl, Plain, list_manifest
from crds import openapi_schema
from smallest_documents import RUN_DOCUMENT, SITE_DOCUMENT

pytestmark = pytest.mark.e2e

CAUSAL: Final = {"type": "CausalLM", "prompt": "{question}", "response": "{answer}"}

INVALID_SPECS: Final[dict[str, Plain]] = {
    "aggregation.method FedIT averages equal ranks only": {"aggregation": {"method": "FedIT"}},
    "aggregation.rule needs more updates to withstand maliciousSites (TrimmedMean 2f + 1, Krum and MultiKrum 2f + 3)"
    " than sites.perRound times sites.quorum": {
        "aggregation": {"rule": "Krum", "maliciousSites": 2},
        "sites": {"perRound": 8, "quorum": 0.7},
    },
    "rule works on the products B·A, which methods other than Exact do not form": {"aggregation": {"method": "ZeroPad", "rule": "Median"}},
    "rounds.target.metric is not measured for this task": {"rounds": {"target": {"metric": "bleu", "value": 1}}},
    "the format Template of CausalLM and Seq2SeqLM needs prompt and response": {"task": {"type": "CausalLM", "prompt": "{question}"}},
    "prompt and response belong to the format Template": {"task": CAUSAL | {"format": "Alpaca"}},
    "label, labels, textPair and problem belong to SequenceClassification": {"task": CAUSAL | {"textPair": "reply"}},
    "text belongs to SequenceClassification and to the format Text of CausalLM, and packing to the latter": {
        "task": CAUSAL | {"packing": True}
    },
    "format, prompt, response, slotPattern and packing belong to CausalLM and Seq2SeqLM": {
        "task": {"type": "SequenceClassification", "slotPattern": "x"}
    },
    "Seq2SeqLM has the formats Template, Alpaca, PromptCompletion and QuestionAnswering": {"task": {"type": "Seq2SeqLM", "format": "Text"}},
    "messages and tools belong to the formats Messages and ShareGPT": {
        "task": {"type": "CausalLM", "format": "Text", "tools": "functions"}
    },
    "slotPattern belongs to the formats Template, Alpaca and PromptCompletion": {
        "task": {"type": "CausalLM", "format": "Messages", "slotPattern": "x"}
    },
    "the problem MultiLabel needs labels": {"task": {"type": "SequenceClassification", "problem": "MultiLabel"}},
    "a Regression predicts a number and has no labels": {
        "task": {"type": "SequenceClassification", "problem": "Regression", "labels": ["a", "b"]}
    },
    "format, prompt, response and slotPattern belong to CausalLM and Seq2SeqLM": {"task": {"type": "Preference", "format": "Messages"}},
    "promptColumn, chosenColumn, rejectedColumn and beta belong to Preference": {"task": CAUSAL | {"beta": 0.1}},
    "promptColumn, chosenColumn and rejectedColumn are different columns": {"task": {"type": "Preference", "rejectedColumn": "chosen"}},
    "prompt contains no column": {"task": CAUSAL | {"prompt": "the question"}},
    "response contains no column": {"task": CAUSAL | {"response": "{}"}},
    "ranks are all 0, so nothing would be trained": {"planning": {"ranks": [0, 0]}},
    "momentum belongs to FedAvgM": {"aggregation": {"optimizer": {"momentum": 0.5}}},
    "beta1 belongs to FedAdam, FedAdamW, FedYogi": {"aggregation": {"optimizer": {"type": "FedAvgM", "beta1": 0.5}}},
    "beta2 belongs to FedAdam, FedAdamW, FedYogi": {"aggregation": {"optimizer": {"beta2": 0.5}}},
    "tau belongs to FedAdam, FedAdamW, FedYogi": {"aggregation": {"optimizer": {"type": "FedAvgM", "tau": 0.5}}},
    "weightDecay belongs to FedAdamW": {"aggregation": {"optimizer": {"type": "FedAdam", "weightDecay": 0.5}}},
    "rank belongs to LowRank": {"codec": {"type": "TopK", "rank": 2}},
    "fraction belongs to TopK": {"codec": {"fraction": 0.5}},
    "mode Manual takes the sites' plans from plans, which is empty": {"planning": {"mode": "Manual"}},
    "plans has one without a site, which mode Manual alone gives to the others": {
        "planning": {"plans": [{"bits": 16, "rank": 4, "steps": 1}]}
    },
    "microBatchSize is larger than batchSize": {
        "planning": {"plans": [{"site": "ward", "bits": 16, "rank": 4, "steps": 1, "batchSize": 2, "microBatchSize": 4}]}
    },
}
"""By the start of a rule's message, fields of a run's spec that break the rule."""
INVALID_SITES: Final[dict[str, Plain]] = {
    "cache names the claim of data.volume, which trainers only read": {"cache": SITE_DOCUMENT["spec"]["data"]["volume"]},
    "modelClaims names the claim of the site's data or cache": {"modelClaims": ["models", "rows"]},
    "the priority class is for the cluster's own pods": {"podTemplate": {"spec": {"priorityClassName": "system-node-critical"}}},
    "the variable is reserved": {"podTemplate": {"env": [{"name": "PYTHONPATH", "value": "/data"}]}},
}
"""By the start of a rule's message, fields of a site's spec that break the rule."""
INVALID_NAMES: Final = {
    "metadata.name is the prefix of the names of the site's objects": SITE_DOCUMENT,
    "metadata.name is the prefix of the names of the run's objects": RUN_DOCUMENT,
}
FORBIDDEN_CHANGES: Final[list[tuple[str, Plain]]] = [
    ("spec.model may not change in a run", {"model": {"source": "pvc://models/other"}}),
    ("spec.task may not change in a run", {"task": {"maxLength": 64}}),
    ("spec.store may not change in a run, because its rounds are stored there", {"store": {"prefix": "elsewhere"}}),
    ("spec.store may not change in a run, because its rounds are stored there", {"store": {"endpoint": None}}),
    ("spec.continueFrom may not change in a run, because its rounds are in that folder of the store", {"continueFrom": "an-earlier-uid"}),
    ("spec.planning may not change in a run", {"planning": {"ranks": [4]}}),
    ("spec.planning may not change in a run", {"planning": None}),
    ("spec.managedBy may not change in a run, because no other controller can take it over", {"managedBy": "example.com/other"}),
    ("spec.aggregation.method may not change in a run", {"aggregation": {"method": "ZeroPad"}}),
]
ALLOWED_CHANGES: Final[list[Plain]] = [
    {"suspend": True},
    {"rounds": {"count": 7, "deadline": "7m"}},
    {"sites": {"quorum": 0.5}},
    {"training": {"learningRate": 0.01}},
    {"training": {"proximalMu": 0.01}},
    {"aggregation": {"maxNorm": 10}},
    {"aggregation": {"rule": "Median", "maxSiteWeight": 0.4, "clipping": "Refuse"}},
    {"deletionPolicy": "Delete"},
    {"ttlSecondsAfterFinished": 60},
]


def rules(schema: Plain) -> Iterator[str]:
    """The messages of all rules in a schema, nested schemas included."""
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for one in inner:
        if isinstance(one, dict):
            yield from rules(one)


KINDS: Final = ("EdgeSite", "FederatedFineTune")
MESSAGES: Final = {message.partition(":")[0]: message for kind in KINDS for message in rules(openapi_schema(kind))}


def creation_error(kubectl: Kubectl, document: Plain) -> str:
    """The error message for a document that must be rejected."""
    return kubectl.rejection("create", "--dry-run=server", "-f", "-", given=list_manifest(document))


def with_spec(document: Plain, **spec: Any) -> Plain:
    found = copy.deepcopy(document)
    found["spec"] |= spec
    return found


@pytest.fixture(scope="module")
def namespace_with_run(empty_namespace: Kubectl) -> Kubectl:
    """A namespace with a suspended run."""
    empty_namespace.apply(RUN_DOCUMENT)
    return empty_namespace


def test_every_rule_has_a_case() -> None:
    assert sorted(MESSAGES) == sorted({*INVALID_SPECS, *INVALID_SITES, *INVALID_NAMES, *(begin for begin, _ in FORBIDDEN_CHANGES)})


@pytest.mark.parametrize("begin", INVALID_SPECS)
def test_a_run_that_breaks_a_rule_is_rejected(empty_namespace: Kubectl, begin: str) -> None:
    assert MESSAGES[begin] in creation_error(empty_namespace, with_spec(RUN_DOCUMENT, **INVALID_SPECS[begin]))


@pytest.mark.parametrize("begin", INVALID_SITES)
def test_a_site_that_breaks_a_rule_is_rejected(empty_namespace: Kubectl, begin: str) -> None:
    assert MESSAGES[begin] in creation_error(empty_namespace, with_spec(SITE_DOCUMENT, **INVALID_SITES[begin]))


@pytest.mark.parametrize("begin", INVALID_NAMES)
def test_a_name_that_cannot_prefix_others_is_rejected(empty_namespace: Kubectl, begin: str) -> None:
    assert MESSAGES[begin] in creation_error(empty_namespace, INVALID_NAMES[begin] | {"metadata": {"name": "1.st"}})


@pytest.mark.parametrize(("begin", "spec"), FORBIDDEN_CHANGES, ids=lambda value: value if isinstance(value, str) else json.dumps(value))
def test_fields_that_rounds_depend_on_are_immutable(namespace_with_run: Kubectl, begin: str, spec: Plain) -> None:
    message = namespace_with_run.rejection("patch", FFT, "run", "--dry-run=server", "--type=merge", "-p", json.dumps({"spec": spec}))

    assert MESSAGES[begin] in message


@pytest.mark.parametrize("spec", ALLOWED_CHANGES, ids=json.dumps)
def test_other_fields_may_change(namespace_with_run: Kubectl, spec: Plain) -> None:
    namespace_with_run("patch", FFT, "run", "--dry-run=server", "--type=merge", "-p", json.dumps({"spec": spec}))


@pytest.mark.parametrize("metric", ["preferenceAccuracy", "rewardMargin", "loss"])
def test_a_preference_needs_nothing_but_its_type_and_has_metrics_of_its_own(empty_namespace: Kubectl, metric: str) -> None:
    task, target = {"type": "Preference", "promptColumn": "prompt", "beta": 0.5}, {"metric": metric, "value": 0.6}
    document = with_spec(RUN_DOCUMENT | {"metadata": {"name": "preference"}}, task=task, rounds={"target": target})

    empty_namespace("create", "--dry-run=server", "-f", "-", given=list_manifest(document))
    other = with_spec(document, rounds={"target": target | {"metric": "perplexity"}})
    assert MESSAGES["rounds.target.metric is not measured for this task"] in creation_error(empty_namespace, other)


def test_an_unknown_field_is_rejected(empty_namespace: Kubectl) -> None:
    assert 'unknown field "sits"' in creation_error(empty_namespace, with_spec(RUN_DOCUMENT, sits={}))
