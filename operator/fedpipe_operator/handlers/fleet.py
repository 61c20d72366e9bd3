"""The watched objects at one moment, for readers on other threads: kopf changes its indices on the event loop's thread."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedpipe_operator.cluster.objects import NamespacedName, is_managed_by_another, version_of
from fedpipe_operator.handlers.cache import WatchCache

Body = Mapping[str, Any]


class JobNumbers(NamedTuple):
    """How many Jobs a site has that have not ended."""

    pending: int = 0
    running: int = 0


@dataclass(frozen=True)
class Fleet:
    """The operator's runs and sites, and the numbers of the sites' Jobs.

    Those of another operator class are not watched, and so none of them can be here.
    """

    runs: tuple[Body, ...] = ()
    sites: tuple[Body, ...] = ()
    jobs: Mapping[NamespacedName, JobNumbers] = field(default_factory=dict)
    """By site; those without a Job are left out."""


def fleet_of(cache: WatchCache) -> Fleet:
    """Copy from the cache what the event loop's thread may change: references and numbers only."""
    active = Counter(
        (NamespacedName(job.namespace, job.job.site), bool(job.ready))
        for jobs in cache.jobs_at_sites.values()
        for job in jobs
        if job.is_active
    )
    return Fleet(
        # A run of another controller has that controller's metrics: no user of this operator could act on an alert about it.
        runs=tuple(body for body in _newest(cache.run_bodies.values()) if not is_managed_by_another(body)),
        sites=_newest(cache.site_bodies.values()),
        jobs={site: JobNumbers(active[site, False], active[site, True]) for site, _ in active},
    )


def _newest(groups: Collection[Collection[Body]]) -> tuple[Body, ...]:
    """Of each name the newest object: one that was deleted may be cached beside it."""
    return tuple(max(bodies, key=version_of) for bodies in groups if bodies)
