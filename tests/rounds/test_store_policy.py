"""Which endpoints, buckets and prefixes the runs of a namespace may name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in_runs import a_run
from store_policies import CASES, LISTS, Case

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.store_policy import AWS, OTHERS, StorePolicy, StoreRule, parse_store_policy


def a_spec(source: str = "hf://org/model@main", **store: Any) -> FineTuneSpec:
    return a_run(
        store={"bucket": "fedpipe", "prefix": "runs/wards", "endpoint": "http://minio:9000"} | store, model={"source": source}
    ).spec


def problem(rule: StoreRule, spec: FineTuneSpec) -> str | None:
    return StorePolicy({"wards": rule}).problem("wards", spec)


def test_without_a_policy_a_run_may_name_any_store() -> None:
    assert StorePolicy().problem("wards", a_spec()) is None


def test_a_namespace_without_a_rule_has_that_of_the_others() -> None:
    policy = StorePolicy({"wards": StoreRule(), OTHERS: StoreRule(buckets=("theirs",))})

    assert policy.problem("wards", a_spec()) is None
    assert "the bucket fedpipe is none that the operator's policy allows here: theirs" in (policy.problem("labs", a_spec()) or "")


@pytest.mark.parametrize("allowed", ["http://minio:9000", "http://MINIO:9000/", "http://minio:09000"])
def test_the_same_endpoint_is_allowed_however_it_is_written(allowed: str) -> None:
    assert problem(StoreRule(endpoints=(allowed,)), a_spec()) is None


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("http://minio:9000", "https://minio:9000"),
        ("http://minio:9000", "http://minio:9001"),
        ("http://minio:9000", AWS),
        ("http://minio:9000", "http://minio"),
        ("http://minio.evil:9000", "http://minio:9000"),
        ("http://minio:9000@evil", "http://minio:9000"),
        ("http://evil\\@minio:9000", "http://minio:9000"),
        ("http://evil#@minio:9000", "http://minio:9000"),
        ("http://evil?@minio:9000", "http://minio:9000"),
        ("http://user@minio:9000", "http://minio:9000"),
        ("http://minio:9000?x", "http://minio:9000"),
    ],
)
def test_another_endpoint_is_not_allowed(endpoint: str, allowed: str) -> None:
    assert problem(StoreRule(endpoints=(allowed,)), a_spec(endpoint=endpoint)) is not None


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_a_default_port_may_be_left_out(scheme: str, port: int) -> None:
    assert problem(StoreRule(endpoints=(f"{scheme}://minio:{port}",)), a_spec(endpoint=f"{scheme}://minio")) is None


def test_the_endpoint_of_a_run_that_names_none_is_that_of_aws() -> None:
    spec = a_run(store={"bucket": "fedpipe"}).spec

    assert problem(StoreRule(endpoints=(AWS,)), spec) is None
    assert problem(StoreRule(endpoints=("http://minio:9000",)), spec) is not None


@pytest.mark.parametrize(
    ("prefix", "is_allowed"), [("runs", True), ("runs/wards", True), ("runs/", True), ("run", False), ("runs/w", False)]
)
def test_a_prefix_allows_its_folder_and_what_lies_in_it(prefix: str, is_allowed: bool) -> None:
    assert (problem(StoreRule(prefixes=(prefix,)), a_spec()) is None) == is_allowed


def test_the_whole_bucket_lies_in_no_prefix() -> None:
    assert problem(StoreRule(prefixes=("runs",)), a_spec(prefix="")) is not None


@pytest.mark.parametrize(
    ("source", "is_allowed"),
    [
        ("s3://fedpipe/runs/model", True),
        ("s3://other-team/runs/model", False),
        ("s3://fedpipe/models/toy", False),
        ("s3://fedpipe/runs-of-others/model", False),
        ("hf://org/model@main", True),
        ("pvc://other-team/model", True),
    ],
)
def test_a_model_in_a_bucket_is_held_to_the_same_lists(source: str, is_allowed: bool) -> None:
    assert (problem(StoreRule(buckets=("fedpipe",), prefixes=("runs",)), a_spec(source)) is None) == is_allowed


@given(st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=30))
def test_no_endpoint_is_taken_for_the_allowed_one_unless_it_is_written_like_it(host: str) -> None:
    spec = a_spec()
    other = spec.model_copy(update={"store": spec.store.model_copy(update={"endpoint": f"http://{host}"})})

    if problem(StoreRule(endpoints=("http://minio:9000",)), other) is None:
        assert host.lower().replace(":0", ":") == "minio:9000"


def test_a_policy_is_read_from_the_json_of_the_chart() -> None:
    assert parse_store_policy('{"*": {"buckets": ["a"]}}') == StorePolicy({"*": StoreRule(buckets=("a",))})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_operator_refuses_what_the_chart_s_admission_policy_refuses(case: Case) -> None:
    """In tests/e2e/test_store_guard.py, an API server decides the same cases."""
    policy, spec = parse_store_policy(json.dumps(LISTS)), a_run(**case.spec).spec
    of_tracker = policy.tracker_problem(case.namespace, case.tracking_uri) if case.tracking_uri else None
    problem = policy.problem(case.namespace, spec) or of_tracker or ""

    assert problem.startswith(case.problem)
    assert bool(problem) == bool(case.problem)
