"""FedPipe against its rivals on a fleet of unequal sites: `python benchmarks/fleet run SWEEP`, see README.md."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples")]

import torch  # noqa: E402 -- the path above comes first
from configuration import Run, Study  # noqa: E402
from flower_pair import compare, table, table_of_pair  # noqa: E402
from held import memory_table  # noqa: E402
from measured import measure_profile  # noqa: E402
from plots import write_plots  # noqa: E402
from results import compute  # noqa: E402
from site_data import keep_data  # noqa: E402
from sweeps import SWEEPS, rivals  # noqa: E402
from tables import in_readme, table_of  # noqa: E402

Runs = Mapping[str, Run | Study]
TABLES = {name: partial(lambda sweep: table_of(sweep()), sweep) for name, sweep in SWEEPS.items()} | {
    "memory": lambda: memory_table(rivals()),
    "flower": table_of_pair,
}
"""The README's tables by name."""


def main() -> None:
    """Run a sweep, print its table or draw its plots; print the README with the tables of what is stored; or compare with Flower."""
    parser = argparse.ArgumentParser(prog="python benchmarks/fleet", description=__doc__)
    parser.add_argument("command", choices=("profile", "run", "table", "plot", "readme", "sites", "flower"))
    parser.add_argument("sweep", nargs="?", default="main", choices=sorted(TABLES))
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="of `flower`")
    parser.add_argument("--steps", type=int, help="of each site in a round of `flower`; other than the main table's, nothing is stored")
    arguments = parser.parse_args()
    if arguments.sweep not in SWEEPS and arguments.command != "table":
        parser.error(f"{arguments.sweep} is a table of no sweep: it can be printed only, with `table {arguments.sweep}`")
    torch.set_num_threads(arguments.threads)
    if arguments.command == "readme":
        print(in_readme(TABLES), end="")
    elif arguments.command == "flower":
        print(table(compare(arguments.steps, arguments.rounds, arguments.threads)))
    elif arguments.sweep not in SWEEPS:
        print(TABLES[arguments.sweep]())
    else:
        configurations = {name: one for name, one in SWEEPS[arguments.sweep]().items() if arguments.only in name}
        _DOES[arguments.command](arguments.sweep, configurations)


def _run(_sweep: str, configurations: Runs) -> None:
    for name, configuration in configurations.items():
        started = time.monotonic()
        compute(name, configuration)
        print(f"{name}: {time.monotonic() - started:.0f} real seconds", flush=True)


def _keep(_sweep: str, configurations: Runs) -> None:
    """Store what the tables need to know of the sites' data."""
    for configuration in configurations.values():
        if isinstance(configuration, Run):
            keep_data(configuration.problem, len(configuration.slowdowns))


_DOES: Final[dict[str, Callable[[str, Runs], None]]] = {
    "profile": lambda _, configurations: print(measure_profile(next(iter(configurations.values())))),
    "run": _run,
    "table": lambda _, configurations: print(table_of(configurations)),
    "plot": lambda sweep, configurations: print(*write_plots(sweep, configurations), sep="\n"),
    "sites": _keep,
}


if __name__ == "__main__":
    main()
