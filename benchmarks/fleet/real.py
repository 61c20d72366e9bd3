"""One whole run in real seconds, to check the virtual clock: `python benchmarks/fleet/real.py [--rounds 6]`.

`fedpipe run` trains at two sites with a processor each: one as fast as the machine, and one that is stopped for three quarters of the time,
so that it is four times slower. Everything is the product's: profiles, plans, processes, store, aggregation. For each round, the
table compares its real seconds with those of the virtual clock (`federation`) for the very plans of this run: the operator's forecast for
`profile.json`, measured once for all runs of the benchmark, with its speed divided by the slowdown, and the allowance for aggregation.
The store is a folder of this machine, so transfers take no time. Needs two processors that do nothing else.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples")]

import yaml  # noqa: E402 -- the path above comes first
from configuration import Planned, Problem, Run  # noqa: E402
from fleet_sites import importance_of, name_of, site_profiles, spec_of  # noqa: E402
from ingredients.models import model_folder  # noqa: E402
from ingredients.newsgroups import newsgroups  # noqa: E402
from site_data import data_of  # noqa: E402
from task import CACHE, MODELS, VALIDATION, Partition, Task, load_task, partition  # noqa: E402

from fedpipe_operator import names  # noqa: E402
from fedpipe_operator.planning.choices import Choice  # noqa: E402
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD  # noqa: E402
from fedpipe_operator.planning.forecast import forecast  # noqa: E402
from fedpipe_operator.planning.request import PlanRequest  # noqa: E402
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan  # noqa: E402
from fedpipe_operator.sites import SiteProfile  # noqa: E402
from fedpipe_trainer.contract import Forecast, Plan  # noqa: E402

SLOWDOWNS: Final = (1.0, 4.0)
DOCUMENTS: Final = 1400
"""Of each site, as in the fleet of eight."""
_PERIOD: Final = 0.05
"""Seconds in which a slow site works once."""
_MEMORY: Final = ("2Gi", "2047Mi")
"""Claims by site. They limit nothing, and tell the sites' processes apart."""


def main() -> None:
    """Make the run and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    problem = Problem()
    task, run = load_task(problem), Run(problem, SLOWDOWNS, Planned(), rounds=rounds)
    split = Partition(tuple(rows[:DOCUMENTS] for rows in partition(task, problem, len(SLOWDOWNS)).rows), (), frozenset())
    with tempfile.TemporaryDirectory(prefix="fedpipe-real-") as folder:
        example = Path(folder) / "example"
        write_example(example, run, split)
        command = [sys.executable, "-m", "fedpipe_operator.cli", "run", str(example), "--no-compare"]
        with slowed(dict(zip(_MEMORY, SLOWDOWNS, strict=True))):
            subprocess.run([*command, "--volumes", str(Path(folder) / "volumes"), "--output", str(Path(folder) / "runs")], check=True)
        print_table(task, run, split, Path(folder) / "runs" / "default" / "fleet" / "store")


def write_example(folder: Path, run: Run, split: Partition) -> None:
    """The run and its sites as YAML, and the sites' data beside."""
    folder.mkdir()
    rows, _ = newsgroups(CACHE)
    for index, mine in enumerate(split.rows):
        volume = folder.parent / "volumes" / f"{name_of(index)}-data"
        volume.mkdir(parents=True)
        _write_rows(volume / "train.jsonl", [rows[row] for row in mine])
        _write_rows(volume / "validation.jsonl", [rows[row] for row in mine[:VALIDATION]])
    spec = spec_of(run, {}).model_dump(mode="json", by_alias=True, exclude_unset=True)
    spec["model"]["source"] = model_folder(MODELS[run.problem.data], CACHE).as_uri()
    spec["sites"] = {"selector": {"matchLabels": {"example": "fleet"}}}
    spec["export"] = {"adapter": False, "merged": False}
    kind = {"apiVersion": "fedpipe.io/v1alpha1", "kind": "FederatedFineTune", "metadata": {"name": "fleet"}, "spec": spec}
    (folder / "run.yaml").write_text(yaml.safe_dump(kind))
    (folder / "sites.yaml").write_text(yaml.safe_dump_all(_edge_site(index) for index in range(len(split.rows))))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _edge_site(index: int) -> dict[str, Any]:
    volume = {"persistentVolumeClaim": {"claimName": f"{name_of(index)}-data"}}
    return {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "EdgeSite",
        "metadata": {"name": name_of(index), "labels": {"example": "fleet"}},
        "spec": {
            "capacity": {"cpu": 1, "memory": _MEMORY[index]},
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "volume": volume},
        },
    }


