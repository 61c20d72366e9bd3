"""The controller: events enqueue keys, and each key is reconciled in a thread with a view of the cache.

Only the replica that holds the Lease reconciles. One that stands by keeps its cache up to date and enqueues nothing; when it takes over,
it first waits until the cache has what the last leader made, and then reconciles everything.

`enqueue.TABLE` says which event enqueues which key, `changes` which events matter, `workqueue` when a key is due.
"""

import asyncio
import contextvars
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from fedpipe_operator import logs
from fedpipe_operator.cluster import KubeJob, RunReconciler, SiteReconciler
from fedpipe_operator.cluster.cache_check import DriftDetector, LiveObjects, NamesByUid, drift
from fedpipe_operator.cluster.elector import Elector
from fedpipe_operator.cluster.objects import NamespacedName, namespaced_name
from fedpipe_operator.errors import TransientError
from fedpipe_operator.handlers.cache import WatchCache
from fedpipe_operator.handlers.changes import JobChanges, NodeChanges, SiteChanges, job_matters
from fedpipe_operator.handlers.enqueue import CACHE, TABLE, Key, Scope, Subject, Trigger, keys
from fedpipe_operator.handlers.fleet import Fleet, fleet_of
from fedpipe_operator.handlers.health import Vitals
from fedpipe_operator.handlers.tracking import ActiveRuns, WaitingRuns
from fedpipe_operator.handlers.watch_requests import WatchRequests
from fedpipe_operator.handlers.workqueue import QueueLoad, WorkQueue
from fedpipe_operator.observer import Observer
from fedpipe_operator.rounds import Observed, Run, is_over
from fedpipe_operator.sites import Node

Body = Mapping[str, Any]
Result = TypeVar("Result")

_LOG: Final = logging.getLogger(__name__)
_LOGGED_NAMES: Final = 10
_ID_BYTES: Final = 6
"""Of a reconcile's id in the log."""
_MAX_CONCURRENT_SITES: Final = 2
_THREADS_PER_RUN: Final = 8
"""Threads for each of the runs that are reconciled at once: those that slow stores hold up have theirs beside the others'."""
_CACHE_CHECK_SECONDS: Final = 600.0
_RECHECK_SECONDS: Final = 20.0
"""An event that is delayed for longer counts as lost."""
_CATCH_UP_SECONDS: Final = 0.2
"""Between two comparisons of the cache with the API server, when this replica takes over."""


