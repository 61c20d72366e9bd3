"""The operator on a cluster: `python -m fedpipe_operator`, configured by its environment (`settings`)."""

import os
import sys
import time
from importlib.metadata import version

import kopf

from fedpipe_operator import logs, tracing
from fedpipe_operator import settings as environment
from fedpipe_operator.aggregation.malloc import limit_malloc_to_one_arena
from fedpipe_operator.cluster import Api, RunReconciler, SiteReconciler, in_cluster
from fedpipe_operator.cluster.api import RUNS, SITES
from fedpipe_operator.cluster.backend import Cluster
from fedpipe_operator.cluster.cache_check import LiveObjects
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.cluster.expectations import Expectations
from fedpipe_operator.cluster.status_writer import ClusterStatusWriter
from fedpipe_operator.cluster.workers import Workers
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.settings import Settings
from fedpipe_operator.store.addresses import api_server_addresses
from fedpipe_operator.store.connections import addresses_of


def make_controller(settings: Settings) -> Controller:
    """The controller with everything it works with."""
    api, clock = in_cluster(), time.time
    status_writer = ClusterStatusWriter(api, clock)
    cluster = Cluster(api, settings, Expectations(clock), Workers(clock), clock)
    stores = StoreConnections(api, settings.store_policy, api_server_addresses(os.environ, addresses_of))
    runs = RunReconciler(cluster, stores, status_writer)
    sites = SiteReconciler(status_writer, clock, settings.priority_classes)
    live_objects = LiveObjects(api, settings.namespaces, settings.watch_nodes)
    return Controller(runs, sites, live_objects, settings.max_concurrent_reconciles)


def _exit_without_crds(api: Api, settings: Settings) -> None:
    """Exit if a CRD is missing: kopf looks up the kinds once, and would never watch one that is installed later."""
    namespaces = settings.namespaces or ("default",)
    try:
        missing = [kind.plural for kind in (RUNS, SITES) if not api.serves(kind, namespaces[0])]
    except FedPipeError as error:
        sys.exit(str(error))
    if missing:
        sys.exit(f"the API server does not serve {' and '.join(missing)}: install the CRDs (the chart's crds.enabled)")


def main() -> None:
    """Run until terminated."""
    try:
        settings = environment.read(os.environ)
    except ValueError as error:
        sys.exit(str(error))
    limit_malloc_to_one_arena()
    controller = make_controller(settings)
    _exit_without_crds(controller.runs.cluster.api, settings)
    from fedpipe_operator.handlers import watches  # noqa: F401, PLC0415 -- registers with kopf

    if settings.watch_nodes:
        from fedpipe_operator.handlers import nodes  # noqa: F401, PLC0415 -- as above
    logs.configure(settings.log_format)
    tracing.configure(settings.tracing_endpoint, version("fedpipe"))
    kopf.run(
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
        memo=kopf.Memo(controller=controller),
        stop_flag=controller.diverged,
    )
    if controller.diverged.is_set():
        sys.exit("the cache differs from the API server: restart the operator to rebuild it")


if __name__ == "__main__":
    main()