@contextmanager
def slowed(slowdowns: dict[str, float]) -> Iterator[None]:
    """In this context, the processes of the sites with these memory claims are stopped for a part of the time."""
    done = threading.Event()
    slow = {_bytes_of(memory): slowdown for memory, slowdown in slowdowns.items() if slowdown > 1}
    threads = [threading.Thread(target=_slow_down, args=(limit, slowdown, done)) for limit, slowdown in slow.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _slow_down(limit: int, slowdown: float, done: threading.Event) -> None:
    """Let the processes with this memory limit work for 1 / `slowdown` of each period."""
    found, looked = [], 0.0
    while not done.is_set():
        if time.monotonic() - looked > 1:
            found, looked = _processes_with(limit), time.monotonic()
        _signal(found, signal.SIGSTOP)
        time.sleep(_PERIOD * (1 - 1 / slowdown))
        _signal(found, signal.SIGCONT)
        time.sleep(_PERIOD / slowdown)


def _processes_with(limit: int) -> list[int]:
    wanted, found = f"FEDPIPE_MEMORY_LIMIT_BYTES={limit}".encode(), []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _bytes_of(memory: str) -> int:
    return int(memory[:-2]) * {"Gi": 2**30, "Mi": 2**20}[memory[-2:]]


def print_table(task: Task, run: Run, split: Partition, store: Path) -> None:
    """Print a row for each round but the last. A round lasts from its plan to the next one's."""
    plans = [RoundPlan.model_validate_json((store / names.round_plan(i)).read_text()) for i in range(1, run.rounds + 1)]
    commits = [RoundCommit.model_validate_json((store / names.round_commit(i)).read_text()) for i in range(1, run.rounds)]
    profiles = site_profiles(run, data_of(task, split), importance_of(task, run, split))
    sites = {name: replace(site, up=1e12, down=1e12) for name, site in profiles.items()}
    head = {name: tuple(task.base.model.get_parameter(name).shape) for name in task.base.head}
    request = PlanRequest(spec=spec_of(run, {}), head=head)
    real = [after.started_at - plan.started_at for plan, after in pairwise(plans)]
    forecasts = [{site: _forecast(request, sites[site], plan.plans[site]) for site in plan.selected} for plan in plans[:-1]]
    virtual = [ROUND_OVERHEAD + max(one.seconds for one in by_site.values()) for by_site in forecasts]
    print(
        "| round | by site: steps × batch, s of the steps and of the rest | the same on the virtual clock | real, s | virtual, s | ratio |"
    )
    print("|---|---|---|---|---|---|")
    for plan, commit, by_site, seconds, expected in zip(plans, commits, forecasts, real, virtual, strict=False):
        measured = {one.site: one.measured for one in commit.contributions if one.measured is not None}
        work = "; ".join(
            f"{one.steps} × {one.batch_size}, {measured[site].step_seconds:.1f} and {measured[site].other_seconds:.1f}"
            for site, one in plan.plans.items()
        )
        clock = "; ".join(f"{one.step_seconds:.1f} and {one.seconds - one.step_seconds:.1f}" for one in by_site.values())
        print(f"| {plan.round} | {work} | {clock} | {seconds:.1f} | {expected:.1f} | {seconds / expected:.2f} |")
    print(f"| all | | | {sum(real):.1f} | {sum(virtual):.1f} | {sum(real) / sum(virtual):.2f} |")


def _forecast(request: PlanRequest, site: SiteProfile, one: Plan) -> Forecast:
    choice = Choice(one.bits, one.batch_size, one.micro_batch, one.gradient_checkpointing, one.lowest_layer, cached=False)
    return forecast(request, site, choice, ranks=one.ranks, steps=one.steps)


if __name__ == "__main__":
    main()
