"""One operator under load: `python benchmarks/operator`, see README.md of the folder above.

Everything is real but nodes and pods (kwok's) and the trainers (`stand_in`).
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("helpers", "cluster")]

import audit  # noqa: E402 -- the paths above come first
import objects  # noqa: E402
import plane  # noqa: E402
import table  # noqa: E402
from api import Api  # noqa: E402
from sampling import Sample, programs, sample  # noqa: E402
from stand_in import StandIn  # noqa: E402
from store_log import StoreLog  # noqa: E402
from testcluster.processes import pid_of, running, stop  # noqa: E402
from testcluster.shell import locked  # noqa: E402

_SAMPLE_SECONDS, _LOOK_SECONDS = 5.0, 10.0
_FINAL = ("Complete", "Failed")


@dataclass(frozen=True)
class Size:
    """The size of the benchmark."""

    sites: int
    runs: int
    rounds: int
    pace: float
    spread: float
    """Seconds over which the runs are created."""
    job_ttl: int
    seed: int
    limit: float
    """Seconds after which the benchmark ends with the figures until then."""


@dataclass
class Observations:
    """What is observed during the benchmark."""

    samples: list[Sample] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    """Completed rounds of all runs."""


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/operator", description=__doc__)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pace", type=float, default=5.0, help="factor of the stand-in's times: 1 is 20 to 60 s of training")
    parser.add_argument("--spread", type=float, default=360.0, help="seconds over which the runs are created")
    parser.add_argument("--job-ttl", type=int, default=300, help="FEDPIPE_JOB_TTL_SECONDS of the operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds after which the benchmark ends with the figures until then")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    return parser.parse_args(argv)


async def measure(layout: plane.BenchmarkLayout, size: Size) -> table.Measured:
    """Create the objects, start the operator, and follow the runs to their end."""
    api, log = Api(layout.kubeconfig), StoreLog()
    listener = await log.serve(plane.STORE_LOG_PORT)
    stand_in = StandIn(api, size.pace, size.seed)
    try:
        await api.create_all(objects.node(number) for number in range(size.runs))
        await api.create_all(objects.site(number, number % size.runs) for number in range(size.sites))
        images = {"FEDPIPE_TRAINER_IMAGE": "stand-in", "FEDPIPE_OPERATOR_IMAGE": "operator"}
        settings = images | {"FEDPIPE_NAMESPACES": "*", "FEDPIPE_JOB_TTL_SECONDS": str(size.job_ttl)}
        operator = await asyncio.to_thread(plane.start_operator, layout, settings)
        pid = pid_of(layout, operator.name)
        if pid is None:
            raise RuntimeError("the operator has exited")
        pids = _other_processes(layout, operator.name)
        began, before = time.time(), programs(pids)
        async with _in_background(stand_in.run()):
            observed = await _follow(api, size, pid)
        seconds, after = time.time() - began, programs(pids)
        _print_failures(observed)
    finally:
        await listener.cleanup()
        await api.close()
    await asyncio.to_thread(stop, layout, operator.name)
    await asyncio.to_thread(stop, layout, "kube-apiserver")  # it writes the rest of its audit log when it exits
    taken = {name: after[name] - before[name] for name in pids}
    work = observed.rounds * size.sites // size.runs
    return table.Measured(
        work, observed.rounds, seconds, audit.read(layout.audit), stand_in.reported, log, observed.samples, taken, os.cpu_count() or 1
    )


def _other_processes(layout: plane.BenchmarkLayout, operator: str) -> dict[str, int]:
    """The processes beside the operator, this one included, by name."""
    others = {name: pid for name in running(layout) if name != operator and (pid := pid_of(layout, name)) is not None}
    return others | {"stand-in": os.getpid()}


async def _follow(api: Api, size: Size, pid: int) -> Observations:
    observed = Observations()
    path, until = f"/apis/fedpipe.io/v1alpha1/namespaces/{objects.NAMESPACE}/federatedfinetunes", time.time() + size.limit
    async with _in_background(_sample(pid, observed.samples)), _in_background(_create_runs(api, size)):
        while len(observed.outcomes) < size.runs and time.time() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            found = (await api.get(path))["items"]
            observed.outcomes = {one["metadata"]["name"]: outcome for one in found if (outcome := _outcome(one))}
            observed.rounds = sum(map(_rounds_done, found))
            print(
                f"{time.strftime('%H:%M:%S')} {len(observed.outcomes)} of {size.runs} runs finished, {observed.rounds} rounds done;"
                f" operator {observed.samples[-1].rss:.0f} MiB, {observed.samples[-1].cpu:.0f} s",
                flush=True,
            )
    observed.samples.append(sample(pid))
    return observed


def _rounds_done(run: objects.Plain) -> int:
    current: int = run.get("status", {}).get("round", 0)
    return current if _outcome(run) else max(0, current - 1)


def _outcome(run: objects.Plain) -> str:
    conditions = run.get("status", {}).get("conditions", ())
    return next((one["type"] for one in conditions if one["type"] in _FINAL and one["status"] == "True"), "")


async def _create_runs(api: Api, size: Size) -> None:
    generator, before = random.Random(size.seed), 0.0  # noqa: S311 -- no secret
    times = sorted(generator.uniform(0, size.spread) for _ in range(size.runs))
    for number, at in enumerate(times):
        await asyncio.sleep(at - before)
        before = at
        await api.create(objects.run(number, size.rounds, plane.STORE))


async def _sample(pid: int, samples: list[Sample]) -> None:
    while True:
        samples.append(await asyncio.to_thread(sample, pid))
        await asyncio.sleep(_SAMPLE_SECONDS)


@asynccontextmanager
async def _in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run this as a background task; its failure cancels the caller."""
    task, me = asyncio.create_task(work), asyncio.current_task()
    task.add_done_callback(lambda done: me.cancel() if me and not done.cancelled() and done.exception() else None)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _print_failures(observed: Observations) -> None:
    failed = sorted(name for name, outcome in observed.outcomes.items() if outcome == "Failed")
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)


def main(argv: list[str]) -> int:
    """Measure, print the table, and clean up."""
    chosen = arguments(argv)
    size = Size(chosen.sites, chosen.runs, chosen.rounds, chosen.pace, chosen.spread, chosen.job_ttl, chosen.seed, chosen.limit)
    layout = plane.benchmark_layout()
    # Trade memory for processor time in the Go programs: they are not what is measured.
    os.environ.setdefault("GOGC", "400")
    os.environ.setdefault("GOMEMLIMIT", "8GiB")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with locked(layout.cache / "benchmark.lock"):  # one at a time: they share ports and folder
        plane.down(layout)
        try:
            plane.up(layout)
            found = asyncio.run(measure(layout, size))
            print("\n".join(table.lines(found)))
        except KeyboardInterrupt:
            return 130
        finally:
            plane.down(layout, keep=chosen.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
