"""Listens to the operator (`observer.Observer`) and keeps what its metrics are made of. A fault here is logged, and ends no reconcile."""

import logging
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, CollectorRegistry, ProcessCollector

from fedpipe_operator.handlers.fleet import Fleet
from fedpipe_operator.handlers.workqueue import QueueLoad
from fedpipe_operator.metrics.collector import FleetCollector
from fedpipe_operator.metrics.instruments import Instruments
from fedpipe_operator.metrics.records import Records, aggregates_in_job
from fedpipe_operator.observer import Observer
from fedpipe_operator.rounds import Decision, Observed, Run

_LOG: Final = logging.getLogger(__name__)


class Listener(Observer):
    """The metrics of one operator, on a registry of their own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with counters of 0; `clock` gives Unix seconds."""
        self.registry = CollectorRegistry()
        self.instruments = Instruments(self.registry)
        self._records = Records(clock)
        self._clock = clock
        ProcessCollector(registry=self.registry)
        for collector in (GC_COLLECTOR, PLATFORM_COLLECTOR):
            self.registry.register(collector)

    def collect_from(
        self, fleet: Callable[[], Fleet | None], queue_loads: Callable[[], Mapping[str, QueueLoad]], is_leader: Callable[[], bool]
    ) -> None:
        """Show the series of these objects and queues, too, while this replica leads."""
        self.registry.register(FleetCollector(fleet, queue_loads, self._records, is_leader))

    def kube_called(self, verb: str, reason: str, seconds: float) -> None:
        """Count a call to the API server."""
        self.instruments.count("kube_requests_total", verb, reason)
        self.instruments.observe("kube_request_duration_seconds", seconds, verb)

    def store_called(self, operation: str, reason: str, seconds: float) -> None:
        """Count a call to a store."""
        self.instruments.count("store_requests_total", operation, reason)
        self.instruments.observe("store_request_duration_seconds", seconds, operation)

    def reconciled(self, kind: str, result: str, seconds: float) -> None:
        """Count a reconcile."""
        self.instruments.count("reconcile_total", kind, result)
        self.instruments.observe("reconcile_duration_seconds", seconds, kind)

    def event_received(self, resource: str) -> None:
        """Note the time."""
        self.instruments.set("watch_last_event_timestamp_seconds", self._clock(), resource)

    def run_reconciled(self, run: Run, observed: Observed, decision: Decision, jobs: Container[str]) -> None:
        """Bring the run's record up to date, and count what is new."""
        with _logged(run.name):
            for one in self._records.run_reconciled(run, observed, decision):
                labels = ("job" if aggregates_in_job(observed, one.round, jobs) else "operator", one.method)
                self.instruments.observe("aggregation_duration_seconds", one.seconds, *labels)
                self.instruments.count("aggregation_bytes_total", *labels, by=one.bytes_read)

    def run_ended(self, run: Run) -> None:
        """Count the end of a run that was seen at work."""
        with _logged(run.name):
            self._records.run_ended(run)

    def run_deleted(self, uid: str) -> None:
        """Forget the run."""
        self._records.run_deleted(uid)

    def site_deleted(self, namespace: str, site: str) -> None:
        """Forget the site's counters."""
        self._records.site_deleted(namespace, site)


@contextmanager
def _logged(run: str) -> Iterator[None]:
    try:
        yield
    except Exception:  # noqa: BLE001 -- the run goes on whatever its metrics say; the log has the fault whole
        _LOG.exception("the metrics of the run %s are not up to date", run)
