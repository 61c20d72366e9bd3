"""A run on a cluster is in a real MLflow server, and its event files are in the bucket; one whose server is away ends all the same."""

import subprocess
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from cluster_user import Plain, condition
from fleet_namespace import SHORT, FleetNamespace
from mlflow_servers import running_mlflow
from readmes import blocks
from testcluster.layout import HOST

pytestmark = pytest.mark.e2e

PAGE: Final = Path(__file__).parents[2] / "docs" / "trackers.md"


def make_login(namespace: FleetNamespace) -> None:
    """As the page says, in the test's namespace."""
    (command,) = [block for block in blocks(PAGE.read_text(encoding="utf-8")) if block.startswith("kubectl create secret")]
    subprocess.run(["bash", "-ec", command.replace("-n wards", f"-n {namespace.name}")], check=True, timeout=60)


def wait_for_trackers(namespace: FleetNamespace, reason: str) -> Plain:
    """The run's condition Tracked, once it has this reason."""
    found: Plain = namespace.wait(
        f"the trackers are {reason}",
        lambda: one if (one := condition(namespace.get_run(), "Tracked")).get("reason") == reason else None,
    )
    return found


def asked(url: str, path: str, body: Plain | None = None) -> Any:
    method = "POST" if body else "GET"
    answer = httpx.request(method, f"{url}/api/2.0/mlflow/{path}", json=body, trust_env=False, timeout=60)
    assert answer.is_success, answer.text
    return answer.json()


def test_a_run_is_in_mlflow_and_its_event_files_are_in_the_bucket(namespace: FleetNamespace, tmp_path: Path) -> None:
    make_login(namespace)
    with running_mlflow(tmp_path, HOST) as url:
        mlflow = {"trackingUri": url, "experiment": "cluster", "credentialsSecretRef": {"name": "mlflow"}}
        namespace.start("north", **SHORT, tracking={"mlflow": mlflow, "tensorboard": True})
        namespace.wait_until_complete()
        tracked = wait_for_trackers(namespace, "TrackersComplete")
        run = namespace.get_run()
        experiment = asked(url, "experiments/get-by-name?experiment_name=cluster")["experiment"]["experiment_id"]
        (found,) = asked(url, "runs/search", {"experiment_ids": [experiment]})["runs"]
        path = f"metrics/get-history?run_id={found['info']['run_id']}&metric_key=loss"
        steps = [int(one["step"]) for one in asked(url, path)["metrics"]]

    tags = {one["key"]: one["value"] for one in found["data"]["tags"]}
    assert (found["info"]["run_name"], found["info"]["status"]) == ("toy", "FINISHED")
    assert (tags["fedpipe.uid"], tags["fedpipe.namespace"]) == (run["metadata"]["uid"], namespace.name)
    assert sorted(steps) == [0, 1]
    assert f"/runs/{found['info']['run_id']}" in tracked["message"]
    written = namespace.store_of(run).list("tensorboard")
    assert [key.rpartition("/")[0] for key in written] == ["tensorboard/federated", "tensorboard/sites/north"]


def test_a_tracker_at_an_address_of_the_cluster_itself_is_not_called_and_the_run_ends_all_the_same(namespace: FleetNamespace) -> None:
    namespace.start("north", **SHORT, tracking={"mlflow": {"trackingUri": "https://kubernetes.default.svc"}})
    namespace.wait_until_complete()

    assert condition(namespace.get_run(), "Tracked")["reason"] == "AddressRefused"
    events = namespace.kubectl.list("events", fields="involvedObject.name=toy,reason=AddressRefused")
    assert [one["type"] for one in events] == ["Warning"]
