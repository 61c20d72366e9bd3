"""The fleet's FedIT beside Flower's own simulation of it, so that the rival is no straw man: `python benchmarks/fleet flower`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, Final

from configuration import Given, Run, key_of
from federation import run
from results import stored
from sweeps import main

FILE: Final = Path(__file__).with_name("flower.json")
NAME: Final = "independent, FedIT, seed 0"
_COMMAND: Final = "python benchmarks/fleet flower"
_INSTALL: Final = "pip install --no-deps --require-hashes -r requirements-rival.lock"
_FOLDERS: Final = (Path(__file__).parent, Path(__file__).parents[2] / "examples")
Pair = dict[str, Any]


def fedit(steps: int | None) -> Run:
    """The main table's FedIT, or the same with other steps of each site in a round."""
    found = main(range(1))[NAME]
    if not isinstance(found, Run) or not isinstance(found.work, tuple):
        raise TypeError(f"the plans of {NAME!r} are to be given")
    return found if steps is None else replace(found, work=tuple(replace(one, steps=steps) for one in found.work))


def compare(steps: int | None, rounds: int, threads: int) -> Pair:
    """Both curves of so many rounds; stored where the README's table reads them if the steps are the main table's.

    Args:
        steps: of each site in a round; None: those of the main table.
        rounds: as many, or as the stored run of the fleet has.
        threads: of each of the two, which take turns.

    Raises:
        SystemExit: ray is not installed.
    """
    if find_spec("ray") is None:
        raise SystemExit(f"Flower's simulation needs ray, which is not installed: {_INSTALL}")
    configuration = fedit(steps)
    ours, seconds = _of_fleet(configuration, rounds)
    flower = _of_flower(configuration, len(ours), threads)
    pair = {"run": key_of(configuration), "steps": _steps(configuration), "fleet": ours, "fleet_seconds": seconds, "flower": flower}
    if steps is None:
        FILE.write_text(json.dumps(pair, indent=1) + "\n", encoding="utf-8")
    return pair


def table_of_pair() -> str:
    """The stored pair as a table, or that it has not been made."""
    if not FILE.is_file():
        return f"Not run yet: `{_COMMAND}`."
    pair = json.loads(FILE.read_text(encoding="utf-8"))
    if pair["run"] != key_of(fedit(None)):
        return f"Not run yet with the rule as it is now: `{_COMMAND}`."
    return table(pair)


def table(pair: Pair) -> str:
    """A row for each round, and below how far the curves lie apart and what each took in real seconds."""
    lines = ["| round | accuracy: fleet | Flower | difference | loss: fleet | Flower | difference |", "|---" * 7 + "|"]
    rows = list(zip(pair["fleet"], pair["flower"], strict=True))
    for number, (ours, flower) in enumerate(rows, start=1):
        cells = [f"{ours[field]:.3f} | {flower[field]:.3f} | {flower[field] - ours[field]:+.3f}" for field in ("accuracy", "loss")]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    apart = [abs(flower["accuracy"] - ours["accuracy"]) for ours, flower in rows]
    told = f"Accuracies differ by {mean(apart):.3f} on average and {max(apart):.3f} at most, with {pair['steps']} steps a round."
    seconds = f"Real seconds a round: {pair['fleet_seconds']:.1f} and {pair['flower'][-1]['seconds'] / len(rows):.1f} (Flower)."
    return "\n".join([*lines, "", told, seconds])


def _steps(configuration: Run) -> int:
    return max(one.steps for one in configuration.work if isinstance(one, Given)) if isinstance(configuration.work, tuple) else 0


def _of_fleet(configuration: Run, rounds: int) -> tuple[list[dict[str, float]], float]:
    """Accuracy and loss after each round, as stored or computed now, and the real seconds of a round."""
    found = stored(configuration)
    if found is not None:
        points, seconds = found["curve"][:rounds], found["real_seconds"] / len(found["curve"])
    else:
        started = time.monotonic()
        points = [asdict(point) for point in islice(run(configuration), rounds)]
        seconds = (time.monotonic() - started) / len(points)
    return [{"accuracy": point["accuracy"], "loss": point["loss"]} for point in points], round(seconds, 1)


def _of_flower(configuration: Run, rounds: int, threads: int) -> list[dict[str, float]]:
    """The same of Flower's simulation, in a process of its own."""
    work = [asdict(one) for one in configuration.work if isinstance(one, Given)] if isinstance(configuration.work, tuple) else []
    wanted = {"problem": asdict(configuration.problem), "work": work, "rounds": rounds, "threads": threads}
    # Flower reports each start to its makers unless told not to. Its clients are processes that find the benchmark's modules by the path.
    path = os.pathsep.join([*(str(folder) for folder in _FOLDERS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(prefix="fedpipe-flower-") as folder:
        files = [Path(folder) / "wanted.json", Path(folder) / "curve.json"]
        files[0].write_text(json.dumps(wanted), encoding="utf-8")
        program = str(_FOLDERS[0] / "flower_fedit.py")
        subprocess.run([sys.executable, program, *map(str, files)], check=True, env=environment)
        curve: list[dict[str, float]] = json.loads(files[1].read_text(encoding="utf-8"))
    return curve
