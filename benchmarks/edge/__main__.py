"""Server optimizers and the figures of sites on the task of `examples/edge`: `python benchmarks/edge`, see benchmarks/edge/README.md.

Every run is `fedpipe run` with real processes, one site after the other with one thread. What is stored is not run again, and a run that
was stopped goes on. Then the README's tables are written anew.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples")]

from configuration import ROUNDS, SEEDS, arms  # noqa: E402 -- the path above comes first
from ingredients.packages import cache_folder  # noqa: E402 -- likewise
from report import figures, write_figures  # noqa: E402 -- likewise
from results import EXAMPLE, made  # noqa: E402 -- likewise


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/edge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", type=int, help="only the first so many runs, and no table in the README: to try it")
    parser.add_argument("--table", action="store_true", help="run nothing, and print the tables of what is stored")
    parser.add_argument("--work", type=Path, default=cache_folder() / "edge-benchmark", help="folder of the runs")
    arguments = parser.parse_args()
    if not arguments.table:
        _run(arguments)
    print(figures(arguments.seeds, arguments.rounds))


def _run(arguments: argparse.Namespace) -> None:
    subprocess.run([sys.executable, str(EXAMPLE / "prepare.py")], check=True)
    for arm in arms(tuple(arguments.seeds))[: arguments.arms]:
        result = made(arm, arguments.rounds, arguments.work)
        print(f"{arm.key}: loss {result.losses[-1]:.3f} after {arguments.rounds} rounds, {result.seconds:.0f} s", flush=True)
    if arguments.arms is None:
        write_figures(arguments.seeds, arguments.rounds)


if __name__ == "__main__":
    main()
