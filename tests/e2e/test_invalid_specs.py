"""What no schema can say is wrong with a run: the operator says it, starts nothing, and takes the next edit."""

import json
from typing import Final

import pytest
from cluster_user import FFT, Kubectl, Plain, condition, until
from smallest_documents import RUN_DOCUMENT

pytestmark = pytest.mark.e2e

TASK: Final = {"type": "CausalLM", "prompt": "{question} {patient.name}", "response": "{answer}"}


def told(kubectl: Kubectl, reason: str) -> Plain:
    """The run, once its condition Ready says this of its newest spec."""

    def look() -> Plain | None:
        body = kubectl.get(FFT, "run")
        ready = condition(body, "Ready")
        is_so = (ready.get("reason"), ready.get("observedGeneration")) == (reason, body["metadata"]["generation"])
        return body if is_so else None

    return until(look, f"the run is {reason}", seconds=30, explain=lambda: kubectl("get", FFT, "run", "-o", "yaml"))


def test_a_template_that_names_no_column_is_told_with_its_path_and_mended_by_an_edit(quarters: Kubectl) -> None:
    store = RUN_DOCUMENT["spec"]["store"] | {"credentialsSecretRef": {"name": "keys"}}
    quarters.apply(RUN_DOCUMENT | {"spec": RUN_DOCUMENT["spec"] | {"task": TASK, "store": store, "suspend": False}})

    invalid = told(quarters, "SpecInvalid")
    quarters("patch", FFT, "run", "--type=merge", "-p", json.dumps({"spec": {"rounds": {"count": 3}}}))
    still_invalid = told(quarters, "SpecInvalid")
    quarters("patch", FFT, "run", "--type=merge", "-p", json.dumps({"spec": {"task": {"prompt": "{question}"}}}))
    mended = told(quarters, "SecretMissing")
    refused = quarters.refused("patch", FFT, "run", "--type=merge", "-p", json.dumps({"spec": {"task": {"prompt": "{other}"}}}))

    assert (condition(invalid, "Valid")["status"], condition(still_invalid, "Valid")["status"]) == ("False", "False")
    assert "spec.task.prompt" in condition(invalid, "Valid")["message"]
    assert "patient.name" in condition(invalid, "Valid")["message"]
    assert condition(mended, "Valid")["status"] == "True"
    assert "spec.task may not change in a run" in refused
    assert quarters.list("jobs") == []
    assert "SpecInvalid" in {event["reason"] for event in quarters.list("events", fields="involvedObject.name=run")}


def test_a_run_whose_secret_is_missing_is_held_up_until_it_comes(quarters: Kubectl) -> None:
    store = RUN_DOCUMENT["spec"]["store"] | {"credentialsSecretRef": {"name": "keys"}}
    quarters("delete", FFT, "--all", "--timeout=60s")
    quarters.apply(RUN_DOCUMENT | {"spec": RUN_DOCUMENT["spec"] | {"store": store, "suspend": False}})
    missing = told(quarters, "SecretMissing")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"AWS_ACCESS_KEY_ID": "half"}}
    quarters.apply(secret)
    incomplete = told(quarters, "SecretIncomplete")

    assert "keys" in condition(missing, "Progressing")["message"]
    assert "AWS_SECRET_ACCESS_KEY" in condition(incomplete, "Progressing")["message"]
