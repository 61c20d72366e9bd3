"""The tables of the README, from the stored results."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from configuration import Run, Study
from fleet_sites import name_of
from held import Curve, curve_of
from site_data import SiteData, stored_data

_README = Path(__file__).with_name("README.md")
_SHARES = (0.5, 0.65, 0.8, 0.95, 0.99)
"""Of the ceiling's final accuracy: the time to each of them is told."""
_LAST = 3
"""Points at the end of a curve whose mean is the final quality: single points are noisy."""
_MEMORY = 4
"""Where `federation.described` has the memory of a plan."""
_STEPS, _BATCH = 0, 5
_BYTES = ("uploaded", "downloaded")


class _Member(NamedTuple):
    """A run of a table's row."""

    curve: Curve
    ceiling: float | None
    data: tuple[SiteData, ...] | None
    """Of its sites."""
    slowdowns: tuple[float, ...]


def table_of(configurations: Mapping[str, Run | Study]) -> str:
    """One row for each rule, averaged over the seeds; runs whose result is missing are listed below."""
    curves = {name: curve_of(configuration) for name, configuration in configurations.items()}
    missing = [name for name, curve in curves.items() if curve is None]
    found = {name: curve for name, curve in curves.items() if curve is not None}
    is_of_runs = any(isinstance(one, Run) for one in configurations.values())
    lines = list(_of_runs(found, configurations) if is_of_runs else _of_studies(found))
    if missing:
        lines += ["", f"Not run yet ({len(missing)} of {len(curves)}): {_by_rule(missing)}."]
    return "\n".join(lines)


def _by_rule(names: Iterable[str]) -> str:
    """Each rule once, with its seeds."""
    seeds: dict[str, list[str]] = defaultdict(list)
    for name in names:
        rule, _, seed = name.partition(", seed ")
        seeds[rule].append(seed)
    return "; ".join(f"{rule} (seeds {', '.join(of_rule)})" if any(of_rule) else rule for rule, of_rule in seeds.items())


def in_readme(tables: Mapping[str, Callable[[], str]]) -> str:
    """The README with each table anew: they stand between `<!-- NAME -->` and `<!-- end -->`."""
    return re.sub(
        r"(<!-- ([a-z0-9-]+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{tables[found[2]]()}\n\n{found[3]}",
        _README.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )


def final(curve: Curve, field: str) -> float:
    """The mean of the last points."""
    return float(mean(point[field] for point in curve[-_LAST:]))


def seconds_to(curve: Curve, accuracy: float) -> float | None:
    """Virtual seconds until the accuracy is reached; None if it never is."""
    return next((point["seconds"] for point in curve if point["accuracy"] >= accuracy), None)


def _of_studies(found: Mapping[str, Curve]) -> Iterator[str]:
    steps = sorted({point["steps"] for curve in found.values() for point in curve})
    yield "| run | " + " | ".join(f"{count} steps" for count in steps) + " |"
    yield "|---|" + "---|" * len(steps)
    for name, curve in found.items():
        cells = {point["steps"]: f"{point['loss']:.3f} · {point['accuracy']:.3f}" for point in curve}
        yield f"| {name} | " + " | ".join(cells.get(count, "") for count in steps) + " |"


