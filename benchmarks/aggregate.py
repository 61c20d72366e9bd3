"""Throughput and peak memory of the aggregation, compared with Flower's averaging of the same arrays in the same run.

    python benchmarks/aggregate.py                      # all cases: 4, 16, 64 sites of 20 MB and 200 MB; needs 13 GB of disk
    python benchmarks/aggregate.py --sites 4 16 --megabytes 20

Every site sends rank-16 factors of 4096 × 4096 weights, drawn independently: this gives the flattest spectrum possible, hence the slowest
case for `Exact`. Each measurement runs in a fresh process and starts with the files in the page cache as far as they fit. `Exact` is timed
from opening the files to the last byte of the written adapter (`round`: including the gate). Flower is timed in three ways: the same job
with `FedAvg.aggregate_fit`, as its server calls it, from opening files with each site's serialised parameters to the last byte of the
serialised average in a file; the same without the files, all bytes in memory before and after; and only `aggregate`, its averaging
function, from arrays in memory to arrays in memory. GB/s are bytes of updates per second. Peak memory is the largest resident set of the
process, including imports. CPU seconds are user and system time of all threads during the measured part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import flower
import numpy as np
import psutil
from clock import Clock

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation import AggregationConfig, Candidate, FileSource, RoundInput, aggregate_round, openblas
from fedpipe_operator.aggregation.accepted import AcceptedUpdate, RoundContext
from fedpipe_operator.aggregation.global_adapter import aggregate_adapters
from fedpipe_operator.aggregation.malloc import tune_malloc_for_aggregation
from fedpipe_operator.aggregation.parallel import thread_count
from fedpipe_operator.aggregation.survey import limits_of
from fedpipe_operator.aggregation.tensors import TensorWriter, factor_keys, open_tensors
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import Artifact, Forecast, Measured, Outcome, Plan, RunRef, TrainResult

SIDE: Final = 4096
RANK: Final = 16
WEIGHT_BYTES: Final = 2 * RANK * SIDE * 4
RUN: Final = RunRef(namespace="benchmark", name="aggregate", uid="0")
CONFIG: Final = AggregationConfig(method="Exact", max_rank=RANK, threads=thread_count())
FLOWER_COPIES: Final = 2.1
"""Memory that Flower needs relative to the updates: the updates, a weighted copy of each, then the averages."""


class Case(NamedTuple):
    """The number of sites and the size of each site's update."""

    sites: int
    megabytes: int

    @property
    def weights(self) -> int:
        """The number of weights that gives an update of about this size."""
        return round(self.megabytes * 1e6 / WEIGHT_BYTES)

    @property
    def total(self) -> int:
        """Bytes of all updates."""
        return self.sites * self.weights * WEIGHT_BYTES


class Measurement(NamedTuple):
    """What one process measured."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def plan_of(case: Case) -> RoundPlan:
    """A round in which every site trains every weight at the same rank."""
    weights = {f"layers.{i:03}.q_proj": (SIDE, SIDE) for i in range(case.weights)}
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    plan = Plan(bits=16, batch_size=1, steps=1, ranks=dict.fromkeys(weights, RANK), forecast=forecast)
    sites = tuple(f"site-{i:03}" for i in range(case.sites))
    return RoundPlan(
        round=1,
        started_at=0.0,
        fingerprint="f" * 64,
        weights=weights,
        plans=dict.fromkeys(sites, plan),
        samples={site: 100 + number for number, site in enumerate(sites)},
        selected=sites,
        evaluators=sites,
        needed=len(sites),
    )


def generate_updates(case: Case, folder: Path) -> None:
    """Write every site's update and its result."""
    plan = plan_of(case)
    for number, site in enumerate(plan.selected):
        path = folder / f"{site}.safetensors"
        result = _result(plan, site, _write_adapter(path, plan, number))
        path.with_suffix(".json").write_text(result.to_json())


def _write_adapter(path: Path, plan: RoundPlan, seed: int) -> Artifact:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, int]] = {}
    for weight in plan.weights:
        shapes |= dict(zip(factor_keys(weight), ((RANK, SIDE), (SIDE, RANK)), strict=True))
    with path.open("wb") as file:
        writer = TensorWriter(file, shapes)
        for key, shape in shapes.items():
            writer.write(key, rng.standard_normal(shape, dtype=np.float32) / np.float32(SIDE**0.5))
        return writer.close(path.name)


def _result(plan: RoundPlan, site: str, adapter: Artifact) -> TrainResult:
    planned = plan.plans[site]
    return TrainResult(
        run=RUN,
        site=site,
        round=1,
        attempt=0,
        outcome=Outcome.COMPLETED,
        fingerprint=plan.fingerprint,
        measured=Measured(),
        adapter=adapter,
        ranks=planned.ranks,
        scales={weight: planned.scale(weight) for weight in planned.ranks},
        steps=planned.steps,
        samples=planned.steps,
    )


def _read_results(folder: Path) -> dict[str, AdmittedUpdate]:
    paths = sorted(folder.glob("site-*.json"))
    return {path.stem: AdmittedUpdate(TrainResult.model_validate_json(path.read_text())) for path in paths}


