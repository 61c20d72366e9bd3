"""The fleet's sites as the operator's planner sees them: one measured profile, slowed down by tier, with each site's own data.

The clock of every run, also of the rivals, is the operator's own forecast for these profiles. It is measured: `profile.json` is what the
trainer's profile task found on one machine, and `benchmarks/forecasts` holds such forecasts to measured seconds.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from configuration import E2E, NEWSGROUPS, PROFILES, Given, Planned, Problem, Run
from ingredients.models import model_folder
from task import CACHE, MODELS, VALIDATION, Partition, Task

from fedpipe_operator.admission import AdmittedProfile
from fedpipe_operator.api import EdgeSite, FineTuneSpec
from fedpipe_operator.planning import FleetPlans, History, plan_round
from fedpipe_operator.sites import SiteProfile, site_profile
from fedpipe_trainer.contract import Importance, ImportanceMethod, ProfileResult
from fedpipe_trainer.profiling.importance import measure_importance
from fedpipe_trainer.profiling.subject import Subject

BATCHES: Final = (2, 4, 8, 16)
_UP, _DOWN = 80e6, 400e6
"""Bandwidth of the fastest tier, bits per second; another tier has its part of it."""
_TRAINING_MEMORY: Final = 1.1
"""Memory of the fastest tier beyond what loading the base needs, in units of what training all of it needs; other tiers have a part."""
_SCORED_AT_ONCE: Final = 8
_SCORING_SECONDS: Final = {NEWSGROUPS: 0.9, E2E: 0.0}
"""Of a processor of this machine, for the importance scores of one site, where the measured profile does not contain them."""


def site_profiles(task: Task, run: Run, split: Partition) -> dict[str, SiteProfile]:
    """The profile of each site that takes part, by name."""
    measured = measured_profile(run.problem)
    sites = {}
    for index, slowdown in enumerate(run.slowdowns):
        if isinstance(run.work, tuple) and not run.work[index].steps:
            continue
        site = _slowed(measured, slowdown).model_copy(update={"site": name_of(index), **_data(task, split.rows[index])})
        if isinstance(run.work, Planned):
            site = site.model_copy(update={"importance": _importance(task, run, split.rows[index])})
        edge_site = _edge_site(index, slowdown, measured, has_cache=_has_cache(run, index))
        sites[name_of(index)] = site_profile(edge_site, AdmittedProfile(site))
    return sites


def profile_seconds(run: Run) -> float:
    """Virtual seconds before the first round: all sites are profiled at once. Given plans need no profile. Set-up is left out for all."""
    if not isinstance(run.work, Planned):
        return 0.0
    measured = measured_profile(run.problem)
    scoring = _SCORING_SECONDS[run.problem.data]
    return max(run.slowdowns) * (measured.load_seconds[16] + measured.measured.seconds["profile"] + scoring)


def measured_profile(problem: Problem) -> ProfileResult:
    """The profile of the fastest tier."""
    return ProfileResult.model_validate_json(PROFILES[problem.data].read_text(encoding="utf-8"))


def plan(task: Task, run: Run, sites: Mapping[str, SiteProfile], history: History) -> FleetPlans:
    """The plans of a round: the planner's, or those that the run gives."""
    head = {name: tuple(task.base.model.get_parameter(name).shape) for name in task.base.head}
    return plan_round(spec_of(task, run), sites, head, history)


def spec_of(task: Task, run: Run) -> FineTuneSpec:
    """The spec of the run."""
    if isinstance(run.work, Planned):
        ranks = [rank for rank in (0, 2, 4, 8, 16, 32) if rank <= run.work.max_rank]
        planning: dict[str, Any] = {"mode": run.work.mode, "depth": run.work.depth, "ranks": ranks, "batchSizes": run.work.batch_sizes}
    else:
        planning = {
            "mode": "Manual",
            "ranks": sorted({one.rank for one in run.work}),
            "plans": _given_plans(run.work),
            "batchSizes": [size for size in BATCHES if size <= run.problem.batch_size],
        }
    return FineTuneSpec.model_validate(
        {
            "model": {"source": model_folder(MODELS[run.problem.data], CACHE).as_uri()},
            "task": {key: value for key, value in json.loads(task.objective.to_json()).items() if key != "dropsOtherLabels"},
            "store": {"bucket": "fedpipe"},
            "rounds": {"count": run.rounds, "deadline": "1h"},
            "planning": planning | {"bits": [16]},
            "training": {"learningRate": run.problem.learning_rate},
            "evaluation": {"maxSamples": VALIDATION},
        }
    )


