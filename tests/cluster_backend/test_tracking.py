"""The trackers of a run on a cluster: written beside the reconciles, with its own Secret, at servers that the policy allows."""

import base64
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_user import wait_until
from mlflow_servers import StandInMlflow, running_stand_in
from stand_in_cluster import KubeWorld, StandInApi, stamp
from stand_in_runs import a_run

from fedpipe_operator.cluster.api import EVENTS, RUNS, SECRETS
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.errors import UserError
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Guard
from fedpipe_operator.store_policy import ANY_STORE, StorePolicy, StoreRule
from fedpipe_operator.tracking.login import Login

TRACKER = "https://mlflow.example.com"
GONE = "http://127.0.0.1:9"
PAIR = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
LOGIN = {"MLFLOW_TRACKING_USERNAME": "fedpipe", "MLFLOW_TRACKING_PASSWORD": "pass"}


@pytest.fixture
def server() -> Iterator[StandInMlflow]:
    """A server that keeps what it is told."""
    with running_stand_in() as stand_in:
        yield stand_in


def condition(world: KubeWorld) -> dict[str, Any]:
    """`Tracked` of the run; empty if it has none."""
    return next((one for one in world.body()["status"]["conditions"] if one["type"] == "Tracked"), {})


def settled(world: KubeWorld) -> None:
    """The threads are done, and a reconcile has seen it."""
    world.reconcile()
    if (RUNS.plural, "default", "toy") not in world.api.objects:
        return
    trackers = world.runs.trackers
    wait_until(lambda: not trackers._running and not trackers._waiting, "the trackers are written", seconds=60)
    world.reconcile()


def to_its_end(world: KubeWorld, *, restarts: bool = False) -> None:
    """Reconcile and work to the end, with a new operator at every reconcile if wanted."""
    for _ in range(300):
        if restarts:
            world.restart()
        settled(world)
        if world.conditions().get("Complete") == "RoundsCompleted":
            return
        if world.active_jobs():
            world.work(world.active_jobs()[-1])
        else:
            world.await_workers()
    raise AssertionError(f"the run does not end: {world.conditions()}")


def test_every_round_is_written_once_and_the_condition_says_where(tmp_path: Path, server: StandInMlflow) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url}, "tensorboard": True}))
    to_its_end(world)
    settled(world)

    assert set(Counter(server.metrics()).values()) == {1}
    assert {step for _, step in server.metrics()} == {0, 1, 2}
    assert server.live_runs[0]["info"]["status"] == "FINISHED"
    found = condition(world)
    assert (found["status"], found["reason"]) == ("True", "TrackersComplete")
    assert found["message"] == f"event files in s3://fedpipe/runs/tensorboard; MLflow: {server.url}/#/experiments/1/runs/run0"


def test_with_a_new_operator_at_every_reconcile_every_round_is_written_once(tmp_path: Path, server: StandInMlflow) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url}}))
    to_its_end(world, restarts=True)
    world.restart()
    settled(world)

    assert set(Counter(server.metrics()).values()) == {1}
    assert {step for _, step in server.metrics()} == {0, 1, 2}


def test_a_restarted_operator_leaves_the_trackers_of_ended_runs_alone(tmp_path: Path, server: StandInMlflow) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url}}))
    to_its_end(world)
    settled(world)
    before = server.requests
    world.restart()

    assert world.reconcile() is None
    assert server.requests == before
    assert condition(world)["reason"] == "TrackersComplete"


def test_a_tracker_that_does_not_answer_neither_stops_nor_fails_a_run(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"mlflow": {"trackingUri": GONE}}))
    to_its_end(world)
    settled(world)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    found = condition(world)
    assert (found["status"], found["reason"]) == ("False", "TrackerUnreachable")
    assert found["message"].startswith(f"{GONE}: ")
    events = [one for one in world.api.all(EVENTS) if one["reason"] == "TrackerUnreachable"]
    assert len(events) == 1, "once, however often it is tried"
    assert events[0]["type"] == "Warning"
    assert world.reconcile() is not None, "it is tried again"


def test_a_run_without_trackers_has_no_such_condition(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.work_until("train-r1")

    assert condition(world) == {}


def test_a_tracker_that_is_added_after_the_end_gets_all_rounds(tmp_path: Path, server: StandInMlflow) -> None:
    world = KubeWorld(tmp_path)
    world.settle()
    world.api.merge(RUNS, "default", "toy", {"spec": {"tracking": {"mlflow": {"trackingUri": server.url}}}})
    settled(world)

    assert {step for _, step in server.metrics()} == {0, 1, 2}
    assert condition(world)["reason"] == "TrackersComplete"


def test_the_condition_goes_with_the_trackers(tmp_path: Path, server: StandInMlflow) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url}}))
    world.work_until("train-r1")
    settled(world)
    assert condition(world)["reason"] in ("Pending", "TrackersWritten")

    world.api.merge(RUNS, "default", "toy", {"spec": {"tracking": {"mlflow": None}}})
    world.reconcile()
    assert condition(world) == {}


