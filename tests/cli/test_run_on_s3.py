"""`fedpipe run --s3` from YAML to adapter, with the base model in the bucket too, on a server that enforces signatures."""

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
from local_runs import Fleet, a_fleet
from peft import PeftModel
from s3_servers import BUCKET, CREDENTIALS, ENVIRONMENT, Server, free_port, running_nanio
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fedpipe_operator.store import S3Store

pytestmark = pytest.mark.slow

MODEL = "models/toy"


@dataclass(frozen=True)
class Told:
    """A run on S3 that is over, and what was seen of it meanwhile."""

    fleet: Fleet
    server: Server
    environments: list[dict[str, str]]
    """Of its trainers."""
    interrupted: str
    """What was printed up to the interruption."""
    gone_on: str
    """What the second start printed."""

    @property
    def store(self) -> S3Store:
        origin = json.loads((self.fleet.folder / "runs/default/toy/run.json").read_text())
        return self.server.store(f"runs/default/toy/{origin['uid']}")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """A run that is interrupted in its first round, goes on, and after that round loses its store for a while."""
    fleet, objects, port = a_fleet(tmp_path_factory.mktemp("on-s3")), tmp_path_factory.mktemp("objects"), free_port()
    with running_nanio(objects, port=port) as server:
        put_in_bucket(fleet, server)
        first = fleet.start("--no-compare", "--s3", env=ENVIRONMENT)
        interrupted = printed_until(first, "train of round 1")
        environments = trainers_environments(first.pid)
        first.send_signal(signal.SIGINT)
        interrupted += first.communicate()[0]
        second = fleet.start("--no-compare", "--s3", env=ENVIRONMENT)
        gone_on = printed_until(second, "round 1: ")
    gone_on += printed_until(second, "store not reachable since")
    with running_nanio(objects, port=port) as server:
        gone_on += second.communicate()[0]
        assert second.returncode == 0, gone_on
        yield Told(fleet, server, environments, interrupted, gone_on)


def put_in_bucket(fleet: Fleet, server: Server) -> None:
    """The model's folder, and a spec that names it and the bucket."""
    for path in (fleet.folder / "volumes/models/toy").iterdir():
        server.store(MODEL).write(path.name, path.read_bytes())
    store = {"bucket": BUCKET, "prefix": "runs", "endpoint": server.endpoint}
    fleet.change("FederatedFineTune", store=store, model={"source": f"s3://{BUCKET}/{MODEL}"})


def printed_until(run: "subprocess.Popen[str]", wanted: str) -> str:
    assert run.stdout is not None
    printed = ""
    for line in run.stdout:
        printed += line
        if wanted in line:
            return printed
    raise AssertionError(printed)


def trainers_environments(pid: int) -> list[dict[str, str]]:
    children = psutil.Process(pid).children(recursive=True)
    return [child.environ() for child in children if "fedpipe_trainer" in child.cmdline()]


def test_the_adapters_are_those_of_a_run_in_a_folder_to_the_byte(told: Told, finished: tuple[Fleet, str]) -> None:
    in_folder = finished[0].adapters()

    assert {key: told.store.read(key) for key in in_folder} == in_folder
    exported = "export/adapter/adapter_model.safetensors"
    assert told.store.read(exported) == (finished[0].store / exported).read_bytes()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
def test_the_adapter_in_the_bucket_loads(told: Told, tmp_path: Path) -> None:
    for key in told.store.list("export/adapter"):
        (tmp_path / Path(key).name).write_bytes(told.store.read(key) or b"")
    base = AutoModelForSequenceClassification.from_pretrained(told.fleet.folder / "volumes/models/toy", num_labels=3)

    adapted = PeftModel.from_pretrained(base, tmp_path)

    sent = load_file(tmp_path / "adapter_model.safetensors")
    factor = next(key for key in sent if key.endswith("lora_B.weight"))
    loaded = adapted.get_parameter(factor.replace("lora_B.weight", "lora_B.default.weight"))
    assert torch.equal(loaded, sent[factor])
    assert sent[factor].any()


def test_nothing_of_the_run_is_written_beside_the_bucket(told: Told) -> None:
    assert not told.fleet.store.exists()
    assert told.store.read("report.html")


def test_trainers_have_no_credentials(told: Told) -> None:
    assert told.environments
    for environment in told.environments:
        assert not [name for name in environment if name.startswith("AWS_")]
        assert CREDENTIALS.secret_key not in environment.values()


def test_trainers_get_signed_urls_alone(told: Told) -> None:
    tasks = [path.read_text() for path in (told.fleet.folder / "runs/default/toy/jobs").glob("*/task.json")]
    urls = [url for task in tasks for url in re.findall(r'"(http[^"]+)"', task) if url != told.server.endpoint]

    assert any(f"/{BUCKET}/{MODEL}/model.safetensors?" in url for url in urls)
    assert all("X-Amz-Signature=" in url for url in urls)
    assert CREDENTIALS.secret_key not in "".join(tasks)


def test_a_run_that_was_interrupted_goes_on_and_measures_no_site_again(told: Told) -> None:
    assert "stopped; the same command goes on from here" in told.interrupted
    assert "round 2: 3/3 updates" in told.gone_on
    assert told.store.list("profile") == [f"profile/{site}/0/result.json" for site in ("north", "south", "west")]


def test_an_outage_of_the_store_is_told_once_and_waited_through(told: Told) -> None:
    assert told.gone_on.count("store not reachable since") == 1
    assert told.server.endpoint in told.gone_on
    assert "the store answers again after" in told.gone_on


def test_the_closing_lines_say_where_in_the_bucket_everything_is(told: Told) -> None:
    assert f"s3://{BUCKET}/{told.store.prefix}/export/adapter" in told.gone_on


def test_plan_measures_a_model_in_a_bucket_and_leaves_the_plan_there(fleet: Fleet, moto: Server) -> None:
    put_in_bucket(fleet, moto)
    command = [part if part != "run" else "plan" for part in fleet.command("--s3")]

    planned = subprocess.run(command, capture_output=True, text=True, check=True, env=fleet.environment(ENVIRONMENT)).stdout

    assert "north" in planned
    assert any(key.endswith("/rounds/0001/plan.json") for key in moto.store("runs/default/toy").list())
    assert not fleet.store.exists()
