"""The table of the trials: mean and standard deviation over the seeds, and how often a rule was better than random."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from trial import Trial, stored


def print_table(trials: Sequence[Trial]) -> None:
    """A line for each budget and rule; what has not been run yet is listed below."""
    results = {trial: stored(trial) for trial in trials}
    found = {trial: result for trial, result in results.items() if result is not None}
    print("| budget | elements | rule | seeds | steps | test loss | accuracy | loss lower than random's |")
    print("|---|---:|---|---:|---:|---|---|---|")
    for budget, rule in dict.fromkeys((trial.budget, trial.rule) for trial in found):
        mine = {trial.seed: result for trial, result in found.items() if (trial.budget, trial.rule) == (budget, rule)}
        random = {trial.seed: result for trial, result in found.items() if (trial.budget, trial.rule) == (budget, "random")}
        elements = "–".join(str(count) for count in sorted({result["elements"] for result in mine.values()}))
        for point in range(len(next(iter(mine.values()))["curve"])):
            steps = next(iter(mine.values()))["curve"][point]["steps"]
            loss, accuracy = (_column(mine, point, field) for field in ("loss", "accuracy"))
            cells = [budget, elements, rule, len(mine), steps, _spread(loss, 3), _spread([100 * one for one in accuracy], 1)]
            print("| " + " | ".join(map(str, cells)) + f" | {_compared(mine, random, point)} |")
    missing = [trial for trial, result in results.items() if result is None]
    if missing:
        print(f"\nNot run yet: {'; '.join(f'{one.budget}, {one.rule}, seed {one.seed}' for one in missing)}.")


def _column(results: dict[int, dict[str, Any]], point: int, field: str) -> list[float]:
    return [results[seed]["curve"][point][field] for seed in sorted(results)]


def _spread(values: Sequence[float], digits: int) -> str:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"


def _compared(mine: dict[int, dict[str, Any]], random: dict[int, dict[str, Any]], point: int) -> str:
    """The mean difference of the loss to random's of the same seed, and its sign for each seed."""
    seeds = sorted(mine.keys() & random.keys())
    if not seeds or mine is random:
        return ""
    differences = [mine[seed]["curve"][point]["loss"] - random[seed]["curve"][point]["loss"] for seed in seeds]
    signs = "".join("−" if difference < 0 else "+" if difference > 0 else "0" for difference in differences)
    return f"{mean(differences):+.3f} ({signs})"
