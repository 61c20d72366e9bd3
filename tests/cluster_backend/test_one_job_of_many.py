"""What the API server refuses for one Job costs that Job alone: the others of the run go on in the same reconcile."""

from contextlib import suppress
from pathlib import Path

import pytest
from stand_in_cluster import KubeWorld
from stand_in_runs import a_run

from fedpipe_operator.cluster.api_errors import error_of_response, error_without_response
from fedpipe_operator.errors import FedPipeError, TransientError

STUCK = {"containerStatuses": [{"state": {"waiting": {"reason": "InvalidImageName", "message": "no image"}}}]}
REFUSALS = {422: "spec.activeDeadlineSeconds: Invalid value", 403: "admission webhook denied the request", 500: "failed calling webhook"}


def refusal(status: int, what: str = "PATCH jobs default/one") -> FedPipeError:
    """The error of an answer about one object."""
    return error_of_response(status, REFUSALS.get(status, "no").encode(), what, "")


def with_stuck_pods(folder: Path, **spec: object) -> KubeWorld:
    """A run of three sites none of whose pods can start."""
    world = KubeWorld(folder, a_run(3, **spec))
    world.reconcile()
    for site in "abc":
        world.pod(f"toy-profile-site-{site}-a0", STUCK)
    world.now += 45
    return world


@pytest.mark.parametrize("status", REFUSALS)
def test_a_job_that_cannot_be_ended_keeps_none_of_the_others(tmp_path: Path, status: int) -> None:
    world = with_stuck_pods(tmp_path)
    refused = f"merge jobs {world.object_name('toy-profile-site-a-a0')}"
    world.api.trouble[refused] = refusal(status)

    with pytest.raises(TransientError, match=REFUSALS[status]):
        world.reconcile()

    assert [job.job.name for job in world.jobs() if job.given_up] == ["toy-profile-site-b-a0", "toy-profile-site-c-a0"]
    with pytest.raises(TransientError, match=REFUSALS[status]):
        world.reconcile()
    assert world.active_jobs() == ["toy-profile-site-a-a0", "toy-profile-site-b-a1", "toy-profile-site-c-a1"]
    del world.api.trouble[refused]
    world.reconcile()
    assert "toy-profile-site-a-a0" not in world.active_jobs()


def test_a_job_whose_pod_cannot_be_looked_at_keeps_none_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_stuck_pods(tmp_path)
    first, find = world.object_name("toy-profile-site-a-a0"), world.api.find

    def find_no_pod_of_the_first(*of: object, **by: object) -> object:
        if by.get("labels") == {"batch.kubernetes.io/job-name": first}:
            raise refusal(500)
        return find(*of, **by)  # type: ignore[arg-type]

    monkeypatch.setattr(world.api, "find", find_no_pod_of_the_first)
    with pytest.raises(TransientError, match="failed calling webhook"):
        world.reconcile()

    assert [job.job.site for job in world.jobs() if job.given_up] == ["site-b", "site-c"]


def test_a_site_whose_jobs_cannot_be_made_keeps_no_other_from_its_work(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.api.failing["site-a"] = refusal(500, "POST jobs default/")

    with pytest.raises(TransientError, match="failed calling webhook"):
        world.reconcile()

    assert world.active_jobs() == ["toy-profile-site-b-a0", "toy-profile-site-c-a0"]
    world.api.failing.clear()
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_job_that_cannot_be_deleted_keeps_none_of_the_others_and_not_the_end_of_its_run(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(3, sites={"quorum": 0.3}, rounds={"count": 1, "deadline": "10m"}))
    world.work_until("train-r1")
    world.work("toy-train-r1-site-c-a0")
    late = world.object_name("toy-train-r1-site-a-a0")
    world.api.trouble[f"delete jobs {late}"] = refusal(403, "DELETE jobs default/late")
    world.now += 4000

    with pytest.raises(FedPipeError, match="denied the request"):
        world.reconcile()

    assert not [name for name in world.active_jobs() if "train-r1-site-b" in name]
    for _ in range(10):
        world.now += 600
        with suppress(FedPipeError):
            world.reconcile()
        for name in world.active_jobs():
            if "train" not in name:
                world.work(name)
        world.await_workers()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_what_is_active_after_its_run_is_deleted_though_one_cannot_be(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(3))
    world.settle()
    for site in "ab":
        world.end(f"toy-train-r2-site-{site}-a0", "Suspended")
    world.api.trouble[f"delete jobs {world.object_name('toy-train-r2-site-a-a0')}"] = refusal(403)
    world.now += 200

    with pytest.raises(FedPipeError, match="denied the request"):
        world.reconcile()

    assert world.active_jobs() == ["toy-train-r2-site-a-a0"]


def test_an_api_server_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.api.failing = dict.fromkeys(("site-a", "site-b", "site-c"), error_without_response(TimeoutError(), "POST jobs default/"))

    with pytest.raises(TransientError, match="POST jobs"):
        world.reconcile()

    assert len([call for call in world.api.noted if call.startswith("create jobs")]) == 1


def test_calls_that_take_long_to_fail_for_one_job_after_another_end_the_reconcile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = KubeWorld(tmp_path, a_run(8))
    note = world.api._note

    def take_thirty_seconds(verb: str, kind: object, name: str) -> None:
        world.now += 30 * (verb == "create")
        note(verb, kind, name)  # type: ignore[arg-type]

    monkeypatch.setattr(world.api, "_note", take_thirty_seconds)
    world.api.trouble["create secrets"] = refusal(500)
    with pytest.raises(TransientError, match="failed calling webhook"):
        world.reconcile()

    assert len([call for call in world.api.noted if call.startswith("create secrets")]) == 2


@pytest.mark.parametrize(
    ("status", "message", "is_of_one"),
    [
        (422, "invalid", True),
        (403, "a policy denied the request", True),
        (403, "exceeded quota", True),
        (403, "jobs is forbidden", True),
        (409, "the object has been modified", True),
        (500, "failed calling webhook", True),
        (401, "Unauthorized", False),
        (429, "too many requests", False),
        (503, "the server is shutting down", False),
        (504, "etcd timeout", False),
        (403, "forbidden because it is being terminated", False),
    ],
)
def test_an_answer_is_about_one_object_or_about_the_server(status: int, message: str, *, is_of_one: bool) -> None:
    assert error_of_response(status, message.encode(), "GET jobs", "").is_of_one_object == is_of_one