@dataclass
class Controller:
    """Reconciles all runs and sites. Its methods are for the event loop's thread, but where they say otherwise."""

    runs: RunReconciler
    sites: SiteReconciler
    live_objects: LiveObjects
    elector: Elector
    watch_requests: WatchRequests
    max_concurrent_runs: int
    observer: Observer = field(default_factory=Observer)
    diverged: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the cache and the API server disagreed on the same object in two checks: only a new process can repair that."""
    run_queue: WorkQueue[Key] = field(init=False)
    site_queue: WorkQueue[Key] = field(init=False)
    """Apart from the runs', so that a thousand sites whose figures change do not delay a run."""
    cache_queue: WorkQueue[Key] = field(init=False)
    """Its only key is the cache check."""
    _cache: WatchCache = field(init=False)
    _pool: ThreadPoolExecutor = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _queues: asyncio.TaskGroup = field(init=False)
    _drift: DriftDetector = field(default_factory=DriftDetector)
    _site_changes: SiteChanges = field(default_factory=SiteChanges)
    _node_changes: NodeChanges = field(default_factory=NodeChanges)
    _job_changes: JobChanges = field(default_factory=JobChanges)
    _active: ActiveRuns = field(default_factory=ActiveRuns)
    _waiting: WaitingRuns = field(default_factory=WaitingRuns)
    _is_watching: bool = False
    _is_reconciling: bool = False
    _has_ended: bool = False

    def __post_init__(self) -> None:
        clock = self.runs.cluster.clock
        self.run_queue = WorkQueue(self._reconcile_run, clock, self.max_concurrent_runs, lambda key: key.namespace, on_end=self._reconciled)
        self.site_queue = WorkQueue(self._reconcile_site, clock, _MAX_CONCURRENT_SITES, on_end=self._reconciled)
        self.cache_queue = WorkQueue(self._check_cache, clock, 1, on_end=self._reconciled)
        self._pool = ThreadPoolExecutor(self.max_concurrent_runs * _THREADS_PER_RUN + _MAX_CONCURRENT_SITES + 1, "reconcile")

    async def run(self, cache: WatchCache) -> None:
        """Stand by until this replica leads, and reconcile from then on, until cancelled."""
        self._cache, self._loop, self._is_watching = cache, asyncio.get_running_loop(), True
        self.runs.on_reconciled, self.runs.cluster.workers.on_end = self.run_reconciled, self.worker_ended
        self.runs.trackers.on_end = self.worker_ended
        try:
            async with asyncio.TaskGroup() as queues:
                self._queues = queues
                queues.create_task(self.cache_queue.run())
                self.cache_queue.enqueue(CACHE, after=_CACHE_CHECK_SECONDS)
                await self._take_over()
                for queue in (self.run_queue, self.site_queue):
                    queues.create_task(queue.run())
        finally:
            self._has_ended = True
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.runs.cluster.workers.close()

    def is_leader(self) -> bool:
        """Whether this replica is the one that acts. From any thread."""
        return self.elector.leadership.is_leader()

    def vitals(self) -> Vitals:
        """What the probes decide from."""
        queues = (self.run_queue, self.site_queue, self.cache_queue)
        seen, now = self.elector.seen, self.elector.leadership.clock()
        return Vitals(
            queues_ended=self._has_ended,
            elector_ended=self.elector.has_ended(),
            in_progress={f"{key.kind} {key.namespace}/{key.name}": age for queue in queues for key, age in queue.in_progress().items()},
            watches=self.watch_requests.ages(),
            is_watching=self._is_watching,
            is_leader=self.is_leader(),
            lease_age=None if seen is None else now - seen.at,
            lease_problem=self.elector.problem,
        )

    def queue_loads(self) -> dict[str, QueueLoad]:
        """What each queue has to do now. From any thread, also while the event loop hangs."""
        now = self.runs.cluster.clock()
        queues = {"run": self.run_queue, "site": self.site_queue, "cache": self.cache_queue}
        return {name: queue.load(now) for name, queue in queues.items()}

    def fleet(self, seconds: float) -> Fleet | None:
        """The watched objects as they are now. From any other thread; None if the event loop does not answer in time."""
        try:
            return self._ask(self._fleet, seconds)
        except TimeoutError:
            return None

    def run_body(self, namespace: str, name: str, seconds: float) -> Body | None:
        """A run's object as it is watched now; None if there is none, or another operator's. From any other thread.

        Raises:
            TransientError: `NotWatching`, this replica does not know the runs, or its event loop does not answer in time.
        """
        not_yet = TransientError("NotWatching", "this replica of the operator does not watch the runs yet: ask again in some seconds")
        if not self.watch_requests.established.is_set():
            raise not_yet
        try:
            return self._ask(partial(self._run_body, Key("run", namespace, name)), seconds)
        except TimeoutError:
            raise not_yet from None

    def event_received(self, resource: str, event_type: str | None) -> None:
        """A watch delivered an object of this resource. An event without a type is part of a list."""
        self.observer.event_received(resource)
        if event_type is None:
            self._enqueue(Trigger.OBJECTS_LISTED, Subject())

    def run_changed(self, body: Body) -> None:
        """A run was listed, created or changed; the operator's own status writes are ignored."""
        if self.runs.is_changed_by_others(body):
            name = namespaced_name(body)
            self._enqueue(Trigger.RUN_CHANGED, Subject(name.namespace, run=name.name))

    def run_deleted(self, body: Body) -> None:
        """The run's object is gone."""
        name = namespaced_name(body)
        self.run_queue.remove(Key("run", *name))
        self._active.remove(body["metadata"]["uid"])
        self.runs.forget(body)
        self._enqueue(Trigger.RUN_DELETED, Subject(name.namespace))

    def site_changed(self, body: Body) -> None:
        """A site was listed, created or changed."""
        if self._site_changes.matters(body):
            name = namespaced_name(body)
            self._enqueue(Trigger.SITE_CHANGED, Subject(name.namespace, site=name.name))

    def site_deleted(self, name: NamespacedName) -> None:
        """The site's object is gone."""
        self.site_queue.remove(Key("site", *name))
        self._site_changes.remove(name)
        self.sites.forget(*name)
        self._enqueue(Trigger.SITE_DELETED, Subject(name.namespace))

    def job_changed(self, job: KubeJob, *, is_gone: bool = False) -> None:
        """A Job was listed, created, changed or deleted."""
        subject = Subject(job.namespace, run=job.run, site=job.job.site)
        if job_matters(job, is_gone=is_gone):
            self._enqueue(Trigger.JOB_CHANGED, subject)
        if self._job_changes.lost_readiness(job, is_gone=is_gone):
            self._enqueue(Trigger.JOB_UNREADY, subject)
        if is_gone or not job.is_active:
            self._enqueue(Trigger.JOB_SLOT_FREED, subject)

    def node_changed(self, node: Node) -> None:
        """A node was listed, created or changed."""
        if self._node_changes.matters(node):
            self._enqueue(Trigger.NODE_CHANGED, Subject())

    def node_deleted(self, node: Node) -> None:
        """A node is gone."""
        self._node_changes.remove(node)
        self._enqueue(Trigger.NODE_CHANGED, Subject())

    def worker_ended(self, uid: str) -> None:
        """A process of the operator that planned or aggregated for this run ended, or a thread that wrote its trackers. From any thread."""
        self._loop.call_soon_threadsafe(self._worker_ended, uid)

    def run_reconciled(self, run: Run, observed: Observed) -> None:
        """What a reconcile observed. From any thread."""
        self._loop.call_soon_threadsafe(self._run_reconciled, run, observed)

    async def _take_over(self) -> None:
        """Become the leader, once everything is watched, and have everything reconciled."""
        leading = asyncio.Event()
        await self.watch_requests.established.wait()
        self.elector.start(
            on_leading=partial(self._loop.call_soon_threadsafe, leading.set),
            on_regained=partial(self._loop.call_soon_threadsafe, self._regained),
        )
        await leading.wait()
        await self._catch_up()
        self._is_reconciling = True
        for key in (*self._cache.run_keys(None), *self._cache.site_keys(None)):
            self._queue_of(key).enqueue(key)

    def _regained(self) -> None:
        """The Lease is held again after a time in which nothing could be changed; what was retried meanwhile is retried once more."""
        self._queues.create_task(self._catch_up_again())

    async def _catch_up_again(self) -> None:
        await self._catch_up()
        self.elector.leadership.caught_up()

    async def _catch_up(self) -> None:
        """Wait until the cache has every object that exists: the last leader may have made a Job that the watch has not told of yet."""
        has_caught_up = False
        while not has_caught_up:
            try:
                has_caught_up = not await self._drifted()
            except TransientError as error:
                _LOG.warning("this replica leads and cannot list what there is: %s", error)
            if not has_caught_up:
                await asyncio.sleep(_CATCH_UP_SECONDS)

    def _worker_ended(self, uid: str) -> None:
        key = self._active.key_of(uid)
        if key is not None:
            self._enqueue(Trigger.WORKER_ENDED, Subject(key.namespace, run=key.name))

    def _run_reconciled(self, run: Run, observed: Observed) -> None:
        meta, ended = run.resource.metadata, is_over(run.resource)
        key = Key("run", meta.namespace, meta.name)
        if self._active.update(meta.uid, key, is_over=ended):
            sites = tuple(site.name for site in run.sites)
            self._enqueue(Trigger.RUN_FINISHED if ended else Trigger.RUN_STARTED, Subject(meta.namespace, sites=sites))
        for site in observed.busy:
            self._waiting.add(meta.namespace, site, key)
        for site in self.sites.record_measurements(run, observed):
            self._enqueue(Trigger.SITE_MEASURED, Subject(meta.namespace, site=site))

    def _enqueue(self, trigger: Trigger, subject: Subject) -> None:
        waiting = self._waiting.pop(subject.namespace, subject.site) if trigger is Trigger.JOB_SLOT_FREED else ()
        for scope, after, reset_backoff in TABLE[trigger]:
            if scope is Scope.CACHE or self._is_reconciling:
                for key in keys(scope, subject, self._cache, waiting):
                    self._queue_of(key).enqueue(key, after=after, reset_backoff=reset_backoff)

    def _queue_of(self, key: Key) -> WorkQueue[Key]:
        return {"run": self.run_queue, "site": self.site_queue, "cache": self.cache_queue}[key.kind]

    def _reconciled(self, key: Key, result: str, seconds: float) -> None:
        self.observer.reconciled(key.kind, result, seconds)

    async def _fleet(self) -> Fleet:
        return fleet_of(self._cache)

    async def _run_body(self, key: Key) -> Body | None:
        return self._cache.run_body(key)

    def _ask(self, question: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
        """What the event loop, on which kopf changes the cache, answers to another thread.

        Raises:
            TimeoutError: it does not run, or does not answer in time.
        """
        loop: asyncio.AbstractEventLoop | None = getattr(self, "_loop", None)
        if loop is None or loop.is_closed():
            raise TimeoutError
        taken = asyncio.run_coroutine_threadsafe(question(), loop)
        try:
            return taken.result(seconds)
        except (TimeoutError, CancelledError):
            taken.cancel()
            raise TimeoutError from None

    async def _reconcile_run(self, key: Key, failures: int) -> float | None:
        view = self._cache.run_view(key)
        if view is None:
            return None
        logs.bind(**logs.run_fields(view.body))
        return await self._in_thread(lambda: self.runs.reconcile(view, failures))

    async def _reconcile_site(self, key: Key, _: int) -> float | None:
        view = self._cache.site_view(key)
        if view is None:
            return None
        logs.bind(namespace=key.namespace, site=key.name)
        await self._in_thread(lambda: self.sites.reconcile(view))
        return None

    async def _in_thread(self, reconcile: Callable[[], Result]) -> Result:
        """The result of a reconcile. Its lines in the log share an id, with that of the queue if it fails."""
        logs.bind(reconcile=secrets.token_hex(_ID_BYTES))
        return await self._loop.run_in_executor(self._pool, contextvars.copy_context().run, reconcile)

    async def _check_cache(self, _key: Key, _failures: int) -> float:
        drifted = await self._drifted()
        names = self._drift.check(drifted)
        if names:
            _LOG.error("the cache differs from the API server for %.0f s: %s", _RECHECK_SECONDS, ", ".join(names[:_LOGGED_NAMES]))
            self.diverged.set()
        return self.runs.cluster.clock() + (_RECHECK_SECONDS if drifted else _CACHE_CHECK_SECONDS)

    async def _drifted(self) -> NamesByUid:
        """In what the cache differs from the API server now."""
        before = self._cache.names()
        live = await self._in_thread(self.live_objects.list)
        return drift(before, live, self._cache.names())
