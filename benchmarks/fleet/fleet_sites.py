"""The fleet's sites as the operator's planner sees them: one measured profile, slowed down by tier, with each site's own data.

The clock of every run, also of the rivals, is the operator's own forecast for these profiles. It is measured: `profile.json` is what the
trainer's profile task found on one machine, and `benchmarks/forecasts` holds such forecasts to measured seconds.
"""

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from configuration import E2E, NEWSGROUPS, PROFILES, Planned, Run, bits_of
from site_data import SiteData
from task import VALIDATION, Partition, Task, objective_of

from fedpipe_operator.admission import AdmittedProfile
from fedpipe_operator.api import EdgeSite, FineTuneSpec
from fedpipe_operator.planning import FleetPlans, History, plan_round
from fedpipe_operator.planning.request import MEMORY_FRACTION
from fedpipe_operator.planning.sizes import head_shapes
from fedpipe_operator.sites import SiteProfile, site_profile
from fedpipe_trainer.contract import Bits, Importance, ImportanceMethod, Plan, ProfileResult
from fedpipe_trainer.profiling.importance import measure_importance
from fedpipe_trainer.profiling.subject import Subject

BATCHES: Final = (2, 4, 8, 16)
_PASSES: Final = (16, 8, 4, 2, 1)
"""Samples that a site with a given plan computes at once, the fastest first: the batch stays, its gradients are accumulated."""
_MODEL: Final = "file:///model"
"""No forecast depends on where the base is."""
_UP, _DOWN = 80e6, 400e6
"""Bandwidth of the fastest tier, bits per second; another tier has its part of it."""
_TRAINING_MEMORY: Final = 1.1
"""Memory of the fastest tier beyond what loading the base needs, in units of what training all of it needs; other tiers have a part."""
_TIERS_BITS: Final[Bits] = 16
_SCORED_AT_ONCE: Final = 8
_SCORING_SECONDS: Final = {NEWSGROUPS: 0.9, E2E: 0.0}
"""Of a processor of this machine, for the importance scores of one site, where the measured profile does not contain them."""


def site_profiles(run: Run, data: Sequence[SiteData], importance: Sequence[Importance | None] = ()) -> dict[str, SiteProfile]:
    """The profile of each site that takes part, by name.

    Args:
        run: the run.
        data: of each site.
        importance: each site's scores; none at all where the plans are given.
    """
    measured, sites = measured_profile(run), {}
    for index, slowdown in enumerate(run.slowdowns):
        if isinstance(run.work, tuple) and not run.work[index].steps:
            continue
        facts = {"site": name_of(index), **_data(data[index]), "importance": importance[index] if importance else None}
        site = _slowed(measured, slowdown, run.starts).model_copy(update=facts)
        edge_site = _edge_site(index, tier_memory(run, slowdown), has_cache=_has_cache(run, index))
        sites[name_of(index)] = site_profile(edge_site, AdmittedProfile(site))
    return sites


def profile_seconds(run: Run) -> float:
    """Virtual seconds before the first round: all sites are profiled at once. Given plans need no profile. Set-up is left out for all."""
    if not isinstance(run.work, Planned):
        return 0.0
    measured = measured_profile(run)
    scoring, widths = _SCORING_SECONDS[run.problem.data], len(measured.load_seconds)
    return max(run.slowdowns) * (measured.load_seconds[bits_of(run)] + measured.measured.seconds["profile"] / widths + scoring)


def measured_profile(run: Run) -> ProfileResult:
    """The profile of the fastest tier, of the base that the run trains on."""
    return _profile(run.problem.data, bits_of(run))


@lru_cache
def _profile(data: str, bits: Bits) -> ProfileResult:
    """The profile of this data and base.

    Raises:
        SystemExit: it has not been measured.
    """
    file = PROFILES[data, bits]
    if not file.is_file():
        raise SystemExit(f"{file.name} does not exist: measure it with `python benchmarks/fleet profile`, see README.md")
    return ProfileResult.model_validate_json(file.read_text(encoding="utf-8"))


def tier_memory(run: Run, slowdown: float) -> int:
    """Bytes of a site: what loading the base needs, and the tier's part of what training all of it with the whole batch needs beside it.

    Both at 16 bits, whatever the run's are. A plan may use `MEMORY_FRACTION` of it.
    """
    measured = measured_profile(run)
    loading = measured.load_peak_bytes[_TIERS_BITS]
    training = max(point.peak_memory_bytes for point in measured.throughput if point.bits == _TIERS_BITS) - loading
    return int((loading + _TRAINING_MEMORY * training / slowdown) / MEMORY_FRACTION)


def is_in_memory(site: SiteProfile, one: Plan) -> bool:
    """Whether the site may use as much memory as the plan is forecast to need."""
    return one.forecast.memory_bytes <= MEMORY_FRACTION * site.memory_bytes


def plan(run: Run, sites: Mapping[str, SiteProfile], history: History) -> FleetPlans:
    """The plans of a round: the planner's, or those that the run gives, held to the sites' memory."""
    return plan_round(spec_of(run, {} if isinstance(run.work, Planned) else passes_within(run, sites)), sites, _head(run), history)


