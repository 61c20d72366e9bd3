"""Rivals are held to the tiers' memory: their plans are given, and each site computes a batch in passes that fit into its memory.

FedIT's own code does so (`local_micro_batch_size`, Shepherd; FLoRA's is built on it), and it changes no gradient: the benchmark computes a
batch at once whatever its passes are. So of the runs that were made before, whose clock counted whole batches, only the clock changes.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from configuration import Planned, Run, Study
from federation import described
from fleet_sites import name_of, plan, plan_of_passes, site_profiles
from results import stored
from site_data import stored_data

from fedpipe_operator.planning import History
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD
from fedpipe_operator.planning.request import MEMORY_FRACTION
from fedpipe_trainer.contract import Plan

Curve = list[dict[str, Any]]
_HEADER: Final = (
    "run",
    "rank",
    "whole batch, MB",
    "may use, MB",
    "sites beyond",
    "samples at once",
    "MB then",
    "a round with whole batches, s",
    "held, s",
)


def curve_of(configuration: Run | Study) -> Curve | None:
    """The stored curve, of a rival on the clock of passes that fit into the sites' memory; None if the run was not made yet."""
    result = stored(configuration)
    if result is None:
        return None
    return held(configuration, result["curve"]) if isinstance(configuration, Run) else list(result["curve"])


def held(run: Run, curve: Curve) -> Curve:
    """The curve on the clock of the plans as they are held to memory, up to the end of the run's time.

    Raises:
        ValueError: the training itself would be another one, so the run must be made again.
    """
    data = stored_data(run.problem, len(run.slowdowns))
    if isinstance(run.work, Planned) or data is None:
        return curve
    plans = plan(run, site_profiles(run, data), History()).plans.plans
    now = {site: described(one) for site, one in plans.items()}
    if curve[0]["plans"] == now:
        return curve
    if run.schedule != "Constant" or any(one.cached for one in run.work) or curve[0]["plans"].keys() != now.keys():
        raise ValueError("a stored run was made with more memory than its sites have, and trains otherwise with less: delete its result")
    length, idle = _length(plans), _idle(plans)
    points = [point | {"seconds": point["round"] * length, "idle": idle, "plans": now} for point in curve]
    return [point for point in points if point["seconds"] <= run.seconds]


def memory_table(runs: Mapping[str, Run | Study]) -> str:
    """Whether the rivals' plans fit into the tiers' memory with the whole batch at once, and in which passes they do. Trains nothing."""
    rows = [_row(name, run) for name, run in runs.items() if isinstance(run, Run) and isinstance(run.work, tuple)]
    return "\n".join(["| " + " | ".join(_HEADER) + " |", "|---" * len(_HEADER) + "|", *rows])


def _row(name: str, run: Run) -> str:
    data = stored_data(run.problem, len(run.slowdowns))
    if data is None:
        return f"| {name} |" + " – |" * (len(_HEADER) - 1)
    sites = site_profiles(run, data)
    whole, fitting = plan_of_passes(run, sites, run.problem.batch_size), plan(run, sites, History()).plans.plans
    room = {name: MEMORY_FRACTION * site.memory_bytes for name, site in sites.items()}
    beyond = sum(one.forecast.memory_bytes > room[name] for name, one in whole.items())
    shown = [name for name in _one_of_each_tier(run) if name in sites] or list(sites)
    columns = [
        _each(max(whole[name].ranks.values()) for name in shown),
        _each(round(whole[name].forecast.memory_bytes / 1e6) for name in shown),
        _each(round(room[name] / 1e6) for name in shown),
        f"{beyond} of {len(sites)}",
        _each(fitting[name].micro_batch if name in fitting else "left out" for name in shown),
        _each(round(fitting[name].forecast.memory_bytes / 1e6) if name in fitting else "–" for name in shown),
        f"{_length(whole):.1f}",
        f"{_length(fitting):.1f}" if fitting else "–",
    ]
    return f"| {name} | {' | '.join(columns)} |"


def _one_of_each_tier(run: Run) -> list[str]:
    """The first site of each tier, the fastest tier first."""
    return [name_of(run.slowdowns.index(slowdown)) for slowdown in sorted(set(run.slowdowns))]


def _each(values: Iterable[float | str]) -> str:
    """One value if all are the same, or one for each tier."""
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _length(plans: Mapping[str, Plan]) -> float:
    """Virtual seconds of a round."""
    return max(one.forecast.seconds for one in plans.values()) + ROUND_OVERHEAD


def _idle(plans: Mapping[str, Plan]) -> float:
    """Share of the sites' time in a round that they wait for the slowest."""
    seconds = [one.forecast.seconds for one in plans.values()]
    return 1 - sum(seconds) / (len(seconds) * max(seconds))
