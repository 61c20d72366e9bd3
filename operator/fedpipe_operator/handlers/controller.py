"""The operator at work: what the watch knows goes into a view, a turn is made of it in a thread, and turns wake one another."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from fedpipe_operator.api.edgesite import MeasuredCapacity
from fedpipe_operator.cluster import KubeJob, RunReconciler, SiteReconciler
from fedpipe_operator.cluster.bodies import NamespacedName, namespaced_name
from fedpipe_operator.cluster.cache_check import CacheCheck, Names, drift
from fedpipe_operator.handlers.cache import Cache, Key
from fedpipe_operator.handlers.workqueue import WorkQueue
from fedpipe_operator.rounds import Observed, Run, is_over
from fedpipe_operator.rounds.round_plan import completed_profile
from fedpipe_operator.sites.capacity import Node

Body = Mapping[str, Any]

_LOG: Final = logging.getLogger(__name__)
_TOLD: Final = 10
_MAX_CONCURRENT_SITES: Final = 2
_SETTLE_SECONDS: Final = 3.0
"""Where many objects change together, one turn for all of it."""
_ROLL: Final = "the roll call"
_ROLL_SECONDS: Final = 600.0
_ROLL_AFTER_LIST_SECONDS: Final = 5.0
_ROLL_AGAIN_SECONDS: Final = 20.0
"""News that is longer on its way than this is taken for lost."""


@dataclass
class Controller:
    """The turns of all runs and sites. `wake…` and `forget…` are for the event loop's thread."""

    runs: RunReconciler
    sites: SiteReconciler
    roll: CacheCheck
    threads: int
    diverged: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once memory and API server did not agree on the same object at two roll calls: then only a new process knows better."""
    queue: WorkQueue[Key] = field(init=False)
    """The runs."""
    site_queue: WorkQueue[Key] = field(init=False)
    """The sites: news of a thousand of them, which change figures alone, must not keep a run waiting."""
    roll_queue: WorkQueue[str] = field(init=False)
    """Its one key is the next roll call."""
    _cache: Cache = field(init=False)
    _pool: ThreadPoolExecutor = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _suspects: Names = field(default_factory=dict)
    _uids: dict[str, Key] = field(default_factory=dict)
    """The key of each run that is under way, by its uid."""
    _nodes: dict[str, Node] = field(default_factory=dict)
    _sites: dict[NamespacedName, tuple[object, ...]] = field(default_factory=dict)
    """What would be news of each site, as it was last seen."""
    _held: dict[tuple[str, str], set[Key]] = field(default_factory=dict)
    """Runs that wait for a place at a site."""

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self._turn, self.runs.cluster.clock, self.threads)
        self.site_queue = WorkQueue(self._turn, self.runs.cluster.clock, _MAX_CONCURRENT_SITES)
        self.roll_queue = WorkQueue(self._roll_turn, self.runs.cluster.clock, 1)
        self._pool = ThreadPoolExecutor(self.threads + _MAX_CONCURRENT_SITES + 1, "turn")

    async def run(self, cache: Cache) -> None:
        """Make turns until cancelled."""
        self._cache, self._loop = cache, asyncio.get_running_loop()
        self.runs.on_look, self.runs.cluster.workers.on_end = self.note_look, self.wake_run_of
        try:
            async with asyncio.TaskGroup() as queues:
                queues.create_task(self.queue.run())
                queues.create_task(self.site_queue.run())
                queues.create_task(self.roll_queue.run())
                self.roll_queue.wake(_ROLL, after=_ROLL_SECONDS)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.runs.cluster.workers.close()

    def note_list(self, event: str | None) -> None:
        """An event of no type is of a list: the first one, or that of a watch which was away for too long and may have missed an end."""
        if event is None:
            self.roll_queue.wake(_ROLL, after=_ROLL_AFTER_LIST_SECONDS)

    def see_run(self, body: Body) -> None:
        """A run was listed, created or changed; that we wrote its status is no news."""
        if self.runs.is_news(body):
            self.queue.wake(Key("run", *namespaced_name(body)))

    def see_job(self, job: KubeJob, *, is_gone: bool = False) -> None:
        """A Job was seen: its end is news for its run, and for those that wait for its place."""
        if is_news(job, is_gone=is_gone):
            self.queue.wake(Key("run", job.namespace, job.run))
        if is_gone or not job.is_active:
            for key in self._held.pop((job.namespace, job.job.site), ()):
                self.queue.wake(key)

    def see_node(self, node: Node) -> None:
        """A node was seen: news for all sites if it is another than before (its heartbeats are none)."""
        if self._nodes.get(node.name) != node:
            self._nodes[node.name] = node
            self.wake_sites()

    def forget_node(self, node: Node) -> None:
        """A node is gone."""
        self._nodes.pop(node.name, None)
        self.wake_sites()

    def wake_sites(self, namespace: str | None = None) -> None:
        """All sites, or those of a namespace, may have a new status."""
        for of, name in self._cache.site_bodies:
            if namespace in (None, of):
                self.site_queue.wake(Key("site", of, name), after=_SETTLE_SECONDS)

    def forget_run(self, body: Body) -> None:
        """The run's object is gone."""
        meta = body["metadata"]
        self.queue.forget(Key("run", meta["namespace"], meta["name"]))
        self._uids.pop(meta["uid"], None)
        self.runs.forget(body)
        self.wake_sites(meta["namespace"])

    def see_site(self, body: Body) -> None:
        """A site was listed, created or changed: news for itself and for the runs that may take it, unless only its status is another."""
        place, meta = namespaced_name(body), body["metadata"]
        observed = (meta["uid"], meta.get("generation"), dict(meta.get("labels", {})))
        if self._sites.get(place) != observed:
            self._sites[place] = observed
            self.site_queue.wake(Key("site", *place))
            self._wake_runs(place.namespace)

    def forget_site(self, place: NamespacedName) -> None:
        """The site's object is gone."""
        self.site_queue.forget(Key("site", *place))
        self._sites.pop(place, None)
        self.sites.forget(*place)
        self._wake_runs(place.namespace)

    def wake_run_of(self, uid: str) -> None:
        """A process of ours ended that worked for this run. From any thread."""
        self._loop.call_soon_threadsafe(self._wake_uid, uid)

    def note_look(self, run: Run, observed: Observed) -> None:
        """What a turn saw. From any thread."""
        self._loop.call_soon_threadsafe(self._note_look, run, observed)

    async def _turn(self, key: Key) -> float | None:
        if key.kind == "site":
            site_view = self._cache.site_view(key)
            return None if site_view is None else await self._loop.run_in_executor(self._pool, self.sites.turn, site_view)
        run_view = self._cache.run_view(key)
        return None if run_view is None else await self._loop.run_in_executor(self._pool, self.runs.turn, run_view)

    async def _roll_turn(self, _: str) -> float:
        before = self._cache.names()
        called = await self._loop.run_in_executor(self._pool, self.roll.call)
        found = drift(before, called, self._cache.names())
        lost = sorted(name for uid, name in found.items() if uid in self._suspects)
        self._suspects = found
        if lost:
            _LOG.error("what is remembered is not what the API server has, for %.0f s: %s", _ROLL_AGAIN_SECONDS, ", ".join(lost[:_TOLD]))
            self.diverged.set()
        return self.runs.cluster.clock() + (_ROLL_AGAIN_SECONDS if found else _ROLL_SECONDS)

    def _wake_runs(self, namespace: str) -> None:
        for place in self._cache.run_bodies:
            if place[0] == namespace:
                self.queue.wake(Key("run", *place), after=_SETTLE_SECONDS)

    def _wake_uid(self, uid: str) -> None:
        if uid in self._uids:
            self.queue.wake(self._uids[uid])

    def _note_look(self, run: Run, observed: Observed) -> None:
        meta = run.resource.metadata
        key = Key("run", meta.namespace, meta.name)
        ended = is_over(run.resource)
        if ended and self._uids.pop(meta.uid, None) is not None:
            self._wake(run)
        if not ended and meta.uid not in self._uids:
            self._uids[meta.uid] = key
            self._wake(run)
        for site in observed.busy:
            self._held.setdefault((meta.namespace, site), set()).add(key)
        for site, found in _measured(run, observed).items():
            if self.sites.measured(meta.namespace, site, found):
                self.site_queue.wake(Key("site", meta.namespace, site))

    def _wake(self, run: Run) -> None:
        """The run's sites have a run more, or less."""
        for site in run.sites:
            self.site_queue.wake(Key("site", site.metadata.namespace, site.name), after=_SETTLE_SECONDS)


def is_news(job: KubeJob, *, is_gone: bool) -> bool:
    """Whether a turn of its run has something to do about a Job: it has ended, or is held up, or goes before its end.

    What it does on the way (a pod that starts, or is ready) changes nothing, and is seen by the next turn anyway.
    """
    goes = is_gone or job.is_deleting
    return goes or job.is_suspended if job.is_active else not goes


def _measured(run: Run, observed: Observed) -> dict[str, MeasuredCapacity]:
    """What the run's profiles say of its sites."""
    found = {}
    for site, attempts in observed.profiles.items():
        profile = completed_profile(attempts)
        if profile is not None:
            found[site] = MeasuredCapacity(
                run=run.name,
                device=profile.measured.device,
                memory=profile.memory_bytes,
                train_samples=profile.train_samples,
                validation_samples=profile.validation_samples,
            )
    return found
