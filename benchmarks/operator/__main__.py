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
_OVER = ("Complete", "Failed")


@dataclass(frozen=True)
class Size:
    """How much."""

    sites: int
    runs: int
    rounds: int
    pace: float
    spread: float
    """Seconds over which the runs are created."""
    job_ttl: int
    seed: int
    limit: float
    """Seconds after which the figures are told of what was done until then."""


@dataclass
class Course:
    """What is seen while it runs."""

    samples: list[Sample] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    """Rounds that are done, of all runs together."""


def arguments(argv: list[str]) -> argparse.Namespace:
    """What may be typed."""
    words = argparse.ArgumentParser(prog="python benchmarks/operator", description=__doc__)
    words.add_argument("--sites", type=int, default=1000)
    words.add_argument("--runs", type=int, default=100)
    words.add_argument("--rounds", type=int, default=10)
    words.add_argument("--pace", type=float, default=5.0, help="of the times of the stand-in: 1 is 20 to 60 s of training")
    words.add_argument("--spread", type=float, default=360.0, help="seconds over which the runs are created")
    words.add_argument("--job-ttl", type=int, default=300, help="FEDPIPE_JOB_TTL_SECONDS of the operator")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--limit", type=float, default=7200.0, help="seconds after which figures are of what was done until then")
    words.add_argument("--keep", action="store_true", help="leave logs where they are")
    return words.parse_args(argv)


async def measure(place: plane.Place, size: Size) -> table.Measured:
    """The whole course: objects, operator, runs to their end."""
    api, log = Api(place.kubeconfig), StoreLog()
    listener = await log.serve(plane.STORE_LOG_PORT)
    stand_in = StandIn(api, size.pace, size.seed)
    try:
        await api.create_all(objects.node(number) for number in range(size.runs))
        await api.create_all(objects.site(number, number % size.runs) for number in range(size.sites))
        settings = {"FEDPIPE_TRAINER_IMAGE": "stand-in", "FEDPIPE_OPERATOR_IMAGE": "operator", "FEDPIPE_JOB_TTL_SECONDS": str(size.job_ttl)}
        operator = await asyncio.to_thread(plane.start_operator, place, settings)
        pid = pid_of(place, operator.name)
        if pid is None:
            raise RuntimeError("the operator ended")
        pids = _around(place, operator.name)
        began, before = time.time(), programs(pids)
        async with _beside(stand_in.run()):
            course = await _follow(api, size, pid)
        seconds, after = time.time() - began, programs(pids)
        _say_outcomes(course)
    finally:
        await listener.cleanup()
        await api.close()
    await asyncio.to_thread(stop, place, operator.name)
    await asyncio.to_thread(stop, place, "kube-apiserver")  # what it noted is written when it ends
    taken = {name: after[name] - before[name] for name in pids}
    work = course.rounds * size.sites // size.runs
    return table.Measured(
        work, course.rounds, seconds, audit.read(place.audit), stand_in.reported, log, course.samples, taken, os.cpu_count() or 1
    )


def _around(place: plane.Place, operator: str) -> dict[str, int]:
    """The processes around the operator, this one among them, by name."""
    others = {name: pid for name in running(place) if name != operator and (pid := pid_of(place, name)) is not None}
    return others | {"stand-in": os.getpid()}


async def _follow(api: Api, size: Size, pid: int) -> Course:
    course = Course()
    path, until = f"/apis/fedpipe.io/v1alpha1/namespaces/{objects.NAMESPACE}/federatedfinetunes", time.time() + size.limit
    async with _beside(_sample(pid, course.samples)), _beside(_create_runs(api, size)):
        while len(course.outcomes) < size.runs and time.time() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            found = (await api.get(path))["items"]
            course.outcomes = {one["metadata"]["name"]: over for one in found if (over := _outcome(one))}
            course.rounds = sum(map(_rounds_done, found))
            print(
                f"{time.strftime('%H:%M:%S')} {len(course.outcomes)} of {size.runs} runs over, {course.rounds} rounds done;"
                f" operator {course.samples[-1].rss:.0f} MiB, {course.samples[-1].cpu:.0f} s",
                flush=True,
            )
    course.samples.append(sample(pid))
    return course


def _rounds_done(run: objects.Plain) -> int:
    under_way: int = run.get("status", {}).get("round", 0)
    return under_way if _outcome(run) else max(0, under_way - 1)


def _outcome(run: objects.Plain) -> str:
    conditions = run.get("status", {}).get("conditions", ())
    return next((one["type"] for one in conditions if one["type"] in _OVER and one["status"] == "True"), "")


async def _create_runs(api: Api, size: Size) -> None:
    chance, before = random.Random(size.seed), 0.0  # noqa: S311 -- no secret
    times = sorted(chance.uniform(0, size.spread) for _ in range(size.runs))
    for number, at in enumerate(times):
        await asyncio.sleep(at - before)
        before = at
        await api.create(objects.run(number, size.rounds, plane.STORE))


async def _sample(pid: int, samples: list[Sample]) -> None:
    while True:
        samples.append(await asyncio.to_thread(sample, pid))
        await asyncio.sleep(_SAMPLE_SECONDS)


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Have this done meanwhile; its failure ends all."""
    task, me = asyncio.create_task(work), asyncio.current_task()
    task.add_done_callback(lambda done: me.cancel() if me and not done.cancelled() and done.exception() else None)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _say_outcomes(course: Course) -> None:
    failed = sorted(name for name, outcome in course.outcomes.items() if outcome == "Failed")
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)


def main(argv: list[str]) -> int:
    """Measure, print, and leave nothing behind."""
    asked = arguments(argv)
    size = Size(asked.sites, asked.runs, asked.rounds, asked.pace, asked.spread, asked.job_ttl, asked.seed, asked.limit)
    place = plane.default_place()
    # Memory for processor time, within bounds: what surrounds the operator is not what is measured.
    os.environ.setdefault("GOGC", "400")
    os.environ.setdefault("GOMEMLIMIT", "8GiB")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with locked(place.cache / "benchmark.lock"):  # one at a time: they share ports and folder
        plane.down(place)
        try:
            plane.up(place)
            found = asyncio.run(measure(place, size))
            print("\n".join(table.lines(found)))
        except KeyboardInterrupt:
            return 130
        finally:
            plane.down(place, keep=asked.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
