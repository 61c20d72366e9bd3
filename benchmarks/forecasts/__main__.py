"""The planner's forecasts against what training tasks need: `python benchmarks/forecasts run WORK`, see benchmarks/README.md.

The configurations of each bit width follow a profile of it, the operator's own task, so that both feel the same load of the machine.
Every configuration is a real training task of a later round, made by the operator's code and performed by the trainer in a process of
its own with one thread: it loads the base, downloads the global adapter, evaluates it, trains, and writes its update.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples")]

from configuration import WORKS, configurations  # noqa: E402 -- the path above comes first
from machine import CLOCKS, Machine  # noqa: E402 -- likewise
from results import measure, profile  # noqa: E402 -- likewise
from table import print_profiles, print_table, rows_of  # noqa: E402 -- likewise


def main() -> None:
    """Measure what is missing, or print the table of what there is."""
    parser = argparse.ArgumentParser(prog="python benchmarks/forecasts", description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("work", choices=sorted(WORKS))
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: the tasks' seconds are processor time, for a machine that is shared"
    )
    parser.add_argument("--size", type=int, default=11, help="configurations of each bit width")
    arguments = parser.parse_args()
    chosen = configurations(arguments.work, arguments.clock, arguments.size)
    if arguments.command == "run":
        with tempfile.TemporaryDirectory(prefix="fedpipe-forecasts-") as scratch:
            machine = Machine(WORKS[arguments.work], Path(scratch), arguments.clock)
            for one in chosen:
                made = measure(machine, one, profile(machine, one.work, one.bits))
                print(f"{one}: {made.load.seconds:.1f} s, {made.peak_memory_bytes / 1e6:.0f} MB", flush=True)
    print_profiles(chosen)
    print_table(rows_of(chosen))


if __name__ == "__main__":
    main()
