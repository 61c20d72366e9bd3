"""The status of a site: every condition from the first reconcile on, also where the spec is invalid."""

from typing import Any

import pytest
from crds import default_status
from site_profiles import SMOLLM2, point
from smallest_documents import SITE_DOCUMENT
from stand_in_cluster import StandInApi
from stand_in_runs import a_run

from fedpipe_operator.api.conditions import SiteCondition
from fedpipe_operator.cluster import SiteReconciler, SiteView
from fedpipe_operator.cluster.api import SITES
from fedpipe_operator.cluster.site_reconciler import measured_capacities
from fedpipe_operator.cluster.status_writer import ClusterStatusWriter
from fedpipe_operator.rounds import Observed
from fedpipe_operator.sites import Node
from fedpipe_trainer.contract import EnergySource, Measured, Outcome, ProfileResult, RunRef


def clock() -> float:
    return 1_000_000.0


def observed(allowed: tuple[str, ...] = (), nodes: tuple[Node, ...] | None = None, **spec: Any) -> tuple[dict[str, str], int]:
    """Status and reason of each condition of a new site, after its first reconcile; the observed generation."""
    api = StandInApi(clock)
    document = SITE_DOCUMENT | {"spec": SITE_DOCUMENT["spec"] | spec, "status": default_status("EdgeSite")}
    body = api._put(SITES, "default", "ward", document)
    SiteReconciler(ClusterStatusWriter(api, clock), clock, allowed).reconcile(SiteView(body=body, nodes=nodes, active_runs=0))  # type: ignore[arg-type]
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


@pytest.mark.parametrize(("autoscaled", "expected"), [(False, "False NoNode"), (True, "True WaitsForNode")])
def test_a_site_whose_pool_has_no_node_is_ready_if_an_autoscaler_adds_one(*, autoscaled: bool, expected: str) -> None:
    conditions, _ = observed(nodes=(), autoscaled=autoscaled, nodeSelector={"pool": "from-zero"})

    assert conditions == {"Valid": "True SpecValid", "CapacityMet": expected, "Ready": expected}


@pytest.mark.parametrize(
    ("allowed", "ready"),
    [(("low",), "False PriorityClassNotAllowed"), ((), "False PriorityClassNotAllowed"), (("low", "high"), "True NodesNotSeen")],
)
def test_a_site_of_a_priority_class_that_the_settings_do_not_name_is_not_ready(allowed: tuple[str, ...], ready: str) -> None:
    conditions, _ = observed(allowed, podTemplate={"spec": {"priorityClassName": "high"}})

    assert conditions == {"Valid": "True SpecValid", "CapacityMet": "True NodesNotSeen", "Ready": ready}


def test_a_site_that_an_older_crd_let_add_more_to_its_pods_is_told_so_and_is_not_used() -> None:
    conditions, _ = observed(podTemplate={"spec": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}})

    assert conditions == {"Valid": "False SpecInvalid", "CapacityMet": "Unknown Pending", "Ready": "False SpecInvalid"}


def a_profile(**measured: Any) -> ProfileResult:
    return ProfileResult(
        run=RunRef(namespace="default", name="run", uid="u"),
        site="site-a",
        round=0,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(device="cpu"),
        base=SMOLLM2,
        train_samples=100,
        mean_tokens=50.0,
        throughput=(point(bits=16, batch=8, speed=500.0),),
        **measured,
    )


def measured_at_site_a(profile: ProfileResult) -> dict[str, Any]:
    run = a_run()
    capacity = measured_capacities(run, Observed(profiles={"site-a": {0: profile}}))["site-a"]
    return capacity.model_dump(exclude_none=True)


def test_what_a_profile_measured_is_in_the_status_of_its_site() -> None:
    rates = {"up_bits_per_second": 9e7, "down_bits_per_second": 9e8, "memory_bytes_per_second": 2.4e10}
    measured = measured_at_site_a(a_profile(**rates, mfu=0.41239, tokens_per_joule=6.0, energy_source=EnergySource.RAPL))

    assert (measured["bandwidth_up"], measured["bandwidth_down"], measured["memory_bandwidth"]) == (90_000_000, 900_000_000, 24_000_000_000)
    assert (measured["mfu"], measured["tokens_per_joule"], measured["energy_source"]) == (0.4124, 6.0, "RAPL")
    assert measured["granularity"] > 0


def test_what_a_profile_could_not_measure_is_absent_and_not_zero() -> None:
    measured = measured_at_site_a(a_profile().model_copy(update={"throughput": ()}))

    assert set(measured) == {"run", "device", "memory", "train_samples", "validation_samples"}
