"""Faults in a spec that the schema cannot express: the operator reports them, starts nothing, and accepts the next edit."""

import json
from typing import Final

import pytest
from cluster_user import FFT, Kubectl, Plain, condition, wait_until
from smallest_documents import RUN_DOCUMENT

pytestmark = pytest.mark.e2e

TASK: Final = {"type": "CausalLM", "prompt": "{question} {patient[name]}", "response": "{answer}"}


def wait_for_ready_reason(kubectl: Kubectl, reason: str) -> Plain:
    """Wait until the run's condition Ready has this reason for the current generation; return the run."""

    def poll() -> Plain | None:
        body = kubectl.get(FFT, "run")
        ready = condition(body, "Ready")
        matches = (ready.get("reason"), ready.get("observedGeneration")) == (reason, body["metadata"]["generation"])
        return body if matches else None

    return wait_until(poll, f"the run is {reason}", seconds=30, explain=lambda: kubectl("get", FFT, "run", "-o", "yaml"))


def test_a_template_that_names_no_column_is_reported_with_its_path_and_corrected_by_an_edit(empty_namespace: Kubectl) -> None:
    store = RUN_DOCUMENT["spec"]["store"] | {"credentialsSecretRef": {"name": "keys"}}
    empty_namespace.apply(RUN_DOCUMENT | {"spec": RUN_DOCUMENT["spec"] | {"task": TASK, "store": store, "suspend": False}})

    invalid = wait_for_ready_reason(empty_namespace, "SpecInvalid")
    empty_namespace("patch", FFT, "run", "--type=merge", "-p", json.dumps({"spec": {"rounds": {"count": 3}}}))
    still_invalid = wait_for_ready_reason(empty_namespace, "SpecInvalid")
    empty_namespace("patch", FFT, "run", "--type=merge", "-p", json.dumps({"spec": {"task": {"prompt": "{question}"}}}))
    corrected = wait_for_ready_reason(empty_namespace, "SecretMissing")
    refused = empty_namespace.rejection("patch", FFT, "run", "--type=merge", "-p", json.dumps({"spec": {"task": {"prompt": "{other}"}}}))

    assert (condition(invalid, "Valid")["status"], condition(still_invalid, "Valid")["status"]) == ("False", "False")
    assert "spec.task.prompt" in condition(invalid, "Valid")["message"]
    assert "patient[name]" in condition(invalid, "Valid")["message"]
    assert condition(corrected, "Valid")["status"] == "True"
    assert "spec.task may not change in a run" in refused
    assert empty_namespace.list("jobs") == []
    assert "SpecInvalid" in {event["reason"] for event in empty_namespace.list("events", fields="involvedObject.name=run")}


def test_a_run_is_blocked_until_its_secret_exists_and_is_complete(empty_namespace: Kubectl) -> None:
    store = RUN_DOCUMENT["spec"]["store"] | {"credentialsSecretRef": {"name": "keys"}}
    empty_namespace("delete", FFT, "--all", "--timeout=60s")
    empty_namespace.apply(RUN_DOCUMENT | {"spec": RUN_DOCUMENT["spec"] | {"store": store, "suspend": False}})
    missing = wait_for_ready_reason(empty_namespace, "SecretMissing")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"AWS_ACCESS_KEY_ID": "half"}}
    empty_namespace.apply(secret)
    incomplete = wait_for_ready_reason(empty_namespace, "SecretIncomplete")

    assert "keys" in condition(missing, "Progressing")["message"]
    assert "AWS_SECRET_ACCESS_KEY" in condition(incomplete, "Progressing")["message"]
