"""The chart's admission policy refuses the runs that the operator's code refuses by the same lists, with the same words, and no others."""

import json
from collections.abc import Iterator
from typing import Final

import pytest
from charts import rendered
from cluster_user import FFT, Kubectl, KubectlError, Plain, list_manifest, wait_until
from installed_operator import Operator, namespace_manifest
from smallest_documents import RUN_DOCUMENT
from store_policies import CASES, LISTS, NAMESPACES, Case

from fedpipe_operator.api.meta import LABEL_OPERATOR_CLASS

pytestmark = pytest.mark.e2e

PREFIX: Final = "e2e-guard-"
"""Of the namespaces of the table."""
OLDER: Final = Case("buckets", bucket="other-team")
"""A run that was created before the policy, which forbids it."""
OLDER_PROBLEM: Final = "the bucket other-team is none that the operator's policy allows here"


def in_namespace(name: str) -> Kubectl:
    return Kubectl(f"{PREFIX}{name}")


def run_of(case: Case, name: str = "run") -> Plain:
    spec = {field: value for field, value in (RUN_DOCUMENT["spec"] | case.spec).items() if value is not None}
    return RUN_DOCUMENT | {"metadata": {"name": name}, "spec": spec}


def the_guard() -> list[Plain]:
    """The policy and its binding, as the chart renders them for the table's namespaces."""
    lists = {name if name == "*" else f"{PREFIX}{name}": rule for name, rule in LISTS.items()}
    served = [f"{PREFIX}{name}" for name in NAMESPACES]
    objects = rendered({"storePolicy": lists, "namespaces": served}, name="guard", namespace="e2e-guard")
    return [one for one in objects if one["metadata"]["name"].endswith(".run-stores")]


@pytest.fixture(scope="module")
def guarded(operator: Operator) -> Iterator[None]:
    """The table's namespaces with a run that its lists forbid, and then the policy, once it is enforced."""
    del operator
    cluster, guard = Kubectl("default"), the_guard()
    assert [one["kind"] for one in guard] == ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]
    cluster.apply(*(namespace_manifest(in_namespace(name).namespace) for name in NAMESPACES))
    in_namespace(OLDER.namespace).apply(run_of(OLDER, "older"))
    try:
        cluster.apply(*guard)
        wait_until(lambda: refusal(OLDER), "the policy is enforced", seconds=30)
        yield
    finally:
        for one in guard:
            cluster("delete", one["kind"], one["metadata"]["name"], "--ignore-not-found")
        in_namespace(OLDER.namespace)("delete", FFT, "--all", "--timeout=90s")
        cluster("delete", "namespace", *(in_namespace(name).namespace for name in NAMESPACES), "--wait=false")


def of_class(run: Plain, name: str) -> Plain:
    """This run, as one of another class of operators than the policy's."""
    return run | {"metadata": run["metadata"] | {"labels": {LABEL_OPERATOR_CLASS: name}}}


def refusal(case: Case) -> str:
    """What the API server says to the run of this case; empty if it accepts it."""
    return refusal_of(case, run_of(case))


def refusal_of(case: Case, run: Plain) -> str:
    """What it says to this run in the namespace of the case."""
    try:
        in_namespace(case.namespace)("create", "--dry-run=server", "-f", "-", given=list_manifest(run))
    except KubectlError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("guarded")
def test_a_run_is_refused_by_the_api_server_where_the_operator_would_refuse_it_and_with_its_words(case: Case) -> None:
    message = refusal(case)

    assert case.problem in message
    assert bool(message) == bool(case.problem)
    assert not message or "denied request" in message, message


@pytest.mark.usefixtures("guarded")
def test_a_run_that_was_created_before_the_policy_can_be_suspended_and_labelled_and_deleted() -> None:
    kubectl = in_namespace(OLDER.namespace)
    changes = {"spec": {"suspend": False}}, {"metadata": {"labels": {"a": "b"}}}, {"metadata": {"finalizers": []}}

    for change in changes:
        kubectl("patch", FFT, "older", "--type=merge", "--dry-run=server", "-p", json.dumps(change))
    kubectl("delete", FFT, "older", "--dry-run=server")


@pytest.mark.usefixtures("guarded")
def test_a_run_of_another_class_is_left_alone_until_it_comes_to_the_one_of_the_policy() -> None:
    kubectl, run = in_namespace(OLDER.namespace), of_class(run_of(OLDER, "of-canaries"), "canary")
    to_ours = json.dumps({"metadata": {"labels": {LABEL_OPERATOR_CLASS: None}}})

    assert refusal_of(OLDER, run) == ""
    kubectl.apply(run)
    kubectl("patch", FFT, "of-canaries", "--type=merge", "--dry-run=server", "-p", json.dumps({"metadata": {"labels": {"a": "b"}}}))
    assert OLDER_PROBLEM in kubectl.rejection("patch", FFT, "of-canaries", "--type=merge", "--dry-run=server", "-p", to_ours)


@pytest.mark.usefixtures("guarded")
def test_a_namespace_that_is_not_served_is_left_alone() -> None:
    given = list_manifest(run_of(OLDER, "unguarded"))

    Kubectl("default")("create", "--dry-run=server", "-f", "-", given=given)