def test_a_run_whose_time_to_live_is_over_is_kept_for_its_trackers_for_five_minutes_at_most(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"mlflow": {"trackingUri": GONE}}, ttlSecondsAfterFinished=0))
    to_its_end(world)
    ended = world.now
    world.now = ended + 290.0
    settled(world)
    assert (RUNS.plural, "default", "toy") in world.api.objects

    world.now = ended + 301.0
    world.reconcile()
    assert (RUNS.plural, "default", "toy") not in world.api.objects


def test_a_run_whose_time_to_live_is_over_goes_once_its_trackers_are_written(tmp_path: Path, server: StandInMlflow) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url}}, ttlSecondsAfterFinished=0))
    world.work_until("export-a0")
    for job in world.active_jobs():
        world.work(job)
    for _ in range(2):  # a thread may still be at work for the last round
        settled(world)

    assert (RUNS.plural, "default", "toy") not in world.api.objects
    assert server.live_runs[0]["info"]["status"] == "FINISHED"


def test_a_run_that_is_deleted_with_its_results_waits_for_the_thread_that_would_write_them_again(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(tracking={"tensorboard": True}, deletionPolicy="Delete"))
    may_end, trackers = threading.Event(), world.runs.trackers
    trackers.write = lambda work: work.store.write("tensorboard/late", b"") or str(may_end.wait(30))  # type: ignore[func-returns-value]
    world.settle()
    world.reconcile()
    wait_until(lambda: trackers._running, "a thread is at work", seconds=30)
    world.api.merge(RUNS, "default", "toy", {"metadata": {"deletionTimestamp": stamp(world.now)}})

    assert world.reconcile() == world.now + 2.0
    may_end.set()
    wait_until(lambda: not trackers._running, "the thread is done", seconds=30)
    world.reconcile()
    world.now += 61  # what was made in the last minute may be unknown to the watch
    world.reconcile()
    assert world.stores.of(world.run).store.list() == []


@pytest.fixture
def api() -> StandInApi:
    found = StandInApi(lambda: 0.0)
    found.apply(SECRETS, "default", encoded("keys", **PAIR))
    return found


def encoded(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


def tracked_run(**mlflow: Any) -> Run:
    store = {"bucket": "fedpipe", "prefix": "runs", "endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "keys"}}
    return a_run(store=store, tracking={"mlflow": {"trackingUri": TRACKER} | mlflow})


def connections(api: StandInApi, policy: StorePolicy = ANY_STORE) -> StoreConnections:
    return StoreConnections(api, policy, ("10.96.0.1",))  # type: ignore[arg-type]


def test_a_tracker_is_shown_what_the_run_s_own_secret_says_and_is_guarded(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded("mlflow", **LOGIN))

    work = connections(api).tracking(tracked_run(credentialsSecretRef={"name": "mlflow"}))

    assert work.login == Login("fedpipe", "pass")
    assert work.guard == Guard(("10.96.0.1",))
    assert work.location == "s3://fedpipe/runs/default/toy/uid-1"
    assert "pass" not in repr(work)


def test_a_tracker_without_a_secret_is_shown_nothing_also_if_the_operator_has_a_login(
    api: StandInApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the operator's own")

    assert connections(api).tracking(tracked_run()).login.headers == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, r"SecretMissing: spec\.tracking\.mlflow\.credentialsSecretRef: there is no Secret default/mlflow: create it"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "SecretIncomplete: the Secret default/mlflow has no MLFLOW_TRACKING_TOKEN, and not both"),
        (
            {"MLFLOW_TRACKING_TOKEN": "ü"},
            "SecretInvalid: the Secret default/mlflow has a name, a password or a token that is no ASCII",
        ),
        ({"MLFLOW_TRACKING_TOKEN": "a\nb"}, "SecretInvalid: the Secret default/mlflow has a value of several lines"),
    ],
)
def test_what_is_wrong_with_a_secret_is_reported(api: StandInApi, data: dict[str, str] | None, reason: str) -> None:
    if data is not None:
        api.apply(SECRETS, "default", encoded("mlflow", **data))

    with pytest.raises(UserError, match=reason):
        connections(api).tracking(tracked_run(credentialsSecretRef={"name": "mlflow"}))


def test_a_server_that_the_policy_does_not_allow_is_not_called_and_its_secret_not_read(api: StandInApi) -> None:
    policy = StorePolicy({"default": StoreRule(endpoints=("http://minio:9000",))})

    with pytest.raises(UserError, match=rf"TrackerNotAllowed: spec\.tracking\.mlflow\.trackingUri {TRACKER} is at none of the endpoints"):
        connections(api, policy).tracking(tracked_run(credentialsSecretRef={"name": "mlflow"}))
    assert not any("mlflow" in call for call in api.noted)


def test_a_run_whose_tracker_the_policy_does_not_allow_has_its_store_all_the_same(api: StandInApi) -> None:
    policy = StorePolicy({"default": StoreRule(endpoints=("http://minio:9000",))})

    assert connections(api, policy).of(tracked_run())
