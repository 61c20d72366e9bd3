"""Faulty sites are left out with a reason within a minute, and the run succeeds without them."""

from pathlib import Path
from typing import Final

import pytest
from cluster_user import Plain, condition
from fleet_namespace import FleetNamespace
from job_history import all_jobs_finished, created_at, finished_at
from testcluster import outages

pytestmark = pytest.mark.e2e

NO_CLASS: Final = "no-such-class"
"""Admission rejects a pod of a runtime class that does not exist, and the operator a priority class that its settings do not name."""
NO_MAP: Final = {"caConfigMap": {"name": "no-such-map"}}
BAD_LABEL: Final = {"labels": {"not a key": "x"}}
"""The API server rejects a Job with this label."""
REASONS: Final = {
    "bare": "VolumeMissing",
    "eager": "PriorityClassNotAllowed",
    "far": "MountFailed",
    "huge": "CapacityTooLarge",
    "lost": "NoNode",
    "odd": "ApiRefused",
    "rude": "PodRefused",
    "torn": "MountFailed",
}
NO_FOLDER: Final = Path("/no/such/folder")
DEADLINE: Final = 600
"""Seconds of the round: a busy machine takes a minute for what an idle one does in ten seconds, and no faulty site waits for this."""


def good_and_faulty_sites(namespace: FleetNamespace) -> list[Plain]:
    memory_only = {"memory": "1Gi"}  # their pods never run, so they need not wait for a free processor
    bare = namespace.site("bare", "west", capacity=memory_only)
    bare["spec"]["data"]["volume"] = {"persistentVolumeClaim": {"claimName": "no-such-claim"}}
    torn = namespace.site("torn", "west", capacity=memory_only)
    torn["spec"]["data"]["volume"] = {"persistentVolumeClaim": {"claimName": NO_FOLDER.name}}
    return [
        bare,
        torn,
        namespace.site("odd", "west", capacity=memory_only, podTemplate=BAD_LABEL),
        namespace.site("rude", "west", capacity=memory_only, runtimeClassName=NO_CLASS),
        namespace.site("eager", "west", capacity=memory_only, podTemplate={"spec": {"priorityClassName": NO_CLASS}}),
        namespace.site("north"),
        namespace.site("south"),
        namespace.site("far", "west", capacity=memory_only, podTemplate=NO_MAP),
        namespace.site("huge", "west", capacity={"cpu": 1, "memory": "900Gi"}),
        namespace.site("lost", "west", nodeSelector={"fedpipe.io/pool": "nowhere"}),
    ]


def kill_pod_of(namespace: FleetNamespace, job: str) -> None:
    pod = namespace.wait_for_trainer(job)
    outages.kill_pod(pod["metadata"]["uid"])


def excluded(namespace: FleetNamespace) -> dict[str, str]:
    found: dict[str, str] = namespace.get_run().get("status", {}).get("excluded", {})
    return found


def seconds_to_first_failure(namespace: FleetNamespace) -> dict[str, float]:
    """From the run's creation until the first Job of each faulty site ended; sites without a Job are missing."""
    start = created_at(namespace.get_run())
    jobs = {site: namespace.kubectl.list("jobs", f"fedpipe.io/site={site}") for site in REASONS}
    return {site: min(map(finished_at, found)) - start for site, found in jobs.items() if found}


def reasons_of(messages: dict[str, str]) -> dict[str, str]:
    return {site: message.partition(":")[0] for site, message in messages.items()}


def test_a_run_succeeds_without_its_faulty_sites_and_despite_a_killed_pod(namespace: FleetNamespace) -> None:
    namespace.kubectl.apply(namespace.volume(NO_FOLDER), namespace.claim(NO_FOLDER))
    namespace.kubectl.apply(
        *good_and_faulty_sites(namespace), namespace.run(sites={"quorum": 0.2}, rounds={"count": 1, "deadline": f"{DEADLINE}s"})
    )
    left_out = namespace.wait("the faulty sites are left out", lambda: excluded(namespace))
    kill_pod_of(namespace, "toy-train-r1-north-a0")
    run = namespace.wait_until_complete()
    namespace.wait("every Job has finished", lambda: all_jobs_finished(namespace.kubectl))
    seconds = seconds_to_first_failure(namespace)

    print(f"seconds until the first failure of a site: {seconds}")  # noqa: T201
    assert reasons_of(left_out) == REASONS
    assert seconds.keys() == REASONS.keys() - {"odd", "eager"}
    assert "nodes are available" in left_out["lost"], "the message is the scheduler's"
    assert max(seconds.values()) < DEADLINE
    assert condition(run, "Profiled")["reason"] == "SitesLeftOut"
    assert all(word in condition(run, "Profiled")["message"] for word in REASONS.values())
    assert [(entry["updates"], entry["leftOut"]) for entry in run["status"]["history"]] == [("2/2", {})]
    assert condition(namespace.job("toy-train-r1-north-a0"), "Failed")["status"] == "True"
    assert condition(namespace.job("toy-train-r1-north-a1"), "Complete")["status"] == "True"
    assert {"RoundCompleted", "RoundsCompleted"} <= namespace.events("FederatedFineTune", "toy").keys()
    for site in ("huge", "lost"):
        ready = condition(namespace.get_site(site), "Ready")
        assert (ready["status"], ready["reason"]) == ("False", REASONS[site])
        assert REASONS[site] in namespace.events("EdgeSite", site)