def name_of(index: int) -> str:
    """The name of a site."""
    return f"site-{index}"


def _given_plans(given: Sequence[Given]) -> list[dict[str, Any]]:
    """`planning.plans`."""
    return [
        {"site": name_of(index), "bits": 16, "rank": one.rank, "steps": one.steps, "cacheActivations": one.cached}
        | ({"layers": one.depth} if one.depth else {})
        for index, one in enumerate(given)
        if one.steps
    ]


def _slowed(measured: ProfileResult, slowdown: float) -> ProfileResult:
    """The same profile of a machine that is slower by this factor. Its process is kept from round to round, so there is no set-up."""
    points = [
        point.model_copy(
            update={
                "tokens_per_second": point.tokens_per_second / slowdown,
                "evaluate_tokens_per_second": point.evaluate_tokens_per_second / slowdown,
            }
        )
        for point in measured.throughput
    ]
    return measured.model_copy(
        update={
            "setup_seconds": 0.0,
            "throughput": tuple(points),
            "load_seconds": {bits: seconds * slowdown for bits, seconds in measured.load_seconds.items()},
            "first_step_seconds": {bits: seconds * slowdown for bits, seconds in measured.first_step_seconds.items()},
            "up_bits_per_second": _UP / slowdown,
            "down_bits_per_second": _DOWN / slowdown,
        }
    )


def _data(task: Task, rows: Sequence[int]) -> dict[str, Any]:
    """The facts about the site's own data."""
    lengths = [len(task.train[row].input_ids) for row in rows]
    return {
        "labels": task.labels,
        "train_samples": len(lengths),
        "validation_samples": VALIDATION,
        "mean_tokens": sum(lengths) / len(lengths),
        "longest_tokens": max(lengths),
    }


def _has_cache(run: Run, index: int) -> bool:
    return run.work.cache if isinstance(run.work, Planned) else run.work[index].cached


def _edge_site(index: int, slowdown: float, measured: ProfileResult, *, has_cache: bool) -> EdgeSite:
    """Its claim of memory: what loading needs, and the tier's part of what training all layers with the whole batch needs beside it."""
    loading = measured.load_peak_bytes[16]
    training = max(point.peak_memory_bytes for point in measured.throughput) - loading
    memory = (loading + _TRAINING_MEMORY * training / slowdown) / 0.85
    cache = {"cache": {"persistentVolumeClaim": {"claimName": f"{name_of(index)}-cache"}}} if has_cache else {}
    document = {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "EdgeSite",
        "metadata": {"name": name_of(index)},
        "spec": {
            "capacity": {"memory": str(int(memory))},
            "data": {
                "train": "train.jsonl",
                "validation": "validation.jsonl",
                "volume": {"persistentVolumeClaim": {"claimName": f"{name_of(index)}-data"}},
            },
        }
        | cache,
    }
    return EdgeSite.model_validate(document)


def _importance(task: Task, run: Run, rows: Sequence[int]) -> Importance | None:
    """The scores of the site's own data, or for the ablation the same in random or inverse order."""
    method = run.work.importance if isinstance(run.work, Planned) else "None"
    if method == "None":
        return None
    examples = [task.train[row] for row in rows]
    subject = Subject(task.base, task.objective, task.weights, examples, rank=8, seed=run.problem.seed)
    scores = measure_importance(ImportanceMethod.GRADIENT, subject, _SCORED_AT_ONCE)
    if scores is None or method == "Gradient":
        return scores
    halves = {"first_half": _reordered(scores.first_half, method), "second_half": _reordered(scores.second_half, method)}
    return scores.model_copy(update=halves)


def _reordered(scores: Mapping[str, float], method: str) -> dict[str, float]:
    names = sorted(scores, key=lambda name: scores[name])
    values = [scores[name] for name in names]
    if method == "Inverse":
        return dict(zip(names, reversed(values), strict=True))
    shuffled = random.Random(0).sample(sorted(scores), len(scores))  # noqa: S311 -- the same order at every site, no secret
    return dict(zip(shuffled, values, strict=True))
