"""A thousand sites and a hundred runs of all of them, as the operator holds them: for the bounds and the benchmark of the metrics."""

from dataclasses import dataclass, replace
from typing import Any, Final

from prometheus_client import CollectorRegistry
from scrapes import a_site_body

from fedpipe_operator.api import ConditionType
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.cluster.objects import NamespacedName
from fedpipe_operator.handlers.fleet import Fleet, JobNumbers
from fedpipe_operator.handlers.workqueue import QueueLoad
from fedpipe_operator.metrics.counting import Counted, Increment
from fedpipe_operator.metrics.listener import Listener
from fedpipe_operator.metrics.records import Records, _Known
from fedpipe_operator.metrics.run_record import PHASES, RunRecord, Stage, Training, Used
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.sites import Efficiency
from fedpipe_trainer.contract import EnergySource, Forecast, Plan

SITES: Final = 1000
RUNS: Final = 100
NAMESPACES: Final = 10
WEIGHTS: Final = {f"model.layers.{layer}.self_attn.{name}_proj": 8 for layer in range(32) for name in "qkvo"}

MEASURED: Final = {"memoryBandwidth": 10**10, "bandwidthUp": 10**8, "bandwidthDown": 10**9}
"""By the profile of each site."""


@dataclass(frozen=True)
class LargeFleet:
    """What a scrape reads, and the registry that shows it."""

    fleet: Fleet
    records: Records
    registry: CollectorRegistry


def a_large_fleet(sites: int = SITES, runs: int = RUNS) -> LargeFleet:
    """Each namespace has its part of the sites and of the runs; each run is of all sites of its namespace, each of which did every task."""
    listener = Listener(lambda: 1_000_000.0)
    spaces = [f"namespace-{number}" for number in range(NAMESPACES)]
    names = {space: [f"site-{number:04d}" for number in range(sites // NAMESPACES)] for space in spaces}
    records = listener._records
    bodies = []
    for number in range(runs):
        space = spaces[number % NAMESPACES]
        bodies.append(_run_body(f"run-{number:03d}", space))
        records._known[f"uid-run-{number:03d}"] = _Known(Counted(), _record(space, f"run-{number:03d}", names[space]))
    records._add(tuple(_attempts(names)))
    jobs = {NamespacedName(space, site): JobNumbers(0, 1) for space in spaces for site in names[space]}
    fleet = Fleet(
        tuple(bodies), tuple(a_site_body(site, space, capacity={"measured": MEASURED}) for space in spaces for site in names[space]), jobs
    )
    listener.collect_from(lambda: fleet, lambda: dict.fromkeys(("run", "site", "cache"), QueueLoad(1, 0.5)), lambda: True)
    return LargeFleet(fleet, records, listener.registry)


def _attempts(names: dict[str, list[str]]) -> list[Increment]:
    """Every site did each of its tasks, and failed at one of them."""
    tasks = (TaskKind.PROFILE, TaskKind.TRAIN, TaskKind.EVALUATE)
    ends = [*((task, "Completed") for task in tasks), (TaskKind.TRAIN, "DeadlineExceeded")]
    sites = [(space, site) for space, found in names.items() for site in found]
    return [Increment("attempts_total", (*site, str(task), reason)) for site in sites for task, reason in ends]


def _run_body(name: str, namespace: str) -> dict[str, Any]:
    conditions = [{"type": str(kind), "status": "False", "reason": "NotFinished"} for kind in ConditionType]
    updates = dict.fromkeys(("expected", "needed", "received", "refused", "late"), 10)
    status = {"conditions": conditions, "round": 3, "updates": updates, "progress": {"percentage": 30}}
    meta = {"namespace": namespace, "name": name, "uid": f"uid-{name}", "resourceVersion": "1"}
    return {"metadata": meta, "spec": {"rounds": {"count": 10}}, "status": status}


def _record(namespace: str, run: str, sites: list[str]) -> RunRecord:
    forecast = Forecast(memory_bytes=10**9, seconds=100.0, upload_bytes=10**6, download_bytes=10**6)
    plan = Plan(bits=4, batch_size=8, steps=50, ranks=WEIGHTS, layers=32, lowest_layer=16, forecast=forecast)
    plans = RoundPlan(
        round=3,
        started_at=0.0,
        fingerprint="f",
        weights={},
        plans=dict.fromkeys(sites, plan),
        selected=tuple(sites),
        evaluators=tuple(sites),
        needed=1,
    )
    figures = {"loss": 0.5, "accuracy": 0.9, "macroF1": 0.8}
    return replace(
        RunRecord(namespace, run),
        plan=plans,
        stage=Stage("Training", 1000.0, 600.0),
        figures=figures,
        truncated_energy=0.01,
        trainings={site: _training(float(number)) for number, site in enumerate(sites)},
        used={site: Used(10**6 + number, 10**6 + number, 1000.0 + number) for number, site in enumerate(sites)},
        sites=tuple(sites),
        last_round=2,
    )


def _training(number: float) -> Training:
    """Numbers of its own, so that they take the memory that they would take."""
    return Training(
        3, 0, 10**9 + int(number), 90.0 + number, tuple(number + one for one in range(len(PHASES))), number, _efficiency(number)
    )


def _efficiency(number: float) -> Efficiency:
    return Efficiency(
        tokens_per_second=1e3 + number,
        padded_tokens_per_second=2e3 + number,
        mfu=0.3,
        update_cosine=0.9,
        tokens_per_joule=1.0 + number,
        energy_source=EnergySource.RAPL,
        granularity=9.0 + number,
        bits_per_second=1e6 + number,
    )
