"""The operator on a cluster: `python -m fedpipe_operator`, configured by its environment (`settings`)."""

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import kopf

from fedpipe_operator import logs, tracing
from fedpipe_operator import settings as environment
from fedpipe_operator.aggregation.malloc import limit_malloc_to_one_arena
from fedpipe_operator.certificates import certificates_problem
from fedpipe_operator.cluster import Api, RunReconciler, SiteReconciler, in_cluster
from fedpipe_operator.cluster.api import RUNS, SITES, for_leases, for_reviews
from fedpipe_operator.cluster.backend import Cluster
from fedpipe_operator.cluster.cache_check import LiveObjects
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.cluster.elector import Elector
from fedpipe_operator.cluster.expectations import Expectations
from fedpipe_operator.cluster.identity import Identity
from fedpipe_operator.cluster.leadership import Leadership
from fedpipe_operator.cluster.status_writer import ClusterStatusWriter
from fedpipe_operator.cluster.workers import Workers
from fedpipe_operator.errors import FedPipeError, TransientError
from fedpipe_operator.handlers import probes
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.handlers.watch_requests import WatchRequests, watched_paths
from fedpipe_operator.memory_budget import MemoryBudget
from fedpipe_operator.metrics.listener import Listener
from fedpipe_operator.metrics.server import serve
from fedpipe_operator.names import operator_class_selector
from fedpipe_operator.pod_settings import REPORTS_TLS
from fedpipe_operator.report_server.answers import WAIT_SECONDS, Reporter
from fedpipe_operator.report_server.drawing import Drawer
from fedpipe_operator.report_server.gate import Gate
from fedpipe_operator.report_server.reports import Reports
from fedpipe_operator.report_server.server import Tls
from fedpipe_operator.report_server.server import serve as serve_reports
from fedpipe_operator.settings import Replica, Settings
from fedpipe_operator.store import Guard
from fedpipe_operator.store.addresses import api_server_addresses
from fedpipe_operator.store.connections import addresses_of

_LOG: Final = logging.getLogger(__name__)
_API_RETRY_SECONDS: Final = 2.0
_CERTIFICATES_SECONDS: Final = 15.0
_SCRAPE_SECONDS: Final = 5.0
"""A scrape waits so long for the event loop, then it goes without the objects: Prometheus' own time-out is 10 s."""
_LOOK_UP_SECONDS: Final = 5.0
"""A person's request for a report waits so long for the event loop."""
_LOST: Final = 1
"""The exit status of a process that lost the Lease."""


