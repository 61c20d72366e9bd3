"""Scrapes of the operator's metrics in tests: a world whose reconciles are listened to, and the samples as Prometheus reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from stand_in_cluster import KubeWorld

from fedpipe_operator.cluster.objects import NamespacedName
from fedpipe_operator.handlers.fleet import Fleet, JobNumbers
from fedpipe_operator.handlers.workqueue import QueueLoad
from fedpipe_operator.metrics.catalogue import PREFIX
from fedpipe_operator.metrics.collector import FleetCollector
from fedpipe_operator.metrics.listener import Listener

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A name without the prefix, and the labels in order of name."""


def series(name: str, /, **labels: str) -> Series:
    """The identity of a series."""
    return name, tuple(sorted(labels.items()))


@dataclass(frozen=True)
class Scrape:
    """What Prometheus reads from a page."""

    values: Mapping[Series, float]

    @classmethod
    def of(cls, text: str) -> "Scrape":
        """Read a page."""
        found: dict[Series, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = series(sample.name.removeprefix(PREFIX), **sample.labels)
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
        return cls(found)

    def value(self, name: str, /, **labels: str) -> float:
        """The value of one series."""
        return self.values[series(name, **labels)]

    def has(self, name: str, /, **labels: str) -> bool:
        """Whether there is a series of this name with these labels among its own."""
        return bool(self.named(name, **labels))

    def named(self, name: str, /, **labels: str) -> dict[Series, float]:
        """The series of this name with these labels among their own."""
        return {key: value for key, value in self.values.items() if key[0] == name and set(labels.items()) <= set(key[1])}

    def by(self, label: str, name: str, /, **labels: str) -> dict[str, float]:
        """The sums of these series by the values of a label; those of 0 are left out."""
        sums: dict[str, float] = {}
        for (_, own), value in self.named(name, **labels).items():
            key = dict(own).get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return {key: value for key, value in sums.items() if value}


@dataclass
class ListenedFleet:
    """Objects and queues as a test sets them, and a listener that shows them."""

    listener: Listener
    fleet: Fleet | None = field(default_factory=Fleet)
    queues: dict[str, QueueLoad] = field(default_factory=dict)
    leads: bool = True

    def __post_init__(self) -> None:
        self.listener.collect_from(lambda: self.fleet, lambda: self.queues, lambda: self.leads)

    def scrape(self) -> Scrape:
        """What Prometheus would read now."""
        return Scrape.of(generate_latest(self.listener.registry).decode())


def a_site_body(name: str, namespace: str = "default", **status: Any) -> dict[str, Any]:
    """The object of a site as the watch has it."""
    conditions = [{"type": kind, "status": "True", "reason": "NodesFound"} for kind in ("Valid", "CapacityMet", "Ready")]
    meta = {"namespace": namespace, "name": name, "uid": f"uid-{namespace}-{name}", "resourceVersion": "1"}
    return {"metadata": meta, "spec": {}, "status": {"conditions": conditions} | status}


def scrape_of(world: KubeWorld, *runs: str) -> Scrape:
    """A scrape of the world as its observer has it now: of these runs (`toy`), and of all sites."""
    listener = world.observer
    assert isinstance(listener, Listener)
    jobs: dict[NamespacedName, JobNumbers] = {}
    for job in world.jobs():
        if job.is_active:
            name = NamespacedName(job.namespace, job.job.site)
            pending, running = jobs.get(name, JobNumbers())
            jobs[name] = JobNumbers(pending + (not job.ready), running + bool(job.ready))
    bodies = tuple(world.body(run) for run in runs or ("toy",))
    sites = tuple(a_site_body(site.name) for site in world.run.sites)
    collector = FleetCollector(lambda: Fleet(bodies, sites, jobs), dict, listener._records, lambda: True)
    listener.registry.register(collector)
    try:
        return Scrape.of(generate_latest(listener.registry).decode())
    finally:
        listener.registry.unregister(collector)
