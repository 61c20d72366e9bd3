"""A real MLflow server and a real S3 server, with TensorBoard's reader: what they have is what the run's store has."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow_servers import program, running_mlflow
from s3_servers import running_moto
from stand_in_runs import World, a_run

from fedpipe_operator.errors import TransientError
from fedpipe_operator.rounds import Run
from fedpipe_operator.store.http_server import Answer, HttpServer
from fedpipe_operator.tracking.content import end_of
from fedpipe_operator.tracking.mlflow import MlflowClient
from fedpipe_operator.tracking.mlflow_run import Place, write_run
from fedpipe_operator.tracking.records import FinishedRounds
from fedpipe_operator.tracking.write import Work, write_trackers

_READ = """
import json, sys
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
found = EventMultiplexer().AddRunsFromDirectory(sys.argv[1]).Reload()
print(json.dumps({run: [one.step for one in found.Scalars(run, "loss")] for run in found.Runs()}))
"""


@pytest.fixture(scope="module")
def mlflow(folder: Path) -> Iterator[str]:
    """The URL of the server, which all tests of this module share."""
    with running_mlflow(folder) as url:
        yield url


def asked(url: str, call: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{url}/api/2.0/mlflow/{call}", json=body, trust_env=False, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()


def history(url: str, run_id: str, metric: str) -> list[tuple[int, float, int]]:
    """Step, value and time of every point of a metric."""
    path = f"{url}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={metric}"
    answer = httpx.get(path, trust_env=False, timeout=60)
    return [(int(one["step"]), one["value"], int(one["timestamp"])) for one in answer.json().get("metrics", [])]


def runs_in(url: str, experiment: str) -> list[dict[str, Any]]:
    found = httpx.get(f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment}", trust_env=False, timeout=60)
    experiment_id = found.json()["experiment"]["experiment_id"]
    runs: list[dict[str, Any]] = asked(url, "runs/search", {"experiment_ids": [experiment_id]}).get("runs", [])
    return runs


class Losing(HttpServer):
    """A server whose every answer is lost the first time: the client is killed at each of its requests, one after the other."""

    lost: set[int]
    requests = 0

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> Answer:
        answer = super().request(method, path, body, content_type)
        self.requests += 1
        if self.requests not in self.lost:
            self.lost.add(self.requests)
            raise TransientError("TrackerUnreachable", "the answer is lost")
        return answer


def test_a_real_server_has_every_round_once_although_the_operator_was_killed_at_every_request(ended: World, mlflow: str) -> None:
    rounds, place = (
        FinishedRounds(ended.run, ended.store),
        Place("killed", "s3://fedpipe/runs", end_of(ended.run.resource.status.conditions)),
    )
    lost, kills, page = set[int](), 0, None
    while page is None:
        with Losing(mlflow) as server:
            server.lost = lost
            try:
                page = write_run(MlflowClient(server), rounds, place)
            except TransientError:
                kills += 1

    (run,) = runs_in(mlflow, "killed")
    entries = list(rounds.after(-1))
    assert kills > 5
    assert page.endswith(run["info"]["run_id"])
    assert (run["info"]["run_name"], run["info"]["status"]) == ("toy", "FINISHED")
    points = history(mlflow, run["info"]["run_id"], "loss")
    assert sorted(points) == [(one.round, one.figures["loss"], round(one.at * 1000)) for one in entries]
    of_site = history(mlflow, run["info"]["run_id"], "site/site-a/train_loss")
    assert Counter(step for step, *_ in of_site) == {1: 1, 2: 1}
    params = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert params["aggregation.method"] == "Exact"


def test_a_real_server_has_the_artefacts(ended: World, mlflow: str) -> None:
    spec = a_run(tracking={"mlflow": {"trackingUri": mlflow, "experiment": "artefacts of wards"}}).spec
    run = Run(ended.run.resource.model_copy(update={"spec": spec}), ended.run.sites)
    write_trackers(Work(run, ended.store, "s3://fedpipe/runs"))

    (found,) = runs_in(mlflow, "artefacts of wards")
    root = found["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
    read = {
        name: httpx.get(f"{mlflow}/api/2.0/mlflow-artifacts/artifacts/{root}/{name}", trust_env=False, timeout=60)
        for name in ("plans/round-0001.json", "plans/round-0002.json", "model-card.md")
    }
    assert json.loads(read["plans/round-0002.json"].text)["round"] == 2
    assert read["model-card.md"].text == "# A model"


def test_the_event_files_in_a_bucket_are_read_by_tensorboard(ended: World, tmp_path: Path) -> None:
    """As `aws s3 sync` copies them."""
    run = Run(ended.run.resource.model_copy(update={"spec": a_run(tracking={"tensorboard": True}).spec}), ended.run.sites)
    with running_moto() as moto:
        store = moto.store("runs/toy")
        for key in ended.store.list("rounds"):
            store.write(key, ended.store.read(key) or b"")
        write_trackers(Work(run, store, "s3://fedpipe/runs/toy"))
        for key in store.list("tensorboard"):
            target = tmp_path / key.removeprefix("tensorboard/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.read(key) or b"")

    done = subprocess.run([program("python"), "-c", _READ, str(tmp_path)], capture_output=True, text=True, check=True)

    sites = [f"sites/site-{letter}" for letter in "abc"]
    assert json.loads(done.stdout.splitlines()[-1]) == {run: [0, 1, 2] for run in ("federated", *sites)}
