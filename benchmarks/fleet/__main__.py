"""FedPipe against its rivals on a fleet of unequal sites: `python benchmarks/fleet run SWEEP`, see README.md."""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples")]

import torch  # noqa: E402 -- the path above comes first
from measured import measure_profile  # noqa: E402
from plots import write_plots  # noqa: E402
from results import compute  # noqa: E402
from sweeps import SWEEPS  # noqa: E402
from tables import in_readme, table_of  # noqa: E402


def main() -> None:
    """Run a sweep, print its table or draw its plots; or print the README with the tables of what is stored."""
    parser = argparse.ArgumentParser(prog="python benchmarks/fleet", description=__doc__)
    parser.add_argument("command", choices=("profile", "run", "table", "plot", "readme"))
    parser.add_argument("sweep", nargs="?", default="main", choices=sorted(SWEEPS))
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    configurations = {name: one for name, one in SWEEPS[arguments.sweep]().items() if arguments.only in name}
    if arguments.command == "profile":
        measure_profile(next(iter(configurations.values())).problem)
    elif arguments.command == "table":
        print(table_of(configurations))
    elif arguments.command == "readme":
        print(in_readme(SWEEPS), end="")
    elif arguments.command == "plot":
        print("\n".join(str(path) for path in write_plots(arguments.sweep, configurations)))
    else:
        torch.set_num_threads(arguments.threads)
        for name, configuration in configurations.items():
            started = time.monotonic()
            compute(name, configuration)
            print(f"{name}: {time.monotonic() - started:.0f} real seconds", flush=True)


if __name__ == "__main__":
    main()