def plan_of_passes(run: Run, sites: Mapping[str, SiteProfile], size: int) -> Mapping[str, Plan]:
    """The plans that the run gives, with passes of at most so many samples at every site, whatever memory they need."""
    return plan_round(spec_of(run, dict.fromkeys(sites, size)), sites, _head(run)).plans.plans


def passes_within(run: Run, sites: Mapping[str, SiteProfile]) -> dict[str, int]:
    """By site: the most samples at once with which its given plan needs no more memory than its tier has; without sites that have none."""
    found: dict[str, int] = {}
    for size in _PASSES:
        made = plan_of_passes(run, sites, size)
        found |= {name: size for name, one in made.items() if name not in found and is_in_memory(sites[name], one)}
    return found


def _head(run: Run) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that are trained in full, by their names in the base."""
    measured = measured_profile(run)
    shapes = head_shapes(measured.base, len(measured.labels)) if measured.base else {}
    return {name.removeprefix("base_model.model."): shape for name, shape in shapes.items()}


def spec_of(run: Run, passes: Mapping[str, int]) -> FineTuneSpec:
    """The spec of the run.

    Args:
        run: the run.
        passes: by site with a given plan: samples that it computes at once.
    """
    objective = objective_of(run.problem.data, run.problem.max_length, measured_profile(run).labels)
    if isinstance(run.work, Planned):
        ranks = [rank for rank in (0, 2, 4, 8, 16, 32) if rank <= run.work.max_rank]
        planning: dict[str, Any] = {"mode": run.work.mode, "depth": run.work.depth, "ranks": ranks, "batchSizes": run.work.batch_sizes}
    else:
        planning = {
            "mode": "Manual",
            "ranks": sorted({one.rank for one in run.work}),
            "plans": _given_plans(run, passes),
            "batchSizes": [size for size in BATCHES if size <= run.problem.batch_size],
        }
    return FineTuneSpec.model_validate(
        {
            "model": {"source": _MODEL},
            "task": {key: value for key, value in json.loads(objective.to_json()).items() if key != "dropsOtherLabels"},
            "store": {"bucket": "fedpipe"},
            "rounds": {"count": run.rounds, "deadline": "1h"},
            "planning": planning | {"bits": [bits_of(run)]},
            "training": {"learningRate": run.problem.learning_rate},
            "evaluation": {"maxSamples": VALIDATION},
        }
    )


def name_of(index: int) -> str:
    """The name of a site."""
    return f"site-{index}"


def _given_plans(run: Run, passes: Mapping[str, int]) -> list[dict[str, Any]]:
    """`planning.plans`, of the sites with passes."""
    return [
        {"site": name_of(index), "bits": 16, "rank": one.rank, "steps": one.steps, "cacheActivations": one.cached}
        | {"microBatchSize": min(passes[name_of(index)], run.problem.batch_size)}
        | ({"layers": one.depth} if one.depth else {})
        for index, one in enumerate(run.work if isinstance(run.work, tuple) else ())
        if name_of(index) in passes
    ]


def _slowed(measured: ProfileResult, slowdown: float, starts: int) -> ProfileResult:
    """The same profile of a machine that is slower by this factor. Its process is kept from round to round, so there is no set-up.

    Of several starts in a round, each loads the base, takes a first step and receives the global adapter.
    """
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
            "load_seconds": {bits: starts * seconds * slowdown for bits, seconds in measured.load_seconds.items()},
            "first_step_seconds": {bits: starts * seconds * slowdown for bits, seconds in measured.first_step_seconds.items()},
            "up_bits_per_second": _UP / slowdown,
            "down_bits_per_second": _DOWN / slowdown / starts,
        }
    )


def _data(site: SiteData) -> dict[str, Any]:
    """The facts about the site's own data."""
    return {
        "train_samples": site.samples,
        "validation_samples": VALIDATION,
        "mean_tokens": site.mean_tokens,
        "longest_tokens": site.longest_tokens,
    }


def _has_cache(run: Run, index: int) -> bool:
    return run.work.cache if isinstance(run.work, Planned) else run.work[index].cached


def _edge_site(index: int, memory: int, *, has_cache: bool) -> EdgeSite:
    """With a claim of so many bytes of memory."""
    cache = {"cache": {"persistentVolumeClaim": {"claimName": f"{name_of(index)}-cache"}}} if has_cache else {}
    document = {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "EdgeSite",
        "metadata": {"name": name_of(index)},
        "spec": {
            "capacity": {"memory": str(memory)},
            "data": {
                "train": "train.jsonl",
                "validation": "validation.jsonl",
                "volume": {"persistentVolumeClaim": {"claimName": f"{name_of(index)}-data"}},
            },
        }
        | cache,
    }
    return EdgeSite.model_validate(document)


def importance_of(task: Task, run: Run, split: Partition) -> list[Importance | None]:
    """The scores of each site."""
    return [_importance(task, run, rows) for rows in split.rows]


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
