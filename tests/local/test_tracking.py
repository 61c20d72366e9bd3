"""`fedpipe run` writes the trackers that the operator writes, with the login of the environment."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_user import wait_until
from mlflow_servers import StandInMlflow, running_stand_in
from stand_in_runs import Machine, a_run

from fedpipe_operator.local.session import Session
from fedpipe_operator.rounds import Event
from fedpipe_operator.tracking.trackers import Trackers


@pytest.fixture
def server() -> Iterator[StandInMlflow]:
    """A server that keeps what it is told."""
    with running_stand_in() as stand_in:
        yield stand_in


def tracked(machine: Machine, events: list[Event] | None = None) -> Session:
    """The run at its end, with its trackers written, or tried."""
    session = machine.session(on_event=(events if events is not None else []).append)
    session.trackers = Trackers()
    machine.drive({"run": session})
    wait_until(lambda: session.track() or session.trackers._turns["uid-1"].failures, "the trackers are written", seconds=60)  # type: ignore[union-attr]
    session.track()
    return session


def condition(session: Session) -> tuple[str, str]:
    return next((one.reason, one.message) for one in session.run.resource.status.conditions if one.type == "Tracked")


def test_a_run_on_this_machine_is_in_mlflow_and_has_event_files(tmp_path: Path, server: StandInMlflow) -> None:
    session = tracked(Machine(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url}, "tensorboard": True})))

    assert {step for _, step in server.metrics()} == {0, 1, 2}
    assert server.live_runs[0]["info"]["status"] == "FINISHED"
    assert server.tags()["fedpipe.store"] == str(tmp_path / "store")
    assert len(list((tmp_path / "store" / "tensorboard").rglob("events.out.tfevents.*"))) == 4
    assert condition(session)[0] == "TrackersComplete"
    assert not any("Authorization" in one for one in server.headers)


def test_the_login_is_that_of_the_environment_where_the_run_names_a_secret(
    tmp_path: Path, server: StandInMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    tracked(Machine(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url, "credentialsSecretRef": {"name": "mlflow"}}})))

    assert {one.get("Authorization") for one in server.headers} == {"Bearer abc"}


def test_a_login_that_is_missing_is_told_and_does_not_fail_the_run(tmp_path: Path, server: StandInMlflow) -> None:
    events = list[Event]()
    run = a_run(tracking={"mlflow": {"trackingUri": server.url, "credentialsSecretRef": {"name": "mlflow"}}})
    session = tracked(Machine(tmp_path, run), events)

    assert session.failure is None
    assert condition(session)[0] == "SecretIncomplete"
    assert condition(session)[1].startswith("the environment, where the Secret's keys are looked for on one machine, has no")
    assert [one.reason for one in events].count("SecretIncomplete") == 1
    assert server.requests == 0


def test_a_plan_and_a_local_only_baseline_write_no_tracker(tmp_path: Path, server: StandInMlflow) -> None:
    machine = Machine(tmp_path, a_run(tracking={"mlflow": {"trackingUri": server.url}}))
    session = machine.finished()

    assert session.track()
    assert server.requests == 0
