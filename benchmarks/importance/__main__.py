"""Whether it matters which weights get an adapter: `python benchmarks/importance run`, see benchmarks/README.md.

At equal bytes, the ranks go to the weights that a score calls important, to random ones, to those that it calls least important, or to all
alike. MiniLM on 20 Newsgroups, all data at one place, one optimiser throughout. Each run is stored as one JSON file, so that a benchmark
that was killed goes on.
"""

import argparse
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
sys.path[:0] = [str(BENCHMARKS.parent / "examples"), str(BENCHMARKS / "fleet")]

import torch  # noqa: E402 -- the path above comes first
from report import print_table  # noqa: E402 -- likewise
from trial import BUDGETS, RULES, Trial, compute  # noqa: E402 -- likewise


def main() -> None:
    """Run what is missing, or print the table of what there is."""
    parser = argparse.ArgumentParser(prog="python benchmarks/importance", description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budgets", nargs="+", choices=sorted(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), default=list(RULES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    trials = [Trial(budget, rule, seed) for budget in arguments.budgets for seed in range(arguments.seeds) for rule in arguments.rules]
    if arguments.command == "run":
        torch.set_num_threads(arguments.threads)
        for trial in trials:
            print(trial, compute(trial)["curve"][-1], flush=True)
    print_table(trials)


if __name__ == "__main__":
    main()