def _of_runs(found: Mapping[str, Curve], configurations: Mapping[str, Run | Study]) -> Iterator[str]:
    """A name is `setting, rule, seed N`; the targets are shares of the best centralised run's final accuracy with the same seed."""
    centralised = {name: final(curve, "accuracy") for name, curve in found.items() if name.startswith("centralised")}
    ceilings = {_seed(name): accuracy for name, accuracy in sorted(centralised.items(), key=lambda item: item[1])}
    rows: dict[str, list[_Member]] = defaultdict(list)
    for name, curve in found.items():
        if isinstance(run := configurations[name], Run):
            data = stored_data(run.problem, len(run.slowdowns))
            rows[name.rpartition(", seed")[0] or name].append(_Member(curve, ceilings.get(_seed(name)), data, run.slowdowns))
    targets = " | ".join(f"to {share:.0%}, s" for share in _SHARES)
    figures = "final accuracy | loss | slow sites' classes | up, MB a minute | down | idle | under-trained | sites | MB"
    yield f"| run | seeds | end, s | {targets} | {figures} |"
    yield "|---" * (12 + len(_SHARES)) + "|"
    for row, runs in rows.items():
        curves = [one.curve for one in runs]
        cells = [str(len(runs)), f"{mean(curve[-1]['seconds'] for curve in curves):.0f}"]
        cells += [_mean_seconds(runs, share) for share in _SHARES]
        cells += [_mean_final(curves, field) for field in ("accuracy", "loss", "slow_accuracy")]
        cells += [f"{mean(60 * curve[-1][field] / curve[-1]['seconds'] for curve in curves) / 1e6:.0f}" for field in _BYTES]
        cells += [
            f"{mean(mean(point['idle'] for point in curve) for curve in curves):.2f}",
            _under_trained(runs),
            _numbers({curve[-1]["sites"] for curve in curves}),
        ]
        yield f"| {row} | {' | '.join(cells)} | {_memory(curves)} |"
    told = ", ".join(f"{accuracy:.3f} ({name})" for name, accuracy in centralised.items())
    yield from ["", f"Accuracy of the ceiling: {told}."] if told else []


def _mean_final(curves: Sequence[Curve], field: str) -> str:
    return "–" if curves[0][-1][field] is None else f"{mean(final(curve, field) for curve in curves):.3f}"


def _memory(curves: Iterable[Curve]) -> str:
    """The least and the largest memory that any round planned for a site, in MB."""
    planned = [plan[_MEMORY] for curve in curves for point in curve for plan in point["plans"].values()]
    return _numbers({min(planned), max(planned)})


def _numbers(values: set[float]) -> str:
    return "–".join(f"{value:g}" for value in sorted(values))


def under_training(curve: Curve, data: Sequence[SiteData], sites: Collection[int]) -> float:
    """The under-training rate of these sites: the share of their samples that a round leaves untrained, on average over the rounds.

    What FedAvg plans for a site in a round is a pass over its data; a round ends with its slowest site, so what is left then is not
    trained in it. More than a pass counts as one; a site that takes no part trains nothing.
    """
    planned = sum(data[index].samples for index in sites)
    return 1 - mean(sum(min(data[index].samples, _trained(point, index)) for index in sites) for point in curve) / planned


def _trained(point: Mapping[str, Any], index: int) -> float:
    """Samples that a site trains in a round."""
    one = point["plans"].get(name_of(index))
    return 0.0 if one is None else float(one[_STEPS] * one[_BATCH])


def _under_trained(runs: Iterable[_Member]) -> str:
    """The rate of all sites, and of those of the slowest tier; nothing where the sites' data are not stored."""
    rates = [
        [under_training(one.curve, one.data, sites) for sites in (range(len(one.data)), _slowest(one.slowdowns))]
        for one in runs
        if one.data is not None
    ]
    return ", ".join(f"{mean(column):.2f}" for column in zip(*rates, strict=True)) or "–"


def _slowest(slowdowns: Sequence[float]) -> list[int]:
    return [index for index, slowdown in enumerate(slowdowns) if slowdown == max(slowdowns)]


def _mean_seconds(runs: Iterable[_Member], share: float) -> str:
    times = [seconds_to(one.curve, share * one.ceiling) for one in runs if one.ceiling is not None]
    reached = [time for time in times if time is not None]
    if not reached:
        return "–"
    return f"{mean(reached):.0f}" + ("" if len(reached) == len(times) else f" ({len(reached)} of {len(times)})")


def _seed(name: str) -> str:
    return name.rpartition("seed ")[2]
