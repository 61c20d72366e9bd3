"""A federated run on a virtual clock: the training is real and in this process, the seconds are those of the run's sites.

A round lasts as long as its slowest site by the operator's own forecast (load, evaluation, transfers, steps by depth and micro-batch), and
the planner's allowance for aggregation. The seconds of the fastest tier are measured (`fleet_sites`), those of another tier are a multiple.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch
from configuration import Run, Study
from fleet_sites import name_of, plan, site_profiles
from server import Update, adapter_file, aggregate, merged, parse_adapter, start_of
from task import Partition, Task, load_task, partition
from torch import Tensor
from training import Quality, evaluate, evaluate_global, ranks_of, steps, trainable

from fedpipe_operator.planning import History
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD
from fedpipe_operator.rounds.observed import EvaluationSummary
from fedpipe_operator.rounds.policies import is_stalled
from fedpipe_trainer.adapters import AdapterTensors
from fedpipe_trainer.contract import Plan


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
    sites: int
    """That took part."""
    plans: dict[str, list[float]]
    """By site, see `described`."""


def run(configuration: Run) -> Iterator[Point]:
    """Yield the state after each round, until the next round would end too late."""
    task = load_task(configuration.problem.max_length)
    split = partition(task.train, configuration.problem, len(configuration.slowdowns))
    sites = site_profiles(task, configuration, split)
    seconds, number, uploaded, downloaded = 0.0, 0, 0, 0
    adapter: bytes | None = None
    deltas: dict[str, Tensor] = {}
    history, evaluations = History(), dict[int, EvaluationSummary]()
    while True:
        number += 1
        plans = plan(task, configuration, sites, replace(history, round=number)).plans.plans
        length = max(one.forecast.seconds for one in plans.values())
        seconds += length + ROUND_OVERHEAD
        if seconds > configuration.seconds:
            return
        start = parse_adapter(task, adapter)
        with merged(task, deltas):
            updates, losses = _train_sites(task, configuration, split, plans=plans, start=start, number=number)
        downloaded += len(adapter or b"") * len(updates)
        uploaded += sum(len(update.data) for update in updates.values())
        adapter, learned = aggregate(task, configuration.problem, configuration.server, updates, adapter)
        new = parse_adapter(task, adapter)
        if configuration.server.method == "FLoRA":
            deltas = {name: deltas.get(name, torch.zeros(())) + factors.b @ factors.a for name, factors in new.weights.items()}
            new = AdapterTensors(head=new.head)
        history = replace(history, learned=learned)
        if number % configuration.evaluate_every:
            continue
        with merged(task, deltas):
            quality = evaluate_global(task, new, split.slow_classes)
        evaluations[number] = EvaluationSummary(number, quality.loss, {"accuracy": quality.accuracy}, ())
        history = History(learned=learned, is_stalled=is_stalled(evaluations))
        yield Point(
            round=number,
            seconds=seconds,
            accuracy=quality.accuracy,
            loss=quality.loss,
            slow_accuracy=quality.slow_accuracy,
            train_loss=sum(losses) / len(losses),
            uploaded=uploaded,
            downloaded=downloaded,
            idle=1 - sum(one.forecast.seconds for one in plans.values()) / (len(plans) * length),
            sites=len(plans),
            plans={site: described(one) for site, one in plans.items()},
        )


def described(one: Plan) -> list[float]:
    """Steps, trained layers, micro-batch, mean rank of the trained weights, forecast memory in MB, batch."""
    ranks = [rank for rank in one.ranks.values() if rank]
    memory = round(one.forecast.memory_bytes / 1e6)
    return [one.steps, one.trained_layers, one.micro_batch, round(sum(ranks) / len(ranks), 1), memory, one.batch_size]


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


def _train_sites(  # noqa: PLR0913 -- the parts of a round
    task: Task, configuration: Run, split: Partition, *, plans: Mapping[str, Plan], start: AdapterTensors, number: int
) -> tuple[dict[str, Update], list[float]]:
    """One round of training at every site that takes part: the updates by site, and the sites' mean losses."""
    problem, updates, losses = configuration.problem, {}, []
    for index, rows in enumerate(split.rows):
        site = plans.get(name_of(index))
        if site is None:
            continue
        examples = tuple(task.train[i] for i in rows)
        ranks = {weight: rank for weight, rank in site.ranks.items() if rank}
        with trainable(task, ranks, start_of(ranks, configuration.server, start), problem.seed) as adapters:
            losses_of_steps = steps(
                task, adapters, examples, problem, name=f"{index}/{number}", lowest=site.lowest_layer, batch_size=site.batch_size
            )
            taken = list(islice(losses_of_steps, site.steps))
            updates[name_of(index)] = Update(adapter_file(adapters.trainable), ranks, site.steps, len(examples))
        losses.append(sum(taken) / len(taken))
    return updates, losses
