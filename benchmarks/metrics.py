"""What the metrics cost: `python benchmarks/metrics.py`.

The series, bytes and seconds of a scrape, and what is kept in memory for it, of fleets up to 1,000 sites and 100 runs of all sites of their
namespaces; and what keeping it adds to the reconciles of whole runs with stand-ins for trainers and the API server.
"""

import gzip
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from large_fleets import a_large_fleet
from stand_in_cluster import KubeWorld
from stand_in_runs import a_run, a_site

from fedpipe_operator.metrics.listener import Listener
from fedpipe_operator.metrics.server import Page
from fedpipe_operator.rounds import Decision, Observed, Run

FLEETS: Final = ((100, 10), (1000, 10), (1000, 100))
SITES_OF_A_RUN: Final = (10, 50)
REPEATS: Final = 5
MIB: Final = 2**20


@dataclass(frozen=True)
class Cost:
    """Of the scrapes of one fleet."""

    series: int
    page: int
    packed: int
    seconds: float
    kept: int
    peak: int


def cost_of(sites: int, runs: int) -> Cost:
    """Measure one fleet: the fastest of several scrapes, in seconds of the processor."""
    tracemalloc.start()
    large = a_large_fleet(sites, runs)
    with_all, _ = tracemalloc.get_traced_memory()
    large.records._known.clear()  # noqa: SLF001 -- what is kept is what clearing it frees
    large.records._totals.clear()  # noqa: SLF001 -- as above
    without, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    large = a_large_fleet(sites, runs)
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        packed = Page(large.registry).read()
        seconds.append(time.process_time() - started)
    tracemalloc.start()
    Page(large.registry).read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    page = gzip.decompress(packed)
    series = sum(not line.startswith(b"#") for line in page.splitlines())
    return Cost(series, len(page), len(packed), min(seconds), with_all - without, peak)


class Timed(Listener):
    """Adds up the seconds that it takes in reconciles."""

    def __init__(self, clock: Any) -> None:  # noqa: ANN401 -- as the base class's
        super().__init__(clock)
        self.seconds = 0.0

    def run_reconciled(self, run: Run, observed: Observed, decision: Decision, jobs: Any) -> None:  # noqa: ANN401 -- as above
        """As the base class."""
        started = time.perf_counter()
        super().run_reconciled(run, observed, decision, jobs)
        self.seconds += time.perf_counter() - started


def reconciles_of(sites: int) -> tuple[list[float], list[float]]:
    """Seconds of each reconcile of a run over this many sites, and of the metrics' part in it."""
    with tempfile.TemporaryDirectory() as folder:
        world = KubeWorld(Path(folder), a_run([a_site(f"site-{number:03d}") for number in range(sites)]))
        listener = Timed(world.clock)
        world.observer = listener
        world.restart()
        whole, ours = [], []
        while not world.conditions().get("Ready"):
            started, before = time.perf_counter(), listener.seconds
            world.reconcile()
            whole.append(time.perf_counter() - started)
            ours.append(listener.seconds - before)
            for name in world.active_jobs()[:1]:
                world.work(name)
            world.await_workers()
        return whole, ours


def main() -> None:
    """Print both tables."""
    print("| sites | runs | series | page | packed | CPU seconds of a scrape | kept in memory | peak of a scrape |")
    print("|---|---|---|---|---|---|---|---|")
    for sites, runs in FLEETS:
        one = cost_of(sites, runs)
        sizes = f"{one.page / MIB:.1f} MiB | {one.packed / MIB:.2f} MiB | {one.seconds:.2f} s"
        print(f"| {sites:,} | {runs} | {one.series:,} | {sizes} | {one.kept / MIB:.1f} MiB | {one.peak / MIB:.1f} MiB |")
    print()
    print("| sites of a run | reconciles | mean without | mean with | metrics | p99 without | p99 with |")
    print("|---|---|---|---|---|---|---|")
    for sites in SITES_OF_A_RUN:
        whole, ours = reconciles_of(sites)
        without = [one - part for one, part in zip(whole, ours, strict=True)]
        means = (
            f"{1e3 * sum(without) / len(whole):.1f} ms | {1e3 * sum(whole) / len(whole):.1f} ms | {100 * sum(ours) / sum(without):.2f} %"
        )
        p99 = f"{1e3 * quantiles(without, n=100)[98]:.1f} ms | {1e3 * quantiles(whole, n=100)[98]:.1f} ms"
        print(f"| {sites} | {len(whole)} | {means} | {p99} |")


if __name__ == "__main__":
    main()
