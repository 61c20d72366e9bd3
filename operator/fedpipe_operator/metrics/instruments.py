"""Prometheus' instruments for what the operator itself does, made from the catalogue."""

from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from fedpipe_operator.metrics.catalogue import OPERATOR, PREFIX, Type

_SHORT: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_BUCKETS: Final = {"aggregation_duration_seconds": _LONG}
_AT_SCRAPE: Final = ("leader", "workqueue_depth", "workqueue_oldest_seconds")
"""Made by `collector`."""


class Instruments:
    """The instruments by name, without the prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series of each counter that no query needs
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for name, one in ((metric.name.removeprefix(PREFIX), metric) for metric in OPERATOR):
            if one.type is Type.COUNTER:
                self._counters[name] = Counter(one.name, one.help, one.labels, registry=registry)
            elif one.type is Type.HISTOGRAM:
                buckets = _BUCKETS.get(name, _SHORT)
                self._histograms[name] = Histogram(one.name, one.help, one.labels, registry=registry, buckets=buckets)
            elif name not in _AT_SCRAPE:
                self._gauges[name] = Gauge(one.name, one.help, one.labels, registry=registry)
        self.set("build_info", 1, version("fedpipe"))

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Raise a counter."""
        self._counters[name].labels(*labels).inc(by)

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Add to a histogram."""
        self._histograms[name].labels(*labels).observe(seconds)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._gauges[name].labels(*labels).set(value)
