"""kopf's decorators and nothing else: watches fill the indices of the cache, events go to the controller. Nodes are in `nodes`.

All handlers are coroutines: kopf would call plain functions in threads, and the work queues belong to the event loop.
Only `index` and `on.event` are used, which leave nothing on the objects: no annotation, no finalizer, no progress that a restart
would have to restore. Every decision is made in the level-triggered reconciles of the controller.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import kopf

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.api.meta import GROUP, LABEL_RUN, VERSION
from fedpipe_operator.cluster import KubeJob, kube_job
from fedpipe_operator.cluster.objects import NamespacedName, namespaced_name, read_body, slim
from fedpipe_operator.handlers.cache import RunSummary, WatchCache, labels_of, run_summary
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.handlers.diffbase import NullDiffBaseStorage

RUNS: Final = (GROUP, VERSION, "federatedfinetunes")
SITES: Final = (GROUP, VERSION, "edgesites")
JOBS: Final = ("batch", "v1", "jobs")
OURS: Final = {LABEL_RUN: kopf.PRESENT}

Body = Mapping[str, Any]


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    """Have kopf only read from the API: it posts nothing, stores nothing, and notices a dead watch.

    kopf's number of workers stays unlimited: each waits until every object is indexed, so a limit below the object count deadlocks
    start-up indexing.
    """
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.watching.label_selectors[JOBS] = LABEL_RUN
    settings.persistence.diffbase_storage = NullDiffBaseStorage()


@kopf.on.startup()
async def start(memo: kopf.Memo, **kwargs: Any) -> None:
    """Start the controller. Its first reconciles wait for the indices, since only events enqueue keys."""
    indices: dict[str, Any] = {one.name: kwargs.get(one.name) for one in fields(WatchCache)}
    cache = WatchCache(**indices)
    memo.queues = asyncio.create_task(memo.controller.run(cache))


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Stop the controller. The next operator finds in the store and the cluster what was begun."""
    memo.queues.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await memo.queues


@kopf.on.probe(id="queues")
async def is_reconciling(memo: kopf.Memo, **_: Any) -> bool:
    """Liveness: fails once the work queues have ended, so that Kubernetes restarts the operator."""
    if memo.queues.done():
        raise kopf.PermanentError("the work queues have ended")
    return True


@kopf.index(*RUNS)
async def run_bodies(body: kopf.Body, **_: Any) -> Mapping[NamespacedName, Body]:
    """Every run."""
    return {namespaced_name(body): slim(body)}


@kopf.index(*RUNS)
async def run_summaries(body: kopf.Body, **_: Any) -> Mapping[str, RunSummary]:
    """Summaries of the runs, for the sites' status."""
    return {namespaced_name(body).namespace: run_summary(body)}


@kopf.index(*SITES)
async def site_bodies(body: kopf.Body, **_: Any) -> Mapping[NamespacedName, Body]:
    """Every site."""
    return {namespaced_name(body): slim(body)}


@kopf.index(*SITES)
async def sites(body: kopf.Body, **_: Any) -> Mapping[tuple[str, str], EdgeSite] | None:
    """Every site with a valid spec, by each of its labels."""
    site = read_body(body, EdgeSite)
    if not isinstance(site, EdgeSite):
        return None
    return {(site.metadata.namespace, label): site for label in labels_of(site.metadata.labels)}


@kopf.index(*JOBS, labels=OURS)
async def jobs_of_runs(body: kopf.Body, **_: Any) -> Mapping[tuple[str, str], KubeJob] | None:
    """Every Job of FedPipe, by its run."""
    job = kube_job(body)
    return None if job is None else {(job.namespace, job.run_uid): job}


@kopf.index(*JOBS, labels=OURS)
async def jobs_at_sites(body: kopf.Body, **_: Any) -> Mapping[tuple[str, str], KubeJob] | None:
    """Every Job of FedPipe, by its site."""
    job = kube_job(body)
    return None if job is None else {(job.namespace, job.job.site): job}


@kopf.on.event(*RUNS)
async def run_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A run was listed, created, changed or deleted."""
    controller: Controller = memo.controller
    controller.event_received(RUNS[2], type)
    if type == "DELETED":
        controller.run_deleted(slim(body))
    else:
        controller.run_changed(body)


@kopf.on.event(*SITES)
async def site_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A site was listed, created, changed or deleted."""
    controller: Controller = memo.controller
    controller.event_received(SITES[2], type)
    if type == "DELETED":
        controller.site_deleted(namespaced_name(body))
    else:
        controller.site_changed(body)


@kopf.on.event(*JOBS, labels=OURS)
async def job_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A Job with FedPipe's labels was listed, created, changed or deleted; one that is not ours is not looked at."""
    controller: Controller = memo.controller
    controller.event_received(JOBS[2], type)
    job = kube_job(body)
    if job is not None:
        controller.job_changed(job, is_gone=type == "DELETED")
