"""FedIT of the fleet in Flower's own simulation (with ray): the same model, rows by site, seeds, batches in the same order, steps and rate.

A client is a site: it trains for a round with the benchmark's own steps, from the averaged factors that Flower sends it, and sends its
factors and head back. Flower's FedAvg averages them by the sites' rows. What differs from `federation` is who averages and who sends.
"""

import argparse
import json
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from configuration import Given, Problem
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from server import adapter_file, parse_adapter
from task import Task, load_task, partition
from torch import Tensor
from training import evaluate_global, ranks_of, scale, steps, trainable

from fedpipe_trainer.adapters import AdapterTensors


def train(message: Message, context: Context) -> Message:
    """Train for one round; the reply has the factors A, B and the head."""
    config = message.content["config"]
    problem, work = Problem(**json.loads(config["problem"])), [Given(**one) for one in json.loads(config["work"])]
    torch.set_num_threads(int(config["threads"]))
    index, number = int(context.node_config["partition-id"]), int(config["server-round"])
    task, one = load_task(problem), work[index]
    examples = tuple(task.train[row] for row in partition(task, problem, len(work)).rows[index])
    start = adapter_of(task, message.content["arrays"].to_torch_state_dict(), one.rank)
    with trainable(task, ranks_of(task, one.rank, one.depth), start, problem.seed) as adapters:
        taken = list(islice(steps(task, adapters, examples, problem, name=f"{index}/{number}"), one.steps))
        arrays = ArrayRecord({key: tensor.detach().cpu().contiguous() for key, tensor in adapters.trainable.items()})
    metrics = MetricRecord({"num-examples": len(examples), "loss": sum(taken) / len(taken)})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def adapter_of(task: Task, arrays: dict[str, Tensor], rank: int) -> AdapterTensors:
    """The averaged update as a global adapter: there B contains the scale of LoRA, in an update it does not."""
    if not arrays:
        return AdapterTensors()
    return parse_adapter(task, adapter_file({key: scale(rank) * one if ".lora_B" in key else one for key, one in arrays.items()}))


def simulate(problem: Problem, work: tuple[Given, ...], *, rounds: int, threads: int) -> list[dict[str, float]]:
    """Accuracy and loss on the test documents after each round, and the real seconds until then."""
    client, server, started = ClientApp(), ServerApp(), time.monotonic()
    client.train()(train)
    task, count = load_task(problem), len(work)
    slow, curve = partition(task, problem, count).slow_classes, list[dict[str, float]]()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round:
            quality = evaluate_global(task, adapter_of(task, arrays.to_torch_state_dict(), work[0].rank), slow)
            curve.append({"accuracy": quality.accuracy, "loss": quality.loss, "seconds": round(time.monotonic() - started, 1)})
            print(f"Flower, round {server_round}: accuracy {quality.accuracy:.3f}, loss {quality.loss:.3f}", flush=True)
        return MetricRecord({})

    def serve(grid: Grid, _context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
        sent = {"problem": json.dumps(asdict(problem)), "work": json.dumps([asdict(one) for one in work]), "threads": threads}
        strategy.start(grid, ArrayRecord(), num_rounds=rounds, timeout=3600, train_config=ConfigRecord(sent), evaluate_fn=evaluate)

    server.main()(serve)
    # One client at a time, in one process that keeps the base.
    backend = {"init_args": {"num_cpus": threads}, "client_resources": {"num_cpus": threads, "num_gpus": 0.0}}
    run_simulation(server, client, count, backend_config=backend)
    return curve


def main() -> None:
    """Simulate what the file says, and write the curve as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    wanted: dict[str, Any] = json.loads(arguments.input.read_text(encoding="utf-8"))
    torch.set_num_threads(wanted["threads"])
    work = tuple(Given(**one) for one in wanted["work"])
    curve = simulate(Problem(**wanted["problem"]), work, rounds=wanted["rounds"], threads=wanted["threads"])
    arguments.output.write_text(json.dumps(curve), encoding="utf-8")


if __name__ == "__main__":
    main()
