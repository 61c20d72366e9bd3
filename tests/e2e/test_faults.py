"""What goes wrong at sites costs them their part, is told within a minute, and the run succeeds without them."""

from pathlib import Path
from typing import Final

import pytest
from cluster_user import Plain, condition
from deeds import created_at, ended_at, have_ended
from testcluster import outages
from wards import Ward

pytestmark = pytest.mark.e2e

NOWHERE: Final = {"spec": {"containers": [{"name": "trainer", "image": "registry.invalid/no/such:image"}]}}
NO_CLASS: Final = {"spec": {"priorityClassName": "no-such-class"}}
"""A pod of a class that does not exist is refused."""
NO_OPERATOR: Final = [{"key": "gpu", "operator": "Nope"}]
"""A toleration that no Job may have."""
WORDS: Final = {
    "bare": "VolumeMissing",
    "far": "ImageUnavailable",
    "huge": "CapacityTooLarge",
    "lost": "NoNode",
    "odd": "ApiRefused",
    "rude": "PodRefused",
    "torn": "MountFailed",
}
NO_FOLDER: Final = Path("/no/such/folder")
WITHIN_SECONDS: Final = 60


def the_good_and_the_lost(ward: Ward) -> list[Plain]:
    bare = ward.site("bare", "west")
    bare["spec"]["data"]["volume"] = {"persistentVolumeClaim": {"claimName": "no-such-claim"}}
    torn = ward.site("torn", "west")
    torn["spec"]["data"]["volume"] = {"persistentVolumeClaim": {"claimName": NO_FOLDER.name}}
    return [
        bare,
        torn,
        ward.site("odd", "west", podTemplate={"spec": {"tolerations": NO_OPERATOR}}),
        ward.site("rude", "west", podTemplate=NO_CLASS),
        ward.site("north"),
        ward.site("south"),
        ward.site("far", "west", podTemplate=NOWHERE),
        ward.site("huge", "west", capacity={"cpu": 1, "memory": "900Gi"}),
        ward.site("lost", "west", nodeSelector={"fedpipe.io/pool": "nowhere"}),
    ]


def killed_pod(ward: Ward, job: str) -> None:
    pod = ward.trainer_at_work(job)
    outages.kill_pod(pod["metadata"]["uid"])


def excluded(ward: Ward) -> dict[str, str]:
    found: dict[str, str] = ward.look().get("status", {}).get("excluded", {})
    return found


def seconds_to_the_first_word(ward: Ward) -> dict[str, float]:
    """From the run's creation until the first Job of each site that cannot was given up, where it has one at all."""
    began = created_at(ward.look())
    jobs = {site: ward.kubectl.list("jobs", f"fedpipe.io/site={site}") for site in WORDS}
    return {site: min(map(ended_at, found)) - began for site, found in jobs.items() if found}


def first_words(told: dict[str, str]) -> dict[str, str]:
    return {site: why.partition(":")[0] for site, why in told.items()}


def test_a_run_succeeds_without_the_sites_that_cannot_and_despite_a_killed_pod(ward: Ward) -> None:
    ward.kubectl.apply(ward.volume(NO_FOLDER), ward.claim(NO_FOLDER))
    ward.kubectl.apply(*the_good_and_the_lost(ward), ward.run(sites={"quorum": 0.2}, rounds={"count": 1}))
    left_out = ward.wait("the sites that cannot are left out", lambda: excluded(ward))
    killed_pod(ward, "toy-train-r1-north-a0")
    run = ward.wait_until_complete()
    ward.wait("every Job has ended", lambda: have_ended(ward.kubectl))
    took = seconds_to_the_first_word(ward)

    print(f"seconds until a site was given up: {took}")  # noqa: T201
    assert first_words(left_out) == WORDS
    assert took.keys() == WORDS.keys() - {"odd"}
    assert "nodes are available" in left_out["lost"], "in the words of the scheduler"
    assert max(took.values()) < WITHIN_SECONDS
    assert condition(run, "Profiled")["reason"] == "SitesLeftOut"
    assert all(word in condition(run, "Profiled")["message"] for word in WORDS.values())
    assert [(entry["updates"], entry["leftOut"]) for entry in run["status"]["history"]] == [("2/2", {})]
    assert condition(ward.kubectl.get("job", "toy-train-r1-north-a0"), "Failed")["status"] == "True"
    assert condition(ward.kubectl.get("job", "toy-train-r1-north-a1"), "Complete")["status"] == "True"
    assert {"RoundCompleted", "RoundsCompleted"} <= ward.events("FederatedFineTune", "toy").keys()
    for site in ("huge", "lost"):
        ready = condition(ward.of_site(site), "Ready")
        assert (ready["status"], ready["reason"]) == ("False", WORDS[site])
        assert WORDS[site] in ward.events("EdgeSite", site)
