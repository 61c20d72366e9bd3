"""Flower's own simulation (with ray) of a run of `fedpipe run`: its clients perform that run's task files. See `round.py`.

A client writes the averaged arrays that it is sent as a global adapter, performs the task in its process, and sends back what the
task wrote. So both platforms do the same work, and only what is around it differs.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpipe_trainer.contract import Plan
from fedpipe_trainer.settings import read
from fedpipe_trainer.tasks import perform

SITES: Final = ("cabin", "campus", "office")


class TimedFedAvg(FedAvg):  # type: ignore[misc]  # mypy skips flwr
    """FedAvg that remembers when each round ended, and the first began."""

    def __init__(self, started: float) -> None:
        super().__init__(min_train_nodes=len(SITES), min_evaluate_nodes=len(SITES), min_available_nodes=len(SITES))
        self.times = [started]

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Remember the time before the first round."""
        if server_round == 1:
            self.times.append(time.time())
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Remember the time after the round's last step."""
        metrics = super().aggregate_evaluate(server_round, replies)
        self.times.append(time.time())
        return metrics


def train(message: Message, context: Context) -> Message:
    """Train for one round; the reply has the factors A, B and the head."""
    site, jobs, round_ = _place(message, context)
    task = json.loads((jobs / f"newsgroups-train-r{round_}-{site}-a0" / "task.json").read_text())
    plan = Plan.model_validate(task["plan"])
    for url in ("evaluation", "checkpointRead", "checkpointWrite"):  # Flower's clients have no counterpart
        task.pop(url, None)
    with TemporaryDirectory() as folder:
        _perform(task, message, plan, Path(folder))
        arrays = load_file(Path(folder) / "adapter")
        result = json.loads((Path(folder) / "result").read_text())
    return _reply(message, {"arrays": ArrayRecord(arrays)}, {"num-examples": result["samples"]})


def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the averaged adapter on the site's validation data."""
    site, jobs, round_ = _place(message, context)
    plan = Plan.model_validate(json.loads((jobs / f"newsgroups-train-r1-{site}-a0" / "task.json").read_text())["plan"])
    [last] = jobs.glob(f"newsgroups-evaluate-r*-{site}-a0")  # only a run's last adapter has an evaluation of its own
    task = json.loads((last / "task.json").read_text()) | {"round": round_}
    with TemporaryDirectory() as folder:
        _perform(task, message, plan, Path(folder))
        result = json.loads((Path(folder) / "result").read_text())
    return _reply(message, {}, {"num-examples": result["samples"], "accuracy": result["metrics"]["accuracy"]})


def _place(message: Message, context: Context) -> tuple[str, Path, int]:
    config = message.content["config"]
    return SITES[int(context.node_config["partition-id"])], Path(str(config["jobs"])), int(config["server-round"])


def _perform(task: dict[str, Any], message: Message, plan: Plan, folder: Path) -> None:
    """Perform the task in this process, on the arrays of the message."""
    arrays = message.content["arrays"].to_torch_state_dict()
    task |= {"result": (folder / "result").as_uri(), "adapter": (folder / "adapter").as_uri()}
    if task["kind"] == "evaluate":
        del task["adapter"]
    task.pop("globalAdapter", None)
    if arrays:
        path = folder / "global"
        save_file({key: _unscaled(key, tensor, plan) for key, tensor in arrays.items()}, path)
        data = path.read_bytes()
        task["globalAdapter"] = {"url": path.as_uri(), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "task.json").write_text(json.dumps(task))
    code = perform(folder / "task.json", settings=read(os.environ), write_progress=lambda _: None, stop_requested=lambda: False)
    if code:
        raise RuntimeError(f"the task failed with status {code}")


def _unscaled(key: str, tensor: Tensor, plan: Plan) -> Tensor:
    """A factor as in a global adapter: there B contains the scale of LoRA, in an update it does not."""
    weight, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
    return tensor * plan.scale(weight) if factor.startswith("B") else tensor


def _reply(message: Message, content: dict[str, Any], metrics: dict[str, float]) -> Message:
    return Message(content=RecordDict(content | {"metrics": MetricRecord(metrics)}), reply_to=message)


def simulate(jobs: Path, *, rounds: int, client_cpus: int, started: float) -> list[dict[str, float | None]]:
    """Seconds and accuracy of each round; the first element is everything before round 1."""
    client, server, strategy = ClientApp(), ServerApp(), TimedFedAvg(started)
    client.train()(train)
    client.evaluate()(evaluate)
    accuracies: list[float | None] = [None]

    def serve(grid: Grid, _context: Context) -> None:
        config = {"jobs": str(jobs)}
        arguments = {"train_config": ConfigRecord(config), "evaluate_config": ConfigRecord(config)}
        result = strategy.start(grid, ArrayRecord(), num_rounds=rounds, timeout=3600, **arguments)
        accuracies.extend(float(result.evaluate_metrics_clientapp[i]["accuracy"]) for i in range(1, rounds + 1))

    server.main()(serve)
    run_simulation(server, client, len(SITES), backend_config={"client_resources": {"num_cpus": client_cpus, "num_gpus": 0.0}})
    spans = pairwise(strategy.times)
    return [{"seconds": end - begin, "accuracy": accuracy} for (begin, end), accuracy in zip(spans, accuracies, strict=True)]


def main() -> None:
    """Simulate, and write the rounds as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=Path, required=True, help="the folder of the jobs of our run")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--client-cpus", type=int, required=True)
    parser.add_argument("--started", type=float, required=True, help="Unix seconds")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rounds = simulate(arguments.jobs.resolve(), rounds=arguments.rounds, client_cpus=arguments.client_cpus, started=arguments.started)
    arguments.output.write_text(json.dumps(rounds))


if __name__ == "__main__":
    main()
