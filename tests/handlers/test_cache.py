"""Views of the cache: everything that a reconcile of a run or of a site needs."""

from dataclasses import replace
from typing import Any

import pytest
from cached_objects import NODE, a_body, a_cache, a_job, in_wards, selecting
from stand_in_runs import a_site

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.handlers.cache import RunSummary, labels_of, run_summary
from fedpipe_operator.handlers.enqueue import Key


def test_a_runs_view_has_its_own_jobs_and_those_of_others_at_its_sites() -> None:
    mine, others = a_job("mine", "north"), a_job("other", "north")
    north, south = in_wards(a_site("north"), study="triage"), in_wards(a_site("south"), study="another")
    view = a_cache(
        run_bodies={("wards", "mine"): [a_body("mine", spec=selecting(study="triage"))]},
        sites={("wards", ""): [north, south], ("wards", "study=triage"): [north], ("wards", "study=another"): [south]},
        jobs_of_runs={("wards", "uid-mine"): [mine]},
        jobs_at_sites={("wards", "north"): [mine, others], ("wards", "south"): [others]},
        nodes={None: [NODE]},
    ).run_view(Key("run", "wards", "mine"))

    assert view is not None
    assert view.sites == [north]
    assert view.jobs == {mine.job.name: mine}
    assert view.at_sites == {"north": (mine, others)}
    assert view.nodes == (NODE,)


def test_a_runs_view_has_the_private_claims_of_every_site_of_its_namespace_of_an_invalid_one_too() -> None:
    def volume(claim: str) -> dict[str, Any]:
        return {"persistentVolumeClaim": {"claimName": claim}}

    bodies = {
        "north": {"data": {"volume": volume("north-notes")}, "cache": volume("north-cache"), "modelClaims": ["models"]},
        "south": {"data": {"volume": volume("south-notes")}, "podTemplate": {"spec": {"hostNetwork": True}}},
        "empty": {},
        "odd": {"data": {"volume": {"hostPath": {}}}, "cache": None},
    }
    elsewhere = a_body("north", spec={"data": {"volume": volume("others")}})
    view = a_cache(
        run_bodies={("wards", "mine"): [a_body("mine", spec=selecting())]},
        site_bodies={("wards", name): [a_body(name, spec=spec)] for name, spec in bodies.items()} | {("labs", "north"): [elsewhere]},
    ).run_view(Key("run", "wards", "mine"))

    assert view is not None
    assert view.private_claims == {"north-notes", "north-cache", "south-notes"}


def test_a_run_without_a_selector_takes_all_sites_of_its_namespace_and_one_with_two_labels_those_with_both() -> None:
    north, south = in_wards(a_site("north"), study="triage", floor="1"), in_wards(a_site("south"), study="triage", floor="2")
    found: dict[tuple[str, str], list[EdgeSite]] = {}
    for site in (north, south):
        for label in labels_of(site.metadata.labels):
            found.setdefault(("wards", label), []).append(site)

    def taken(**labels: str) -> list[str]:
        bodies = {("wards", "mine"): [a_body("mine", spec=selecting(**labels))]}
        view = a_cache(run_bodies=bodies, sites=found).run_view(Key("run", "wards", "mine"))
        assert view is not None
        return [site.name for site in view.sites]

    assert taken() == ["north", "south"]
    assert taken(study="triage", floor="2") == ["south"]
    assert taken(study="other") == []


def test_a_sites_view_counts_the_runs_that_take_it_and_are_not_over() -> None:
    summaries = [
        RunSummary({}, is_over=False),
        RunSummary({"study": "triage"}, is_over=True),
        RunSummary({"study": "other"}, is_over=False),
    ]
    view = a_cache(
        site_bodies={("wards", "north"): [a_body("north", labels={"study": "triage"})]}, run_summaries={"wards": summaries}
    ).site_view(Key("site", "wards", "north"))

    assert view is not None
    assert (view.active_runs, view.nodes) == (1, None)


def test_what_is_gone_has_no_view() -> None:
    assert a_cache().run_view(Key("run", "wards", "mine")) is None
    assert a_cache().site_view(Key("site", "wards", "north")) is None


@pytest.mark.parametrize(("kind", "over"), [("Complete", True), ("Failed", True), ("Progressing", False)])
def test_a_summary_says_what_a_run_selects_and_whether_it_is_over(kind: str, over: bool) -> None:
    body = a_body("mine", spec=selecting(study="triage"), status={"conditions": [{"type": kind, "status": "True"}]})

    assert run_summary(body) == RunSummary({"study": "triage"}, is_over=over)


def test_a_run_of_another_controller_counts_at_no_site() -> None:
    body = a_body("mine", spec=selecting(study="triage") | {"managedBy": "kueue.x-k8s.io/multikueue"})

    assert run_summary(body).is_over


def test_the_names_of_jobs_and_nodes_are_checked_too() -> None:
    jobs, nodes = [a_job("mine", "north", uid="uid-job")], [replace(NODE, uid="uid-node")]

    known = a_cache(jobs_of_runs={("wards", "uid-mine"): jobs}, nodes={None: nodes})

    assert known.names() == {"uid-job": "mine-train-north-a0", "uid-node": "one"}


def test_of_two_objects_of_a_name_the_newer_one_counts() -> None:
    older, newer = a_body("mine", uid="before", resourceVersion="9"), a_body("mine", uid="now", resourceVersion="10")

    view = a_cache(run_bodies={("wards", "mine"): [newer, older]}).run_view(Key("run", "wards", "mine"))

    assert view is not None
    assert view.body["metadata"]["uid"] == "now"
