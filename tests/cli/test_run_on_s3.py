"""`fedpipe run --s3` from YAML to adapter, with the base model in the bucket too, on a server that checks signatures."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from free_ports import free_port
from local_runs import Fleet, a_fleet
from peft import PeftModel
from s3_servers import BUCKET, CREDENTIALS, ENVIRONMENT, Server, running_nanio
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fedpipe_operator.store import S3Store

pytestmark = pytest.mark.slow

MODEL = "models/toy"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run on S3, and what was observed while it was active."""

    fleet: Fleet
    server: Server
    environments: list[dict[str, str]]
    """Of its trainer processes."""
    interrupted: str
    """The output up to the interruption."""
    resumed: str
    """The output of the second start."""

    @property
    def store(self) -> S3Store:
        origin = json.loads((self.fleet.folder / "runs/default/toy/run.json").read_text())
        return self.server.store(f"runs/default/toy/{origin['uid']}")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """A run that is interrupted in its first round, is resumed, and after that round cannot reach its store for a while."""
    fleet, objects, port = a_fleet(tmp_path_factory.mktemp("on-s3")), tmp_path_factory.mktemp("objects"), free_port()
    with running_nanio(objects, port=port) as server:
        upload_model(fleet, server)
        first = fleet.start("--no-compare", "--s3", env=ENVIRONMENT)
        interrupted = output_until(first, "train of round 1")
        environments = trainers_environments(first.pid)
        first.send_signal(signal.SIGINT)
        interrupted += first.communicate()[0]
        second = fleet.start("--no-compare", "--s3", env=ENVIRONMENT)
        resumed = output_until(second, "round 1: ")
    resumed += output_until(second, "store not reachable since")
    with running_nanio(objects, port=port) as server:
        resumed += second.communicate()[0]
        assert second.returncode == 0, resumed
        yield FinishedRun(fleet, server, environments, interrupted, resumed)


def upload_model(fleet: Fleet, server: Server) -> None:
    """Upload the model's folder, and change the spec to name it and the bucket."""
    for path in (fleet.folder / "volumes/models/toy").iterdir():
        server.store(MODEL).write(path.name, path.read_bytes())
    store = {"bucket": BUCKET, "prefix": "runs", "endpoint": server.endpoint}
    fleet.change("FederatedFineTune", store=store, model={"source": f"s3://{BUCKET}/{MODEL}"})


def output_until(run: "subprocess.Popen[str]", wanted: str) -> str:
    assert run.stdout is not None
    output = ""
    for line in run.stdout:
        output += line
        if wanted in line:
            return output
    raise AssertionError(output)


def trainers_environments(pid: int) -> list[dict[str, str]]:
    children = psutil.Process(pid).children(recursive=True)
    return [child.environ() for child in children if "fedpipe_trainer" in child.cmdline()]


def test_the_adapters_are_byte_for_byte_those_of_a_run_in_a_folder(finished_run: FinishedRun, finished: tuple[Fleet, str]) -> None:
    in_folder = finished[0].adapters()

    assert {key: finished_run.store.read(key) for key in in_folder} == in_folder
    exported = "export/adapter/adapter_model.safetensors"
    assert finished_run.store.read(exported) == (finished[0].store / exported).read_bytes()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
def test_the_adapter_in_the_bucket_loads(finished_run: FinishedRun, tmp_path: Path) -> None:
    for key in finished_run.store.list("export/adapter"):
        (tmp_path / Path(key).name).write_bytes(finished_run.store.read(key) or b"")
    base = AutoModelForSequenceClassification.from_pretrained(finished_run.fleet.folder / "volumes/models/toy", num_labels=3)

    adapted = PeftModel.from_pretrained(base, tmp_path)

    sent = load_file(tmp_path / "adapter_model.safetensors")
    factor = next(key for key in sent if key.endswith("lora_B.weight"))
    loaded = adapted.get_parameter(factor.replace("lora_B.weight", "lora_B.default.weight"))
    assert torch.equal(loaded, sent[factor])
    assert sent[factor].any()


def test_no_object_of_the_run_is_written_outside_the_bucket(finished_run: FinishedRun) -> None:
    assert not finished_run.fleet.store.exists()
    assert finished_run.store.read("report.html")


def test_trainers_have_no_credentials(finished_run: FinishedRun) -> None:
    assert finished_run.environments
    for environment in finished_run.environments:
        assert not [name for name in environment if name.startswith("AWS_")]
        assert CREDENTIALS.secret_key not in environment.values()


def test_trainers_get_only_presigned_urls(finished_run: FinishedRun) -> None:
    tasks = [path.read_text() for path in (finished_run.fleet.folder / "runs/default/toy/jobs").glob("*/task.json")]
    urls = [url for task in tasks for url in re.findall(r'"(http[^"]+)"', task) if url != finished_run.server.endpoint]

    assert any(f"/{BUCKET}/{MODEL}/model.safetensors?" in url for url in urls)
    assert all("X-Amz-Signature=" in url for url in urls)
    assert CREDENTIALS.secret_key not in "".join(tasks)


def test_an_interrupted_run_is_resumed_and_profiles_no_site_again(finished_run: FinishedRun) -> None:
    assert "stopped; run the same command again to resume" in finished_run.interrupted
    assert "round 2: 3/3 updates" in finished_run.resumed
    results = [key for key in finished_run.store.list("profile") if key.endswith("result.json")]
    assert results == [f"profile/{site}/0/result.json" for site in ("north", "south", "west")]


def test_an_outage_of_the_store_is_reported_once_and_survived(finished_run: FinishedRun) -> None:
    assert finished_run.resumed.count("store not reachable since") == 1
    assert finished_run.server.endpoint in finished_run.resumed
    assert "the store is reachable again after" in finished_run.resumed


def test_the_last_lines_have_the_location_of_the_results_in_the_bucket(finished_run: FinishedRun) -> None:
    assert f"s3://{BUCKET}/{finished_run.store.prefix}/export/adapter" in finished_run.resumed


def test_plan_profiles_a_model_in_a_bucket_and_writes_the_plan_there(fleet: Fleet, moto: Server) -> None:
    upload_model(fleet, moto)
    command = [part if part != "run" else "plan" for part in fleet.command("--s3")]

    planned = subprocess.run(command, capture_output=True, text=True, check=True, env=fleet.environment(ENVIRONMENT)).stdout

    assert "north" in planned
    assert any(key.endswith("/rounds/0001/plan.json") for key in moto.store("runs/default/toy").list())
    assert not fleet.store.exists()
