"""A scrape: what it shows of which objects, and what a fault of one of them costs."""

import logging
from typing import Any

import pytest
from cached_objects import a_cache
from scrapes import ListenedFleet, a_site_body
from stand_in_runs import a_run

from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.cluster import KubeJob
from fedpipe_operator.cluster.objects import NamespacedName
from fedpipe_operator.handlers.fleet import Fleet, JobNumbers, fleet_of
from fedpipe_operator.handlers.workqueue import QueueLoad
from fedpipe_operator.metrics.counting import Counted
from fedpipe_operator.metrics.listener import Listener
from fedpipe_operator.metrics.records import _Known
from fedpipe_operator.metrics.run_record import RunRecord
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import Forecast, Plan


def a_listener() -> Listener:
    return Listener(lambda: 1000.0)


def a_run_body(name: str, **status: Any) -> dict[str, Any]:
    meta = {"namespace": "default", "name": name, "uid": f"uid-{name}", "resourceVersion": "1"}
    conditions = [{"type": "Progressing", "status": "True", "reason": "Training"}]
    return {"metadata": meta, "spec": {"rounds": {"count": 2}}, "status": {"conditions": conditions} | status}


def test_the_series_of_a_deleted_run_and_a_deleted_site_are_gone_at_the_next_scrape() -> None:
    shown = ListenedFleet(a_listener(), Fleet((a_run_body("toy"),), (a_site_body("ward"),), {}))
    before = shown.scrape()
    shown.fleet = Fleet()
    after = shown.scrape()

    assert before.has("run_status_condition", run="toy")
    assert before.has("site_status_condition", site="ward")
    names = ("run_", "runs_", "site_", "plan_", "task_", "attempts_", "updates_", "replans_", "out_of_memory_")
    assert [key for key in after.values if key[0].startswith(names)] == []


def test_a_run_whose_status_cannot_be_read_costs_no_other_object_its_series(caplog: pytest.LogCaptureFixture) -> None:
    broken = a_run_body("broken", conditions=[{"type": "Progressing"}])
    shown = ListenedFleet(a_listener(), Fleet((broken, a_run_body("toy")), (a_site_body("ward"),), {}))

    with caplog.at_level(logging.ERROR):
        scrape = shown.scrape()

    assert scrape.has("run_status_condition", run="toy")
    assert scrape.has("site_status_condition", site="ward")
    assert not scrape.has("run_status_condition", run="broken")
    assert "no metrics of default/broken" in caplog.text


