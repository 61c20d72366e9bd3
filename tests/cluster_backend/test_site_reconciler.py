"""The status of a site: every condition from the first reconcile on, also where the spec is invalid."""

from typing import Any

from crds import default_status
from smallest_documents import SITE_DOCUMENT
from stand_in_cluster import StandInApi

from fedpipe_operator.api.conditions import SiteCondition
from fedpipe_operator.cluster import SiteReconciler, SiteView
from fedpipe_operator.cluster.api import SITES
from fedpipe_operator.cluster.status_writer import ClusterStatusWriter


def clock() -> float:
    return 1_000_000.0


def observed(**spec: Any) -> tuple[dict[str, str], int]:
    """Status and reason of each condition of a new site, after its first reconcile; the observed generation."""
    api = StandInApi(clock)
    document = SITE_DOCUMENT | {"spec": SITE_DOCUMENT["spec"] | spec, "status": default_status("EdgeSite")}
    body = api._put(SITES, "default", "ward", document)
    SiteReconciler(ClusterStatusWriter(api, clock), clock).reconcile(SiteView(body=body, nodes=None, active_runs=0))  # type: ignore[arg-type]
    status = api.all(SITES)[0]["status"]
    return {one["type"]: f"{one['status']} {one['reason']}" for one in status["conditions"]}, status["observedGeneration"]


def test_a_new_site_has_every_condition() -> None:
    conditions, generation = observed()

    assert conditions == {"Valid": "True SpecValid", "CapacityMet": "True NodesNotSeen", "Ready": "True NodesNotSeen"}
    assert list(conditions) == list(SiteCondition)
    assert generation == 1


def test_the_capacity_of_a_new_site_with_an_invalid_spec_is_unknown() -> None:
    conditions, _ = observed(maxConcurrentJobs=0)

    assert conditions == {"Valid": "False SpecInvalid", "CapacityMet": "Unknown Pending", "Ready": "False SpecInvalid"}
