"""A federated run on a virtual clock: the training is real and in this process, the seconds are those of the run's sites.

A round lasts as long as its slowest site: overhead + steps × seconds of a step. A step of the fastest tier at full depth takes 1 virtual
second; one that trains the top k of L layers takes (L + k)/2L of that (no backward pass below), or k/L if the layers below are read from
a cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from configuration import Run, Site, Study
from server import Update, adapter_file, aggregate, merged, parse_adapter, start_of
from task import Partition, Task, load_task, partition
from torch import Tensor
from training import Quality, evaluate, evaluate_global, ranks_of, steps, trainable

from fedpipe_trainer.adapters import AdapterTensors


@dataclass(frozen=True)
class Point:
    """The state of a run after a round."""

    round: int
    seconds: float
    """Virtual."""
    accuracy: float
    loss: float
    slow_accuracy: float
    train_loss: float
    uploaded: int
    """Bytes of all sites so far."""
    downloaded: int
    idle: float
    """Share of the sites' time in this round that they waited for the slowest."""


def step_seconds(site: Site, layers: int) -> float:
    """Virtual seconds of one step."""
    depth = site.depth or layers
    return site.slowdown * (depth / layers if site.cached else (layers + depth) / (2 * layers))


def run(configuration: Run) -> Iterator[Point]:
    """Yield the state after each round, until the next round would end too late."""
    task = load_task(configuration.problem.max_length)
    split = partition(task.train, configuration.problem, len(configuration.sites))
    seconds = [configuration.round_overhead + site.steps * step_seconds(site, task.layers) for site in configuration.sites if site.steps]
    adapter: bytes | None = None
    deltas: dict[str, Tensor] = {}
    uploaded = downloaded = 0
    for number in range(1, int(configuration.seconds / max(seconds)) + 1):
        start = parse_adapter(task, adapter)
        with merged(task, deltas):
            updates, losses = _train_sites(task, configuration, split, start=start, number=number)
        downloaded += len(adapter or b"") * len(updates)
        uploaded += sum(len(update.data) for update in updates.values())
        adapter = aggregate(task, configuration.problem, configuration.server, updates, adapter)
        new = parse_adapter(task, adapter)
        if configuration.server.method == "FLoRA":
            deltas = {name: deltas.get(name, torch.zeros(())) + factors.b @ factors.a for name, factors in new.weights.items()}
            new = AdapterTensors(head=new.head)
        if number % configuration.evaluate_every:
            continue
        with merged(task, deltas):
            quality = evaluate_global(task, new, split.slow_classes)
        yield Point(
            round=number,
            seconds=number * max(seconds),
            accuracy=quality.accuracy,
            loss=quality.loss,
            slow_accuracy=quality.slow_accuracy,
            train_loss=sum(losses) / len(losses),
            uploaded=uploaded,
            downloaded=downloaded,
            idle=1 - sum(seconds) / (len(seconds) * max(seconds)),
        )


def study(configuration: Study) -> Iterator[tuple[int, Quality]]:
    """Train at one place with all data; yield the quality after each of the wanted numbers of steps."""
    problem = configuration.problem
    task = load_task(problem.max_length)
    split = partition(task.train, problem, 1)
    with trainable(task, ranks_of(task, configuration.rank, configuration.depth), AdapterTensors(), problem.seed) as adapters:
        losses = steps(task, adapters, task.train, problem, name="study")
        for number, _ in zip(range(1, max(configuration.evaluate_at) + 1), losses, strict=False):
            if number in configuration.evaluate_at:
                yield number, evaluate(task, split.slow_classes, configuration.test_documents)


def _train_sites(
    task: Task, configuration: Run, split: Partition, *, start: AdapterTensors, number: int
) -> tuple[dict[str, Update], list[float]]:
    """One round of training at every site that takes part: the updates by site, and the sites' mean losses."""
    problem, updates, losses = configuration.problem, {}, []
    for index, site in enumerate(configuration.sites):
        if not site.steps:
            continue
        examples = tuple(task.train[i] for i in split.rows[index])
        ranks = ranks_of(task, site.rank, site.depth)
        with trainable(task, ranks, start_of(site, configuration.server, start), problem.seed) as adapters:
            taken = list(islice(steps(task, adapters, examples, problem, name=f"{index}/{number}"), site.steps))
            updates[f"site-{index}"] = Update(adapter_file(adapters.trainable), ranks, site.steps, len(examples))
        losses.append(sum(taken) / len(taken))
    return updates, losses
