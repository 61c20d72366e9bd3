"""Wall clock and accuracy of whole rounds: `fedpipe run` and Flower's own simulation on the same work, in one command.

    python benchmarks/round.py [--rounds 4] [--steps 12] [--client-cpus 1]

The work is the quick start's: MPNet at 16 bits with rank 32 on all attention projections, three sites with their own shares of 20
Newsgroups, an evaluation at every site after every round. Both platforms perform the very task files of our run: the same base,
data, batches, optimiser and evaluation, by the same code (`train_step.py` compares its speed with a plain loop). Flower averages the
factors A and B and the head with its strategy FedAvg, by samples; ours is aggregated by the run's method. Each keeps what it loaded:
Flower's actors live as long as its simulation. FedPipe measures the sites before its first round, which Flower does not; therefore the
seconds up to the first round are told apart. It also evaluates the base, in its first round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation, RoundPlan

BENCHMARKS: Final = Path(__file__).resolve().parent
QUICKSTART: Final = BENCHMARKS.parent / "examples" / "quickstart"
RUN: Final = "newsgroups"


@dataclass(frozen=True)
class Round:
    """A round of a platform; the first one of a list is everything before round 1."""

    seconds: float
    accuracy: float | None


def main() -> None:
    """Run both platforms and print a table of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of each site in a round")
    parser.add_argument(
        "--client-cpus", type=int, default=1, help="processors of each of Flower's clients: with 1, two work at once on two cores"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedpipe-bench-") as folder:
        ours = run_fedpipe(Path(folder), arguments)
        flower = run_flower(Path(folder), arguments)
    print_table({"fedpipe run": ours, f"Flower, {arguments.client_cpus} CPU a client": flower})


def run_fedpipe(folder: Path, arguments: argparse.Namespace) -> list[Round]:
    """The rounds of `fedpipe run`; the first element is everything before round 1."""
    example = folder / "example"
    example.mkdir()
    (example / "sites.yaml").write_text((QUICKSTART / "sites.yaml").read_text())
    run = yaml.safe_load((QUICKSTART / "run.yaml").read_text())
    run["spec"] |= {
        "rounds": {"count": arguments.rounds, "deadline": "1h"},
        "planning": {
            "mode": "Manual",
            "bits": [16],
            "ranks": [32],
            "batchSizes": [8, 16],
            "importance": "None",
            "plans": plans(arguments.steps),
        },
        "training": run["spec"]["training"] | {"maxSteps": arguments.steps, "learningRateSchedule": "Constant"},
        "export": {"adapter": False, "merged": False},
    }
    (example / "run.yaml").write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "fedpipe_operator.cli", "run", str(example), "--no-compare"]
    started = time.time()
    subprocess.run([*command, "--volumes", str(QUICKSTART / "volumes"), "--output", str(folder / "runs")], check=True)
    return _rounds_of(folder / "runs" / "default" / RUN / "store", arguments.rounds, started)


def plans(steps: int) -> list[dict[str, Any]]:
    """What the sites can run, fixed: measured speeds, which differ from run to run, do not change the work. 2 GiB hold a batch of 8."""
    plan = {"bits": 16, "rank": 32, "steps": steps}
    return [plan | {"batchSize": 16}, plan | {"site": "cabin", "batchSize": 8}]


def _rounds_of(store: Path, count: int, started: float) -> list[Round]:
    """Seconds and accuracy of each round, from the records in the store. The last round ends with its own evaluation."""
    plan = RoundPlan.model_validate_json((store / names.round_plan(1)).read_text())
    commits = [RoundCommit.model_validate_json((store / names.round_commit(i)).read_text()) for i in range(1, count)]
    evaluations = [RoundEvaluation.model_validate_json((store / names.round_evaluation(i)).read_text()) for i in range(count + 1)]
    ends = [started, plan.started_at, *(commit.finished_at for commit in commits), evaluations[-1].finished_at]
    return [
        Round(end - begin, evaluation.metrics["accuracy"]) for (begin, end), evaluation in zip(pairwise(ends), evaluations, strict=True)
    ]


def run_flower(folder: Path, arguments: argparse.Namespace) -> list[Round]:
    """The rounds of Flower's simulation, with the task files of our run; the first element is everything before round 1."""
    jobs = folder / "runs" / "default" / RUN / "jobs"
    # Flower reports each start to its makers unless told not to; ray would use a proxy for its own processes.
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    program = [sys.executable, str(BENCHMARKS / "flower_simulation.py")]
    options: dict[str, Any] = {"--jobs": jobs, "--rounds": arguments.rounds, "--client-cpus": arguments.client_cpus}
    output = folder / "flower.json"
    command = [
        *program,
        *(str(word) for option in options.items() for word in option),
        "--started",
        str(time.time()),
        "--output",
        str(output),
    ]
    subprocess.run(command, check=True, env=environment)
    return [Round(**one) for one in json.loads(output.read_text())]


def print_table(platforms: dict[str, list[Round]]) -> None:
    """Print a row for each platform."""
    count = max(len(rounds) for rounds in platforms.values()) - 1
    header = ["platform", "to round 1, s", *(f"round {i}, s" for i in range(1, count + 1)), "in all, s", "accuracy by round, %"]
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for name, rounds in platforms.items():
        accuracy = ", ".join(f"{100 * one.accuracy:.1f}" for one in rounds if one.accuracy is not None)
        cells = [name, *(f"{one.seconds:.1f}" for one in rounds), f"{sum(one.seconds for one in rounds):.1f}", accuracy]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
