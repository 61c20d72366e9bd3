"""A claim is mounted as a model if the site names it for that, and never one that holds the data or the cache of a site."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crds import openapi_schema
from smallest_documents import SITE_DOCUMENT
from stand_in_runs import World, a_run, a_site

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.api.parse import parse_object
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.consent import denials
from fedpipe_operator.rounds.model_claims import export_problem, private_claims

CACHE = {"persistentVolumeClaim": {"claimName": "site-b-cache"}}


def of_claim(claim: str, *sites: EdgeSite, **spec: Any) -> Run:
    return a_run(list(sites), model={"source": f"pvc://{claim}/toy"}, **spec)


def test_a_runs_author_cannot_mount_a_sites_data_claim_as_a_model(tmp_path: Path) -> None:
    world = World(of_claim("site-b", a_site("site-a"), a_site("site-b", cache=CACHE)), tmp_path)
    world.settle()
    world.now += 601
    world.settle()

    assert world.backend.started == []
    assert world.conditions()["Failed"] == "TooFewSites"
    assert "site-a: ModelClaimNotAllowed: spec.model.source mounts the claim site-b" not in world.message("Failed"), "it is not to be added"
    assert "site-a: ModelClaimNotAllowed: the claim site-b of spec.model.source holds the data or the cache of a site" in world.message(
        "Failed"
    )


@pytest.mark.parametrize("claim", ["site-b", "site-b-cache", "elsewhere-notes"])
def test_a_claim_that_holds_a_sites_data_or_cache_is_mounted_for_no_model_even_if_a_site_names_it(claim: str) -> None:
    run = of_claim(claim, a_site("site-a", modelClaims=[claim]), a_site("site-b", cache=CACHE))
    private = replace(run, private_claims=frozenset({"elsewhere-notes"}))

    assert denials(private).keys() == {"site-a", "site-b"}
    assert all("holds the data or the cache of a site" in why for why in denials(private).values())
    assert "holds the data or the cache of a site" in export_problem(private)


def test_a_site_that_does_not_name_the_claim_is_left_out_before_any_job(tmp_path: Path) -> None:
    world = World(
        of_claim("models", a_site("site-a"), a_site("site-b"), a_site("site-c", modelClaims=["others"]), sites={"quorum": 0.6}), tmp_path
    )
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.excluded["site-c"] == (
        "ModelClaimNotAllowed: spec.model.source mounts the claim models, and modelClaims of the site names others: "
        "name one of these, or have it added"
    )
    assert not [name for name in world.backend.started if "site-c" in name]


def test_without_a_list_a_site_allows_no_claim_and_every_model_from_elsewhere() -> None:
    site = a_site("site-a", modelClaims=[])

    assert denials(of_claim("models", site))["site-a"].startswith("ModelClaimNotAllowed: ")
    assert denials(a_run([site], model={"source": "hf://org/name@main"})) == {}


def test_an_export_which_is_at_no_site_mounts_what_one_of_the_runs_sites_allows(tmp_path: Path) -> None:
    world = World(of_claim("models", a_site("site-a"), a_site("site-b")), tmp_path)
    world.work_until("export")
    allowed = export_problem(world.run)

    def after(*sites: EdgeSite, **changes: Any) -> str:
        return export_problem(replace(world.run, sites=sites, **changes))

    assert allowed == ""
    assert after(a_site("site-a", modelClaims=[]), a_site("site-b")) == ""
    assert after(a_site("site-a", modelClaims=[])).startswith("ModelClaimNotAllowed: spec.model.source mounts the claim models")
    assert after() == "ModelClaimNotAllowed: the run has no site whose modelClaims names models"
    assert "holds the data or the cache" in after(a_site("site-a"), private_claims=frozenset({"models"}))


def test_an_export_whose_model_no_site_allows_any_more_is_not_started(tmp_path: Path) -> None:
    world = World(of_claim("models", a_site("site-a"), a_site("site-b")), tmp_path)
    world.work_until("evaluate")
    for name in world.backend.active_jobs():
        world.backend.work(name)
    world.run = replace(world.run, sites=())
    world.settle()

    assert world.conditions()["Failed"] == "ExportFailed"
    assert world.message("Failed") == "ModelClaimNotAllowed: the run has no site whose modelClaims names models"
    assert not [name for name in world.backend.started if "toy-export" in name]


def test_a_site_may_not_name_its_own_data_or_cache_as_models() -> None:
    for claim in ("rows", "site-b-cache"):
        document = SITE_DOCUMENT | {"spec": SITE_DOCUMENT["spec"] | {"cache": CACHE, "modelClaims": ["models", claim]}}
        _, (problem,) = parse_object(document, EdgeSite)

        assert problem == f"spec: modelClaims names {claim}, which holds the site's data or cache: keep models in a claim of their own"
    rules = [rule["rule"] for rule in openapi_schema("EdgeSite")["properties"]["spec"]["x-kubernetes-validations"]]
    assert any("in self.modelClaims" in rule for rule in rules)


def test_claims_of_another_namespace_are_other_claims() -> None:
    site = a_site("site-b", cache=CACHE)

    assert private_claims([site], "default") == {"site-b", "site-b-cache"}
    assert private_claims([site], "others") == frozenset()
