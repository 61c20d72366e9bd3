"""The configuration of kube-state-metrics shows what the objects say, and what the operator's own metrics show of them."""

from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from crds import ROOT, default_status, openapi_schema
from custom_resource_state import Configuration, Resource, scrape_of
from scrapes import a_site_body
from stand_in_cluster import KubeWorld

from fedpipe_operator.api import ConditionType
from fedpipe_operator.api.progress import Stage
from fedpipe_operator.metrics.catalogue import CATALOGUE
from fedpipe_operator.metrics.object_series import run_series, site_series

VALUES: Final[dict[str, Any]] = yaml.safe_load((ROOT / "examples/kubernetes/monitoring/kube-state-metrics.yaml").read_text())
CONFIGURATION: Final = Configuration.model_validate(VALUES["customResourceState"]["config"])
RUNS, SITES = CONFIGURATION.spec.resources
API: Final = {"apiVersion": "fedpipe.io/v1alpha1"}


def with_meta(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return API | {"kind": kind} | body | {"metadata": body["metadata"] | {"creationTimestamp": "2026-01-01T00:00:00Z"}}


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """The object of a run that trains its second round."""
    world = KubeWorld(tmp_path)
    world.work_until("train-r2")
    return with_meta(world.body(), "FederatedFineTune")


def named(name: str) -> str:
    return f"kube_fedpipe_{name}"


def test_a_run_shows_its_conditions_stage_round_and_progress(run: dict[str, Any]) -> None:
    scrape = scrape_of(CONFIGURATION, run)

    assert scrape.by("condition", named("run_status_condition"), status="True") == {
        "Valid": 1,
        "Profiled": 1,
        "Planned": 1,
        "Progressing": 1,
    }
    assert len(scrape.named(named("run_status_condition"))) == 3 * len(run["status"]["conditions"])
    assert scrape.by("stage", named("run_stage"), namespace="default", run="toy") == {"Training": 1}
    assert scrape.by("run", named("run_round")) == {"toy": 2}
    assert scrape.by("run", named("run_rounds")) == {"toy": 2}
    assert scrape.by("run", named("run_progress_percentage")) == {"toy": run["status"]["progress"]["percentage"]}
    assert scrape.by("reason", named("run_ready_info")) == {"Training": 1}
    assert scrape.by("run", named("run_created")) == {"toy": 1767225600}


def test_both_ways_to_scrape_tell_the_same_of_a_run(run: dict[str, Any]) -> None:
    ours = {(one.name, one.labels): float(one.value) for one in run_series(run, None)}
    scrape = scrape_of(CONFIGURATION, run)

    conditions = {labels[2:]: value for (name, labels), value in ours.items() if name == "run_status_condition"}
    assert conditions == {
        (dict(labels)["condition"], dict(labels)["status"].lower()): value
        for (_, labels), value in scrape.named(named("run_status_condition")).items()
    }
    updates = {labels[2]: value for (name, labels), value in ours.items() if name == "run_updates" and value}
    assert scrape.by("state", named("run_updates")) == updates
    metric = run["status"]["metric"]["name"]
    assert [*scrape.named(named("run_metric"), metric=metric).values()] == [ours["run_metric", ("default", "toy", metric)]]


def test_both_ways_to_scrape_tell_the_same_of_a_site() -> None:
    site = with_meta(a_site_body("ward"), "EdgeSite")
    ours = {one.labels[2:]: float(one.value) for one in site_series(site, pending=0, running=0) if one.name == "site_status_condition"}

    found = scrape_of(CONFIGURATION, site).named(named("site_status_condition"), site="ward")

    assert ours == {(dict(labels)["condition"], dict(labels)["status"].lower()): value for (_, labels), value in found.items()}
    assert ours != {}


def test_an_object_that_nobody_has_observed_is_shown_as_such() -> None:
    run = with_meta(
        {"metadata": {"namespace": "a", "name": "b"}, "spec": {}, "status": default_status("FederatedFineTune")}, "FederatedFineTune"
    )

    scrape = scrape_of(CONFIGURATION, run)

    assert scrape.by("status", named("run_status_condition"), condition="Ready") == {"Unknown": 1}
    assert not scrape.has(named("run_progress_percentage"))


@pytest.mark.parametrize("resource", [RUNS, SITES], ids=["runs", "sites"])
def test_every_field_that_is_read_is_one_of_the_crd(resource: Resource) -> None:
    schema = openapi_schema(resource.group_version_kind.kind)
    paths = [metric.each.body.path for metric in resource.metrics]
    paths += [path for metric in resource.metrics for path in metric.labels_from_path.values()]
    paths += [
        (*metric.each.body.path, *path)
        for metric in resource.metrics
        for path in (*metric.each.body.labels_from_path.values(), getattr(metric.each.body, "value_from", ()))
    ]

    assert [path for path in paths if path[0] != "metadata" and not is_in(schema, path)] == []


def is_in(schema: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Whether objects of this schema may have a field at this path; it may go through a list."""
    for part in path:
        if part.startswith("["):
            continue
        schema = schema.get("items", schema)
        if part not in schema.get("properties", {}):
            return False
        schema = schema["properties"][part]
    return True


def test_the_lists_of_states_are_complete() -> None:
    lists = {metric.name: metric.each.state_set.list for metric in (*RUNS.metrics, *SITES.metrics) if metric.each.state_set}

    assert set(lists["run_stage"]) == set(Stage)
    assert set(lists["run_status_condition"]) == set(lists["site_status_condition"]) == {"True", "False", "Unknown"}
    assert "Ready" in set(ConditionType)  # of which the reason is shown


def test_no_metric_has_a_name_of_the_operators_own() -> None:
    names = {f"{resource.metric_name_prefix}_{metric.name}" for resource in (RUNS, SITES) for metric in resource.metrics}

    assert names.isdisjoint(metric.name for metric in CATALOGUE)
    assert len(names) == len(RUNS.metrics) + len(SITES.metrics)


def test_its_rules_let_it_read_these_kinds_and_change_nothing() -> None:
    rules = VALUES["rbac"]["extraRules"]

    assert {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]} == {
        ("fedpipe.io", "federatedfinetunes"),
        ("fedpipe.io", "edgesites"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
    }
    assert {verb for rule in rules for verb in rule["verbs"]} == {"list", "watch"}