def test_a_plan_with_a_number_that_is_none_of_prometheus_costs_no_other_object_its_series(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has the key pair of a run's bucket can write its plan, with integers of any size."""
    forecast = Forecast(memory_bytes=10**400, seconds=1.0, upload_bytes=0, download_bytes=0)
    plan = Plan(bits=16, batch_size=1, steps=1, ranks={}, forecast=forecast)
    forged = RoundPlan(
        round=1, started_at=0.0, fingerprint="", weights={}, plans={"ward": plan}, selected=("ward",), evaluators=("ward",), needed=1
    )
    listener = a_listener()
    listener._records._known["uid-forged"] = _Known(Counted(), RunRecord("default", "forged", plan=forged, sites=("ward",)))
    shown = ListenedFleet(listener, Fleet((a_run_body("forged"), a_run_body("toy")), (a_site_body("ward"),), {}))

    with caplog.at_level(logging.ERROR):
        scrape = shown.scrape()

    assert scrape.has("run_status_condition", run="toy")
    assert scrape.has("run_status_condition", run="forged")
    assert not scrape.has("plan_bits", run="forged")
    assert "no metrics of default/forged" in caplog.text


def test_the_time_at_which_a_run_ended_is_that_of_its_condition() -> None:
    at = {"lastTransitionTime": "2026-01-01T00:00:10Z"}
    progressing = {"type": "Progressing", "status": "False", "reason": "Failed", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    ends = {
        "failed": [{"type": "Failed", "status": "True", "reason": "QuorumNotReached"} | at],
        "complete": [{"type": "Complete", "status": "True", "reason": "Finished"} | at],
        "working": [{"type": "Failed", "status": "False", "reason": "Working"} | at],
    }
    runs = tuple(a_run_body(name, conditions=[progressing, *found]) for name, found in ends.items())

    scrape = ListenedFleet(a_listener(), Fleet(runs, (), {})).scrape()

    assert scrape.by("run", "run_ended_timestamp_seconds") == {"failed": 1_767_225_610, "complete": 1_767_225_610}


def test_a_replica_that_stands_by_shows_no_objects_since_the_leader_does() -> None:
    shown = ListenedFleet(a_listener(), Fleet((a_run_body("toy"),), (a_site_body("ward"),), {}), {"run": QueueLoad(0, 0.0)}, leads=False)

    scrape = shown.scrape()

    assert scrape.value("leader") == 0
    assert scrape.value("workqueue_depth", queue="run") == 0
    assert not scrape.has("run_status_condition")
    assert not scrape.has("site_status_condition")


def test_while_the_event_loop_hangs_the_page_still_says_how_long_its_queues_have_waited(caplog: pytest.LogCaptureFixture) -> None:
    shown = ListenedFleet(a_listener(), None, {"run": QueueLoad(3, 400.0)})

    scrape = shown.scrape()

    assert scrape.value("workqueue_oldest_seconds", queue="run") == 400
    assert scrape.value("workqueue_depth", queue="run") == 3
    assert "the event loop does not answer" in caplog.text


def test_a_fault_of_the_metrics_ends_no_reconcile_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    a_listener().run_reconciled(a_run(), None, None, {})  # type: ignore[arg-type]  # nothing that a reconcile would give

    assert "the metrics of the run toy are not up to date" in caplog.text


def test_a_run_that_no_reconcile_has_seen_shows_what_its_object_says() -> None:
    history = [{"round": 1, "loss": 0.5, "truncatedEnergy": 0.01}]
    body = a_run_body("toy", round=1, history=history, metric={"name": "accuracy", "value": 0.9, "round": 1})
    scrape = ListenedFleet(a_listener(), Fleet((body,))).scrape()

    assert scrape.by("metric", "run_metric") == {"loss": 0.5, "accuracy": 0.9}
    assert scrape.value("run_truncated_energy_ratio", namespace="default", run="toy") == 0.01
    assert scrape.by("status", "run_status_condition", condition="Progressing") == {"true": 1}


def test_the_metrics_have_no_series_of_a_run_that_another_controller_manages_nor_of_a_job_at_a_site_of_another_operator() -> None:
    theirs = a_run_body("theirs") | {"spec": {"managedBy": "example.com/other"}}
    bodies = {("default", one["metadata"]["name"]): [one] for one in (theirs, a_run_body("ours"))}
    jobs = {
        ("default", "elsewhere"): [KubeJob("default", "x", "uid-x", Job("x-train-elsewhere", TaskKind.TRAIN, "elsewhere"), created_at=0.0)]
    }
    fleet = fleet_of(a_cache(run_bodies=bodies, site_bodies={("default", "ward"): [a_site_body("ward")]}, jobs_at_sites=jobs))

    scrape = ListenedFleet(a_listener(), fleet).scrape()

    assert {dict(labels).get("run") for _, labels in scrape.values} == {None, "ours"}
    assert {dict(labels).get("site") for _, labels in scrape.values} == {None, "ward"}


def test_a_run_without_a_status_is_shown_without_conditions() -> None:
    body = a_run_body("toy")
    scrape = ListenedFleet(a_listener(), Fleet((body | {"status": None},))).scrape()

    assert scrape.value("run_round", namespace="default", run="toy") == 0
    assert not scrape.has("run_status_condition")


def test_jobs_are_shown_at_their_site_and_a_site_without_one_has_none() -> None:
    jobs = {NamespacedName("default", "ward"): JobNumbers(2, 1)}
    scrape = ListenedFleet(a_listener(), Fleet((), (a_site_body("ward"), a_site_body("lab")), jobs)).scrape()

    assert scrape.by("state", "site_jobs", site="ward") == {"pending": 2, "running": 1}
    assert scrape.named("site_jobs", site="lab", state="pending") != {}
    assert scrape.by("state", "site_jobs", site="lab") == {}
