"""`fedpipe run` with trackers: in real processes, from the YAML to the lines that it prints."""

import pytest
from local_runs import Fleet
from mlflow_servers import running_stand_in

# Slow (`make slow`), as the runs of test_run.py.
pytestmark = pytest.mark.slow

GONE = "http://127.0.0.1:9"


def test_a_run_writes_its_trackers_and_says_where_and_one_that_is_away_costs_nothing(fleet: Fleet) -> None:
    fleet.change("FederatedFineTune", tracking={"mlflow": {"trackingUri": GONE}, "tensorboard": True})
    away = fleet.run("--no-compare", "--rounds", "1")
    with running_stand_in() as server:
        fleet.change("FederatedFineTune", tracking={"mlflow": {"trackingUri": server.url}, "tensorboard": True})
        output = fleet.run("--no-compare", "--rounds", "1")

    assert f"TrackerUnreachable: {GONE}" in away
    assert "report.html" in away, "the run is complete"
    assert f"trackers: event files in {fleet.store}/tensorboard; MLflow: {server.url}/#/experiments/1/runs/run0" in output
    assert {step for _, step in server.metrics()} == {0, 1}
    assert server.live_runs[0]["info"]["status"] == "FINISHED"
    assert any(path.endswith("/model-card.md") for path in server.artifacts)
    assert (fleet.store / "tensorboard" / "sites" / "north").is_dir()
