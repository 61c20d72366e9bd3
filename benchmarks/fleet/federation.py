"""A federated run on a virtual clock: the training is real and in this process, the seconds are those of the run's sites.

A round lasts as long as its slowest site by the operator's own forecast (load, evaluation, transfers, steps by depth and micro-batch), and
the planner's allowance for aggregation. The seconds of the fastest tier are measured (`fleet_sites`), those of another tier are a multiple.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from configuration import Planned, Run, Study, bits_of
from fleet_sites import importance_of, name_of, plan, profile_seconds, site_profiles
from server import Update, adapter_file, aggregate, bytes_down, merged, parse_adapter, start_of
from site_data import data_of
from task import Partition, Task, load_task, partition
from torch import Tensor
from training import Quality, evaluate, evaluate_global, ranks_of, steps, trainable, validation_loss

from fedpipe_operator.api import LearningRateSchedule
from fedpipe_operator.planning import History
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD
from fedpipe_operator.planning.hyperparameters import share_at
from fedpipe_operator.rounds.evidence import kept_activations
from fedpipe_operator.rounds.observed import EvaluationSummary
from fedpipe_operator.rounds.policies import is_stalled
from fedpipe_operator.sites import KeptActivations, Measurement
from fedpipe_trainer.activation_cache import CacheCounts, cached_activations
from fedpipe_trainer.adapters import AdapterTensors
from fedpipe_trainer.contract import Plan
from fedpipe_trainer.task_runtime import TaskRuntime


@dataclass(frozen=True)
class Point:
    """The state of a run after a round."""

    round: int
    seconds: float
    """Virtual."""
    accuracy: float
    loss: float
    slow_accuracy: float | None
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
    with TemporaryDirectory(prefix="fedpipe-fleet-") as folder:
        # In one folder, and yet each site reads its own: the rows are part of a value's name.
        runtime = TaskRuntime(Path(folder), Path(folder), write_progress=lambda _: None, stop_requested=lambda: False)
        yield from _run(configuration, runtime)


def _run(configuration: Run, runtime: TaskRuntime) -> Iterator[Point]:
    task = load_task(configuration.problem, bits_of(configuration))
    split = partition(task, configuration.problem, len(configuration.slowdowns))
    sites = site_profiles(configuration, data_of(task, split), importance_of(task, configuration, split))
    seconds, number, uploaded, downloaded = profile_seconds(configuration), 0, 0, 0
    left = configuration.seconds - seconds
    adapter: bytes | None = None
    deltas: dict[str, Tensor] = {}
    history, evaluations = History(), dict[int, EvaluationSummary]()
    while True:
        number += 1
        plans = plan(configuration, sites, replace(history, round=number)).plans.plans
        length = max(one.forecast.seconds for one in plans.values())
        share = share_at(LearningRateSchedule(configuration.schedule), 1 - (configuration.seconds - seconds - ROUND_OVERHEAD) / left)
        problem = replace(configuration.problem, learning_rate=share * configuration.problem.learning_rate)
        seconds += length + ROUND_OVERHEAD
        if seconds > configuration.seconds:
            return
        start = parse_adapter(task, adapter)
        with merged(task, deltas):
            trained = _train_sites(
                task, replace(configuration, problem=problem), split, plans=plans, start=start, number=number, runtime=runtime, sent=adapter
            )
        updates = {site: one.update for site, one in trained.items()}
        downloaded += configuration.starts * sum(one.downloaded for one in trained.values())
        uploaded += sum(len(update.data) for update in updates.values())
        adapter, learned = aggregate(task, configuration.problem, configuration.server, updates, adapter)
        new = parse_adapter(task, adapter)
        if configuration.server.method == "FLoRA":
            deltas = {name: deltas.get(name, torch.zeros(())) + factors.b @ factors.a for name, factors in new.weights.items()}
            new = AdapterTensors(head=new.head)
        history = replace(history, learned=learned, kept=_kept(plans, trained))
        if number % configuration.evaluate_every:
            continue
        with merged(task, deltas):
            quality = evaluate_global(task, new, split.slow_classes)
        if isinstance(configuration.work, Planned):  # the planner sees what the sites see, never the test documents
            loss = validation_loss(task, new, [row for rows in split.validation for row in rows])
            evaluations[number] = EvaluationSummary(number, loss, {}, ())
            history = replace(history, is_stalled=is_stalled(evaluations))
        yield Point(
            round=number,
            seconds=seconds,
            accuracy=quality.accuracy,
            loss=quality.loss,
            slow_accuracy=quality.slow_accuracy,
            train_loss=sum(one.loss for one in trained.values()) / len(trained),
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
    task = load_task(problem)
    split = partition(task, problem, 1)
    schedule, last = LearningRateSchedule(configuration.schedule), max(configuration.evaluate_at)
    with trainable(task, ranks_of(task, configuration.rank, configuration.depth), AdapterTensors(), problem.seed) as adapters:
        losses = steps(task, adapters, task.train, problem, name="study", share=lambda step: share_at(schedule, step / last))
        for number, _ in zip(range(1, last + 1), losses, strict=False):
            if number in configuration.evaluate_at:
                yield number, evaluate(task, split.slow_classes, configuration.test_documents)


@dataclass(frozen=True)
class _Trained:
    """A site's part of a round."""

    update: Update
    loss: float
    """Mean of its steps."""
    cache: CacheCounts
    downloaded: int


def _train_sites(  # noqa: PLR0913 -- the parts of a round
    task: Task,
    configuration: Run,
    split: Partition,
    *,
    plans: Mapping[str, Plan],
    start: AdapterTensors,
    number: int,
    runtime: TaskRuntime,
    sent: bytes | None,
) -> dict[str, _Trained]:
    """One round of training at every site that takes part."""
    problem, trained = configuration.problem, {}
    for index, rows in enumerate(split.rows):
        site = plans.get(name_of(index))
        if site is None:
            continue
        examples = tuple(task.train[i] for i in rows)
        ranks = {weight: rank for weight, rank in site.ranks.items() if rank}
        first = start_of(ranks, configuration.server, start)
        seed = problem.seed + 1000 * number + index if configuration.server.method == "FLoRA" else problem.seed  # new adapters each round
        with trainable(task, ranks, first, seed) as adapters, cached_activations(task.base, site, first, runtime) as counts:
            all_losses = steps(
                task, adapters, examples, problem, name=f"{index}/{number}", lowest=site.lowest_layer, batch_size=site.batch_size
            )
            losses = list(islice(all_losses, site.steps))
            update = Update(adapter_file(adapters.trainable), ranks, site.steps, len(examples))
        received = bytes_down(configuration.server, first, sent)
        trained[name_of(index)] = _Trained(update, sum(losses) / len(losses), counts, received)
    return trained


def _kept(plans: Mapping[str, Plan], trained: Mapping[str, _Trained]) -> dict[str, KeptActivations]:
    """What the sites' caches hold for the next round, as the operator finds out."""
    floor = min(one.lowest_layer for one in plans.values())
    found = {}
    for site, one in trained.items():
        measured = Measurement(
            step_seconds=0,
            other_seconds=0,
            peak_memory_bytes=0,
            steps=one.update.steps,
            cache_hits=one.cache.hits,
            cache_misses=one.cache.misses,
            cache_held=one.cache.held,
        )
        found[site] = kept_activations(plans[site], measured, floor, one.update.data_samples)
    return {site: kept for site, kept in found.items() if kept is not None}
