"""kopf's decorators, and nothing else: watches fill the indices, events wake keys of the work queue.

All are coroutines: kopf would call plain functions in threads, and the work queue is the event loop's alone.
Only `index` and `on.event` are used, which leave no mark on the objects: no annotation, no finalizer, no progress that a restart
would have to find again. Every decision is made in the level-triggered turns that `controller` makes.
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
from fedpipe_operator.cluster.bodies import NamespacedName, namespaced_name, read_body, slim
from fedpipe_operator.handlers.cache import Cache, RunSummary, labels_of, run_summary
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.handlers.diffbase import NullDiffBaseStorage

RUNS: Final = (GROUP, VERSION, "federatedfinetunes")
SITES: Final = (GROUP, VERSION, "edgesites")
JOBS: Final = ("batch", "v1", "jobs")
OURS: Final = {LABEL_RUN: kopf.PRESENT}

Body = Mapping[str, Any]


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    """Have kopf only read from the API: it posts nothing, stores nothing, and notices a watch that has died.

    Its number of workers stays without a limit: each waits until every object is indexed, and with fewer than objects all wait for ever.
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
async def begin(memo: kopf.Memo, **kwargs: Any) -> None:
    """Begin to make turns; the first ones wait for the indices, since only events wake keys."""
    indices: dict[str, Any] = {one.name: kwargs.get(one.name) for one in fields(Cache)}
    cache = Cache(**indices)
    memo.turns = asyncio.create_task(memo.controller.run(cache))


@kopf.on.cleanup()
async def end(memo: kopf.Memo, **_: Any) -> None:
    """End the turns; what they began is found again by the next operator."""
    memo.turns.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await memo.turns


@kopf.on.probe(id="turns")
async def is_turning(memo: kopf.Memo, **_: Any) -> bool:
    """Whether turns are made: a queue that has died is a reason to be started anew."""
    if memo.turns.done():
        raise kopf.PermanentError("the work queue has ended")
    return True


@kopf.index(*RUNS)
async def run_bodies(body: kopf.Body, **_: Any) -> Mapping[NamespacedName, Body]:
    """Every run."""
    return {namespaced_name(body): slim(body)}


@kopf.index(*RUNS)
async def run_summaries(body: kopf.Body, **_: Any) -> Mapping[str, RunSummary]:
    """Every run, for the sites' status."""
    return {namespaced_name(body).namespace: run_summary(body)}


@kopf.index(*SITES)
async def site_bodies(body: kopf.Body, **_: Any) -> Mapping[NamespacedName, Body]:
    """Every site."""
    return {namespaced_name(body): slim(body)}


@kopf.index(*SITES)
async def sites(body: kopf.Body, **_: Any) -> Mapping[tuple[str, str], EdgeSite] | None:
    """Every site whose spec can be read, by each of its labels."""
    site = read_body(body, EdgeSite)
    if not isinstance(site, EdgeSite):
        return None
    return {(site.metadata.namespace, label): site for label in labels_of(site.metadata.labels)}


@kopf.index(*JOBS, labels=OURS)
async def jobs_of_runs(body: kopf.Body, **_: Any) -> Mapping[tuple[str, str], KubeJob]:
    """Every Job of ours by its run."""
    job = kube_job(body)
    return {(job.namespace, job.run_uid): job}


@kopf.index(*JOBS, labels=OURS)
async def jobs_at_sites(body: kopf.Body, **_: Any) -> Mapping[tuple[str, str], KubeJob]:
    """Every Job of ours by its site."""
    job = kube_job(body)
    return {(job.namespace, job.job.site): job}


@kopf.on.event(*RUNS)
async def run_seen(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A run was listed, created, changed or deleted."""
    controller: Controller = memo.controller
    controller.note_list(type)
    if type == "DELETED":
        controller.forget_run(slim(body))
    else:
        controller.see_run(body)


@kopf.on.event(*SITES)
async def site_seen(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A site was listed, created, changed or deleted: its own status, and the runs that take it, have something to look at."""
    controller: Controller = memo.controller
    controller.note_list(type)
    if type == "DELETED":
        controller.forget_site(namespaced_name(body))
    else:
        controller.see_site(body)


@kopf.on.event(*JOBS, labels=OURS)
async def job_seen(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A Job of ours was listed, created, changed or deleted."""
    controller: Controller = memo.controller
    controller.note_list(type)
    controller.see_job(kube_job(body), is_gone=type == "DELETED")