def exact(case: Case, folder: Path) -> Clock:
    """Open, aggregate and write, without the gate."""
    plan, results = plan_of(case), _read_results(folder)
    with Clock() as clock, ExitStack() as stack:
        files = {site: stack.enter_context((folder / f"{site}.safetensors").open("rb")) for site in results}
        accepted = {site: AcceptedUpdate(results[site], open_tensors(FileSource(file))) for site, file in files.items()}
        sink = stack.enter_context((folder / "global").open("wb"))
        context = RoundContext(plan, CONFIG, None)
        aggregate_adapters(context, accepted, limits_of(context, accepted), sink)
    return clock


def exact_with_gate(case: Case, folder: Path) -> Clock:
    """Open, check in the gate, aggregate and write."""
    plan, results = plan_of(case), _read_results(folder)
    with Clock() as clock, ExitStack() as stack:
        sources = {site: FileSource(stack.enter_context((folder / f"{site}.safetensors").open("rb"))) for site in results}
        candidates = {site: Candidate(results[site], source) for site, source in sources.items()}
        sink = stack.enter_context((folder / "global").open("wb"))
        result = aggregate_round(RoundInput(plan=plan, candidates=candidates), CONFIG, sink)
    if result.commit is None:
        raise RuntimeError(f"the gate refused: {result.verdicts}")
    return clock


def _updates(case: Case, folder: Path) -> Iterator[tuple[list[np.ndarray], int]]:
    """The arrays and the number of samples of each site, one site after the other."""
    results = _read_results(folder)
    if len(results) != case.sites:
        raise RuntimeError(f"{len(results)} updates in {folder}, expected {case.sites}")
    for site, result in results.items():
        yield list(_arrays(folder / f"{site}.safetensors")), result.samples


def _arrays(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        tensors = open_tensors(FileSource(file))
        for key in tensors.entries:
            yield tensors.read(key)


BENCHMARKS: Final[dict[str, Callable[[Case, Path], Clock]]] = {
    "exact": exact,
    "round": exact_with_gate,
    "files": lambda case, folder: flower.from_files(_updates(case, folder), folder),
    "server": lambda case, folder: flower.from_bytes(_updates(case, folder)),
    "flower": lambda case, folder: flower.from_arrays(_updates(case, folder)),
}
EXACT: Final = ("exact", "round")
FLOWER: Final = ("files", "server", "flower")


def peak_bytes() -> int:
    """Largest resident set of this process since it started (ru_maxrss would include that of the parent before exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM on this system")


def measure(name: str, case: Case, folder: Path) -> Measurement:
    """Run one benchmark in a fresh process."""
    command = [sys.executable, __file__, "--measure", name, str(case.sites), str(case.megabytes), str(folder)]
    env = openblas.environment() | os.environ
    return Measurement(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout))


def row(case: Case, folder: Path, repeats: int) -> str:
    """One line of the table: the fastest of `repeats` measurements of each benchmark, and the largest peak.

    The benchmarks alternate, so that changing load from other processes affects all of them.
    """
    fits = psutil.virtual_memory().available > FLOWER_COPIES * case.total
    repetitions = [{name: measure(name, case, folder) for name in (*EXACT, *(FLOWER if fits else ()))} for _ in range(repeats)]
    best = {
        name: min(each[name] for each in repetitions)._replace(peak_bytes=max(each[name].peak_bytes for each in repetitions))
        for name in repetitions[0]
    }
    ratios = " / ".join(_ratio(best["exact"], best.get(name)) for name in FLOWER)
    cells = [_cell(best.get(name), case) for name in BENCHMARKS]
    return f"| {case.sites} | {case.megabytes} MB | {case.total / 1e9:.2f} GB | {' | '.join(cells)} | {ratios} |"


def _ratio(exact: Measurement | None, other: Measurement | None) -> str:
    return f"{other.seconds / exact.seconds:.2f}" if exact and other else "–"


def _cell(measurement: Measurement | None, case: Case) -> str:
    if measurement is None:
        return f"needs {FLOWER_COPIES * case.total / 1e9:.0f} GB of memory"
    return f"{case.total / measurement.seconds / 1e9:.2f} GB/s, {measurement.peak_bytes / 1e6:.0f} MB, {measurement.cpu_seconds:.1f} s"


def main() -> None:
    """Print the table, one line per case as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="folder for the updates (default: the system's temporary folder)")
    parser.add_argument("--measure", nargs=4, metavar=("NAME", "SITES", "MEGABYTES", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, sites, megabytes, folder = arguments.measure
        if name in EXACT:
            tune_malloc_for_aggregation()  # as the operator's worker does; Flower's server does not
        clock = BENCHMARKS[name](Case(int(sites), int(megabytes)), Path(folder))
        print(json.dumps(Measurement(clock.seconds, clock.cpu_seconds, peak_bytes())._asdict()))
        return
    print("| sites | update | total | Exact | with gate | Flower, files | Flower, bytes | Flower, arrays | speed of Exact ÷ Flower's |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in (Case(sites, megabytes) for megabytes in arguments.megabytes for sites in arguments.sites):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            generate_updates(case, Path(folder))
            os.sync()  # pending writes to the disk would slow down the first measurement
            print(row(case, Path(folder), arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
