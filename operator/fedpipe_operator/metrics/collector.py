"""Makes the series of runs and sites at each scrape, from what the operator holds at that moment."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from fedpipe_operator.cluster.objects import NamespacedName, namespaced_name
from fedpipe_operator.handlers.fleet import Fleet, JobNumbers
from fedpipe_operator.handlers.workqueue import QueueLoad
from fedpipe_operator.metrics.catalogue import CATALOGUE, PREFIX, Metric, Type
from fedpipe_operator.metrics.counter_series import counter_series
from fedpipe_operator.metrics.object_series import run_series, site_series
from fedpipe_operator.metrics.records import Records, Snapshot
from fedpipe_operator.metrics.samples import Sample
from fedpipe_operator.metrics.site_of_run_series import shown_sites, site_of_run_series

_LOG: Final = logging.getLogger(__name__)
_METRICS: Final = {metric.name.removeprefix(PREFIX): metric for metric in CATALOGUE}


@dataclass(eq=False)  # a registry keeps collectors by their identity
class FleetCollector(Collector):
    """Collects the series of all objects. What fails for one object is logged, and costs its series only."""

    fleet: Callable[[], Fleet | None]
    """The watched objects; None if the event loop hangs, or has not started."""
    queue_loads: Callable[[], Mapping[str, QueueLoad]]
    records: Records
    is_leader: Callable[[], bool]
    """Whether this replica reconciles. One that stands by shows no runs and sites, or they would be there twice."""

    def collect(self) -> Iterator[Family]:
        """The families that have samples, in the catalogue's order."""
        found: dict[str, list[Sample]] = {}
        for sample in self._samples():
            found.setdefault(sample.name, []).append(sample)
        # Each family's samples go as soon as it is written.
        return (_family(metric, found.pop(name)) for name, metric in _METRICS.items() if name in found)

    def _samples(self) -> Iterator[Sample]:
        for queue, (depth, oldest_seconds) in self.queue_loads().items():
            yield Sample("workqueue_depth", (queue,), depth)
            yield Sample("workqueue_oldest_seconds", (queue,), oldest_seconds)
        leads = self.is_leader()
        yield Sample("leader", (), leads)
        fleet = self.fleet() if leads else Fleet()
        if fleet is None:
            _LOG.warning("no metrics of runs and sites: the event loop does not answer, or has not started")
            return
        yield from fleet_samples(fleet, self.records.snapshot())


def fleet_samples(fleet: Fleet, known: Snapshot) -> Iterator[Sample]:
    """The series of these objects; of no other object, whatever is known of it."""
    uids = {body["metadata"]["uid"] for body in fleet.runs}
    records = {uid: record for uid, record in known.records.items() if uid in uids}
    sites = {namespaced_name(body) for body in fleet.sites}
    namespaces = {name.namespace for name in sites} | {namespaced_name(body).namespace for body in fleet.runs}
    for body in fleet.runs:
        yield from _or_log(run_series(body, records.get(body["metadata"]["uid"])), namespaced_name(body))
    for body in fleet.sites:
        name = namespaced_name(body)
        pending, running = fleet.jobs.get(name, JobNumbers())
        yield from _or_log(site_series(body, pending=pending, running=running), name)
    for uid, shown in shown_sites(records).items():
        record = records[uid]
        yield from _or_log(site_of_run_series(record, shown), NamespacedName(record.namespace, record.run))
    yield from counter_series(known.totals, namespaces, sites)


def _or_log(samples: Iterable[Sample], of: NamespacedName) -> list[Sample]:
    try:
        # Here, not where the page is made: an integer of a record in a run's bucket may be larger than any float.
        return [sample._replace(value=float(sample.value)) for sample in samples]
    except Exception:  # noqa: BLE001 -- one object's fault must not cost the others their series; it is logged whole
        _LOG.exception("no metrics of %s/%s", *of)
        return []


def _family(metric: Metric, samples: Iterable[Sample]) -> Family:
    made = CounterMetricFamily if metric.type is Type.COUNTER else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = made(metric.name, metric.help, labels=metric.labels)
    for sample in samples:
        family.add_metric(sample.labels, sample.value)
    return family