def make_controller(settings: Settings, replica: Replica) -> Controller:
    """The controller with everything it works with, and its metrics, served from now on."""
    leadership, clock = Leadership(), time.time
    metrics = Listener(clock)
    api = in_cluster(leadership.acting, metrics)
    status_writer = ClusterStatusWriter(api, clock)
    workers = Workers(clock, memory_bytes=replica.memory_bytes // 2)
    cluster = Cluster(api, settings, Expectations(time.monotonic), workers, clock, MemoryBudget(replica.memory_bytes // 2))
    api_servers = _api_servers()
    identity = Identity(settings.store_identity, settings.default_store, Guard(api_servers))
    stores = StoreConnections(api, settings.store_policy, api_servers, observer=metrics, identity=identity)
    runs = RunReconciler(cluster, stores, status_writer, observer=metrics)
    sites = SiteReconciler(status_writer, clock, settings.priority_classes, metrics)
    live_objects = LiveObjects(api, settings.namespaces, settings.watch_nodes, operator_class_selector(settings.operator_class))
    elector = Elector(for_leases(api), replica.namespace, replica.lease, replica.pod, leadership, on_lost=partial(_exit_at_once, cluster))
    watch_requests = WatchRequests(watched_paths(settings.namespaces, with_nodes=settings.watch_nodes))
    controller = Controller(runs, sites, live_objects, elector, watch_requests, settings.max_concurrent_reconciles, metrics)
    metrics.collect_from(partial(controller.fleet, _SCRAPE_SECONDS), controller.queue_loads, controller.is_leader)
    _serve(metrics, settings.metrics_port)
    if settings.reports.enabled:
        _serve_reports(controller, settings)
    return controller


def _api_servers() -> tuple[str, ...]:
    try:
        return api_server_addresses(os.environ, addresses_of)
    except ValueError as error:
        sys.exit(f"{error}; install the operator with the chart, which sets it")


def _serve_reports(controller: Controller, settings: Settings) -> None:
    """Serve the reports from now on. Until the runs are watched, callers are told to ask again."""
    gate = Gate(for_reviews(controller.runs.cluster.api), settings.reports.audience)
    drawer = Drawer(Path(tempfile.mkdtemp(prefix="reports-")))
    controller.runs.on_forgotten = drawer.forget
    find = partial(controller.run_body, seconds=_LOOK_UP_SECONDS)
    reports = Reports(find, controller.runs.stores.located, drawer, settings.default_store)
    given = settings.reports
    reporter = Reporter(gate.access, partial(reports.page, seconds=WAIT_SECONDS), given.audience)
    try:
        serve_reports(reporter.answer, given.port, Tls(Path(REPORTS_TLS)) if given.tls_secret_name else None)
    except OSError as error:
        advice = "choose a port that is free, and a Secret with tls.crt and its tls.key"
        sys.exit(f"no server can be started with FEDPIPE_REPORTS {given.to_json()}: {error}; {advice}")


def _serve(metrics: Listener, port: int) -> None:
    try:
        serve(metrics.registry, port)
    except OSError as error:
        sys.exit(f"FEDPIPE_METRICS_PORT is {port}, on which no server can be started: {error}; choose a port that is free")


def _exit_at_once(cluster: Cluster, why: str) -> None:
    """End this process, whatever its threads do: another replica acts. A new process stands by."""
    _LOG.error("%s; a new process stands by", why)
    cluster.workers.kill()
    logging.shutdown()
    os._exit(_LOST)


def _missing_kinds(api: Api, settings: Settings) -> list[str]:
    """The kinds that the API server does not serve."""
    namespace = (settings.namespaces or ("default",))[0]
    return [kind.plural for kind in (RUNS, SITES) if not api.serves(kind, namespace)]


async def _wait_for_kinds(api: Api, settings: Settings) -> None:
    """Wait for the API server, without a restart, and exit if a CRD is missing: kopf would never watch one that is installed later."""
    while True:
        try:
            missing = await asyncio.to_thread(_missing_kinds, api, settings)
        except TransientError as error:
            _LOG.warning("waiting for the API server: %s", error)
            await asyncio.sleep(_API_RETRY_SECONDS)
        except FedPipeError as error:
            sys.exit(str(error))
        else:
            break
    if missing:
        sys.exit(f"the API server does not serve {' and '.join(missing)}: install the CRDs (the chart's crds.enabled)")


async def _wait_for_certificates(port: int) -> None:
    """Wait until the certificates can be read: their ConfigMap may be corrected, and the kubelet then updates the file.

    Raises:
        asyncio.CancelledError: the process was asked to end.
    """
    _cancel_on_sigterm()
    await probes.wait_while(lambda: certificates_problem(os.environ), port, poll_seconds=_CERTIFICATES_SECONDS)


def _cancel_on_sigterm() -> None:
    """Without a handler, a process that is the first of its container ignores the signal."""
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _operate(controller: Controller, settings: Settings) -> None:
    """Operate until cancelled, or until kopf stops for a signal: it replaces our handler, which ends the wait for the API server."""
    _cancel_on_sigterm()
    async with probes.served(settings.health_port, controller.vitals):
        await _wait_for_kinds(controller.runs.cluster.api, settings)
        await kopf.operator(
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            memo=kopf.Memo(controller=controller),
            stop_flag=controller.diverged,
        )


def main() -> None:
    """Run until terminated."""
    try:
        settings = environment.read(os.environ)
    except ValueError as error:
        sys.exit(str(error))
    logs.configure(settings.log_format)
    try:
        asyncio.run(_wait_for_certificates(settings.health_port))
    except asyncio.CancelledError:
        return
    limit_malloc_to_one_arena()
    controller = make_controller(settings, environment.read_replica(os.environ))
    from fedpipe_operator.handlers import watches  # noqa: F401, PLC0415 -- registers with kopf

    if settings.watch_nodes:
        from fedpipe_operator.handlers import nodes  # noqa: F401, PLC0415 -- as above
    tracing.configure(settings.tracing_endpoint, version("fedpipe"))
    with suppress(asyncio.CancelledError):
        asyncio.run(_operate(controller, settings))
    if controller.diverged.is_set():
        sys.exit("the cache differs from the API server: restart the operator to rebuild it")


if __name__ == "__main__":
    main()
