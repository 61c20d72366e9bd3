"""The controller: events in, reconciles out. The reconcilers are stand-ins that record what they were given."""

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cached_objects import NODE, a_body, a_cache, a_job, in_wards, named
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run, a_site
from trainer_results import a_profile

from fedpipe_operator import conversion, logs
from fedpipe_operator.api import Condition, ConditionStatus, FineTuneStatus
from fedpipe_operator.cluster import RunView, SiteReconciler, SiteView
from fedpipe_operator.cluster.leadership import Leadership
from fedpipe_operator.cluster.lease import Seen
from fedpipe_operator.errors import TransientError
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.handlers.enqueue import CACHE, TABLE
from fedpipe_operator.handlers.fleet import Fleet
from fedpipe_operator.handlers.health import HUNG_SECONDS, liveness_problems
from fedpipe_operator.handlers.watch_requests import WatchRequests
from fedpipe_operator.observer import Observer
from fedpipe_operator.rounds import Observed, Run
from fedpipe_operator.tracking.trackers import Trackers
from fedpipe_trainer.contract import Data, Model, ProfileTask, RunRef


@dataclass
class StandInRuns:
    """Records which runs were reconciled, after how many failures, and which were forgotten."""

    cluster: Any
    reconciled: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    trackers: Trackers = field(default_factory=Trackers)
    on_reconciled: Callable[..., None] = lambda _run, _observed: None

    def is_changed_by_others(self, body: dict[str, Any]) -> bool:
        return not body["status"].get("ours")

    def reconcile(self, view: RunView, failures: int) -> None:
        self.reconciled.append(view.body["metadata"]["name"])
        self.failures.append(failures)

    def forget(self, body: dict[str, Any]) -> None:
        self.forgotten.append(body["metadata"]["name"])


@dataclass
class StandInSites(SiteReconciler):
    """Records which sites were reconciled."""

    reconciled: list[str] = field(default_factory=list)

    def reconcile(self, view: SiteView) -> None:
        self.reconciled.append(view.body["metadata"]["name"])


@dataclass
class StandInWorkers:
    on_end: Callable[[str], None] = lambda _uid: None

    def close(self) -> None:
        """There is nothing to end."""


@dataclass
class StandInCluster:
    clock: Callable[[], float]
    workers: StandInWorkers = field(default_factory=StandInWorkers)


@dataclass
class StandInLiveObjects:
    """What the API server has, one list after another; the last one stays."""

    lists: list[dict[str, str]] = field(default_factory=lambda: [{}])
    failures: int = 0
    """Lists that fail, before the first."""

    def list(self) -> dict[str, str]:
        if self.failures:
            self.failures -= 1
            raise TransientError("ApiUnavailable", "try again")
        return self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]


KNOWN = a_cache(
    run_bodies={("wards", "mine"): [a_body("mine")], ("wards", "other"): [a_body("other")]},
    site_bodies={("wards", "north"): [a_body("north")], ("labs", "south"): [a_body("south")]},
)


NAMES = {"uid-mine": "mine", "uid-other": "other", "uid-north": "north", "uid-south": "south"}
"""Of what is known, by uid."""


@dataclass
class StandInElector:
    """Leads as soon as it may, or when it is told to."""

    leads_at_once: bool = True
    leadership: Leadership = field(default_factory=Leadership)
    seen: Seen | None = None
    problem: str = ""
    on_leading: Callable[[], object] | None = None
    on_regained: Callable[[], object] | None = None

    def start(self, on_leading: Callable[[], object], on_regained: Callable[[], object]) -> None:
        self.on_leading, self.on_regained = on_leading, on_regained
        if self.leads_at_once:
            self.lead()

    def lead(self) -> None:
        assert self.on_leading is not None, "it does not stand for leadership"
        self.leadership.extend(self.leadership.clock() + 1000)
        self.on_leading()

    def has_ended(self) -> bool:
        return False


def a_controller(clock: Callable[[], float], *lists: dict[str, str], elector: StandInElector | None = None) -> Controller:
    runs, sites = StandInRuns(StandInCluster(clock)), StandInSites(None, clock)  # type: ignore[arg-type]
    watches = WatchRequests(["jobs"])
    live, limit = StandInLiveObjects(list(lists) or [NAMES]), SETTINGS.max_concurrent_reconciles
    return Controller(runs, sites, live, elector or StandInElector(), watches, limit)  # type: ignore[arg-type]


async def started(controller: Controller) -> "asyncio.Task[None]":
    """Run the controller until it reconciles: everything that it knew when it took over has been reconciled, and is forgotten here."""
    running = asyncio.create_task(controller.run(KNOWN))
    controller.watch_requests.granted("jobs")
    while not controller._is_reconciling:  # noqa: ASYNC110 -- nothing else tells, as only a test wants it
        await asyncio.sleep(0)
    await idle(controller)
    for one in (controller.runs.reconciled, controller.runs.failures, controller.sites.reconciled):  # type: ignore[attr-defined]
        one.clear()
    return running


async def idle(controller: Controller) -> None:
    async with asyncio.timeout(20):
        while controller.run_queue._entries or controller.site_queue._entries:  # noqa: ASYNC110 -- likewise
            await asyncio.sleep(0.01)


def played(scenario: Callable[[Controller], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> Controller:
    """The controller after a scenario, once every key that it enqueued was reconciled."""
    sooner = {trigger: tuple(one._replace(after=min(one.after, 0.05)) for one in entries) for trigger, entries in TABLE.items()}
    monkeypatch.setattr("fedpipe_operator.handlers.controller.TABLE", sooner)

    async def play() -> Controller:
        controller = a_controller(asyncio.get_running_loop().time)
        running = await started(controller)
        await scenario(controller)
        await idle(controller)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return controller

    return asyncio.run(play())


def test_the_lines_that_a_reconcile_writes_in_its_thread_share_an_id_and_are_about_its_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    formatter, lines = logs.JsonFormatter(), []

    def write(view: RunView | SiteView) -> None:
        for message in ("one", "two"):
            record = logging.LogRecord("fedpipe_operator.test", logging.INFO, "", 0, message, (), None)
            lines.append(json.loads(formatter.format(record)) | {"of": view.body["metadata"]["name"]})

    monkeypatch.setattr(StandInRuns, "reconcile", lambda _self, view, _failures: write(view))
    monkeypatch.setattr(StandInSites, "reconcile", lambda _self, view: write(view))

    async def scenario(controller: Controller) -> None:
        controller.run_changed(a_body("mine"))
        controller.run_changed(a_body("other"))
        controller.site_changed(a_body("north"))

    played(scenario, monkeypatch)
    by_id = {one: [line for line in lines if line["reconcile"] == one] for one in {line["reconcile"] for line in lines}}

    assert all([line["message"] for line in found] == ["one", "two"] for found in by_id.values())
    assert all(len({line["of"] for line in found}) == 1 for found in by_id.values())
    assert {(line["of"], line.get("run"), line.get("site"), line["namespace"]) for line in lines} == {
        ("mine", "mine", None, "wards"),
        ("other", "other", None, "wards"),
        ("north", None, "north", "wards"),
        ("south", None, "south", "labs"),  # a replica that begins to lead reconciles all that it knows
    }


def reconciled(controller: Controller) -> tuple[list[str], list[str]]:
    """The runs and the sites that were reconciled, each in order of name."""
    return sorted(controller.runs.reconciled), sorted(controller.sites.reconciled)  # type: ignore[attr-defined]


def test_a_job_that_ends_has_its_run_reconciled_and_one_that_starts_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.job_changed(a_job("mine", "north", ready=1))
        controller.job_changed(a_job("other", "north", ended="Complete"))

    controller = played(scenario, monkeypatch)

    assert reconciled(controller) == (["other"], [])
    assert controller.runs.failures == [0]  # type: ignore[attr-defined]


def test_a_job_whose_pod_is_no_longer_ready_has_its_run_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        for run, last in (("mine", {}), ("other", {"ready": 1})):
            controller.job_changed(a_job(run, "north", ready=1))
            controller.job_changed(a_job(run, "north", **last))

    assert reconciled(played(scenario, monkeypatch)) == (["mine"], [])


def test_a_run_is_reconciled_after_others_changes_and_not_after_the_operators_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.run_changed(a_body("mine", status={"ours": True}))
        controller.run_changed(a_body("other"))

    assert reconciled(played(scenario, monkeypatch)) == (["other"], [])


def test_the_end_of_a_job_has_the_runs_reconciled_that_wait_for_its_slot_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run = named(a_run([in_wards(a_site("north"))]), "other")

    async def scenario(controller: Controller) -> None:
        controller._run_reconciled(run, Observed(busy={"north": "a free job slot"}))
        controller.job_changed(a_job("mine", "north", ready=1))
        controller.job_changed(a_job("mine", "north", ended="Complete"))

    assert reconciled(played(scenario, monkeypatch)) == (["mine", "other"], ["north"])


def test_a_node_that_changes_has_every_site_reconciled_and_its_heartbeat_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.node_changed(NODE)
        await asyncio.sleep(0.2)
        controller.node_changed(NODE)

    assert reconciled(played(scenario, monkeypatch)) == ([], ["north", "south"])


def test_a_site_that_changes_has_the_runs_of_its_namespace_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.site_changed(a_body("north"))

    assert reconciled(played(scenario, monkeypatch)) == (["mine", "other"], ["north"])


def test_a_site_whose_status_changes_has_nothing_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.site_changed(a_body("north"))
        await asyncio.sleep(0.2)
        controller.site_changed(a_body("north", status={"activeRuns": 1}))

    assert reconciled(played(scenario, monkeypatch)) == (["mine", "other"], ["north"])


def test_a_run_that_is_deleted_is_forgotten_and_its_sites_are_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.run_deleted(a_body("mine"))

    controller = played(scenario, monkeypatch)

    assert controller.runs.forgotten == ["mine"]  # type: ignore[attr-defined]
    assert reconciled(controller) == ([], ["north"])


def test_the_sites_of_a_run_are_reconciled_when_it_starts_and_when_it_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = FineTuneStatus(conditions=(Condition(type="Complete", status=ConditionStatus.TRUE, reason="RoundsCompleted"),))
    started, finished = (named(a_run([in_wards(a_site("north"))]), "mine", **status) for status in ({}, {"status": ended}))
    counts = []

    async def scenario(controller: Controller) -> None:
        for run in (started, started, finished, finished):
            controller.run_reconciled(run, Observed())
            await asyncio.sleep(0.2)
            counts.append(len(controller.sites.reconciled))  # type: ignore[attr-defined]

    played(scenario, monkeypatch)

    assert counts == [1, 1, 2, 2]


def profiled(run: Run) -> Observed:
    task = ProfileTask(
        run=RunRef(namespace="wards", name="mine", uid="uid-mine"),
        site="north",
        model=Model(source="file:///toy"),
        result="file:///m",
        objective=conversion.objective(run.spec.task),
        data=Data(train="/t", validation="/v"),
        bits=(16,),
    )
    return Observed(profiles={"north": {0: a_profile(task)}})


def test_what_a_profile_measured_has_its_site_reconciled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = named(a_run([in_wards(a_site("north"))]), "mine")

    async def scenario(controller: Controller) -> None:
        for _ in range(2):
            controller.run_reconciled(run, profiled(run))
            await asyncio.sleep(0.2)

    controller = played(scenario, monkeypatch)

    assert controller.sites._measured["wards", "north"].train_samples == 100
    assert reconciled(controller) == ([], ["north"])


def test_trackers_that_are_written_have_their_run_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    run = named(a_run([]), "mine")

    async def scenario(controller: Controller) -> None:
        controller._run_reconciled(run, Observed())
        controller.runs.trackers.on_end("uid-mine")
        await asyncio.sleep(0)

    assert reconciled(played(scenario, monkeypatch)) == (["mine"], [])


def test_an_aggregation_that_ends_has_its_run_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    run = named(a_run([]), "mine")

    async def scenario(controller: Controller) -> None:
        controller._run_reconciled(run, Observed())
        controller.runs.cluster.workers.on_end("uid-mine")
        controller.runs.cluster.workers.on_end("uid-unknown")
        await asyncio.sleep(0)

    assert reconciled(played(scenario, monkeypatch)) == (["mine"], [])


LIVE = NAMES
WITHOUT_MINE = {uid: name for uid, name in LIVE.items() if name != "mine"}


def has_diverged(*lists: dict[str, str]) -> bool:
    """Whether the controller gives up its cache after these cache checks."""

    async def play() -> bool:
        controller = a_controller(lambda: 0.0, *lists, elector=StandInElector(leads_at_once=False))
        running = asyncio.create_task(controller.run(KNOWN))
        await asyncio.sleep(0)
        for _ in lists:
            await controller._check_cache(CACHE, 0)
        running.cancel()
        return controller.diverged.is_set()

    return asyncio.run(play())


def test_a_cache_that_differs_from_the_api_server_in_two_checks_is_given_up() -> None:
    assert not has_diverged(WITHOUT_MINE)
    assert has_diverged(WITHOUT_MINE, WITHOUT_MINE)
    assert has_diverged(LIVE | {"uid-west": "west"}, LIVE | {"uid-west": "west"})


def test_a_cache_that_catches_up_is_kept() -> None:
    assert not has_diverged(LIVE, LIVE)
    assert not has_diverged(WITHOUT_MINE, LIVE)


def test_after_a_list_the_cache_is_checked_within_seconds_and_other_events_do_not_check_it() -> None:
    controller = a_controller(lambda: 100.0)
    controller._cache, controller._is_reconciling = KNOWN, True

    controller.event_received("jobs", "MODIFIED")
    assert controller.cache_queue._entries == {}

    controller.event_received("jobs", None)
    assert [entry.due for entry in controller.cache_queue._entries.values()] == [105.0]


def playing(scenario: Callable[[Controller, StandInElector], Awaitable[None]], *lists: dict[str, str]) -> Controller:
    """The controller of a replica that leads only when the scenario has its elector lead."""

    async def play() -> Controller:
        elector = StandInElector(leads_at_once=False)
        controller = a_controller(asyncio.get_running_loop().time, *lists, elector=elector)
        running = asyncio.create_task(controller.run(KNOWN))
        async with asyncio.timeout(20):
            await scenario(controller, elector)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return controller

    return asyncio.run(play())


async def until_reconciling(controller: Controller) -> None:
    while not controller._is_reconciling:  # noqa: ASYNC110 -- nothing else tells, as only a test wants it
        await asyncio.sleep(0.01)
    await idle(controller)


def test_a_replica_that_stands_by_reconciles_nothing_and_all_of_it_when_it_takes_over() -> None:
    before = []

    async def scenario(controller: Controller, elector: StandInElector) -> None:
        controller.watch_requests.granted("jobs")
        await asyncio.sleep(0)
        controller.run_changed(a_body("mine"))
        controller.job_changed(a_job("mine", "north", ended="Complete"))
        await asyncio.sleep(0.2)
        before.append((reconciled(controller), dict(controller.run_queue._entries), controller.is_leader()))
        elector.lead()
        await until_reconciling(controller)

    controller = playing(scenario)

    assert before == [(([], []), {}, False)]
    assert reconciled(controller) == (["mine", "other"], ["north", "south"])
    assert controller.is_leader()


def test_a_replica_stands_for_leadership_once_it_watches_everything() -> None:
    async def scenario(controller: Controller, elector: StandInElector) -> None:
        await asyncio.sleep(0.05)
        assert elector.on_leading is None
        controller.watch_requests.granted("jobs")
        await asyncio.sleep(0.05)
        assert elector.on_leading is not None
        assert controller.vitals().is_watching

    playing(scenario)


def test_a_replica_that_takes_over_first_sees_every_job_that_the_last_leader_made() -> None:
    made = NAMES | {"uid-job": "a job that the watch has not told of"}
    missing = []

    async def scenario(controller: Controller, elector: StandInElector) -> None:
        controller.live_objects.failures = 1  # type: ignore[attr-defined]
        controller.watch_requests.granted("jobs")
        await asyncio.sleep(0)
        elector.lead()
        await asyncio.sleep(0.3)
        missing.append((controller._is_reconciling, reconciled(controller)))
        controller.live_objects.lists.append(NAMES)  # type: ignore[attr-defined]
        await until_reconciling(controller)

    controller = playing(scenario, made)

    assert missing == [(False, ([], []))]
    assert reconciled(controller) == (["mine", "other"], ["north", "south"])


def test_a_replica_that_regains_the_lease_changes_nothing_until_its_cache_has_what_it_made_before() -> None:
    made = NAMES | {"uid-job": "a job that the watch has not told of"}
    acted = []

    def acts(elector: StandInElector) -> bool:
        try:
            with elector.leadership.acting():
                return True
        except TransientError:
            return False

    async def scenario(controller: Controller, elector: StandInElector) -> None:
        now = [100.0]
        elector.leadership.clock = lambda: now[0]
        controller.watch_requests.granted("jobs")
        await asyncio.sleep(0)
        elector.lead()
        await until_reconciling(controller)
        acted.append(acts(elector))
        controller.live_objects.lists[:] = [made]  # type: ignore[attr-defined]
        now[0] += 2000
        assert elector.leadership.extend(now[0] + 1000)
        assert elector.on_regained is not None
        elector.on_regained()
        await asyncio.sleep(0.5)
        acted.append(acts(elector))
        controller.live_objects.lists.append(NAMES)  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            while not acts(elector):  # noqa: ASYNC110 -- nothing else tells, as only a test wants it
                await asyncio.sleep(0.01)

    playing(scenario)

    assert acted == [True, False]


def test_a_reconcile_that_hangs_is_seen_by_the_liveness_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    hung, problems, timer = threading.Event(), [], [5000.0]

    def hang(_view: RunView, _failures: int) -> None:
        hung.wait(20)

    async def scenario(controller: Controller) -> None:
        monkeypatch.setattr(controller.runs, "reconcile", hang)
        controller.run_queue.timer = lambda: timer[0]
        controller.run_changed(a_body("mine"))
        while not controller.run_queue.in_progress():  # noqa: ASYNC110 -- nothing else tells, as only a test wants it
            await asyncio.sleep(0.01)
        for seconds in (HUNG_SECONDS, HUNG_SECONDS + 1):
            timer[0] = 5000.0 + seconds
            problems.append(liveness_problems(controller.vitals()))
        hung.set()

    played(scenario, monkeypatch)

    assert problems == [[], ["the reconcile of run wards/mine has taken 1801 s: it hangs"]]


def test_the_probes_are_told_that_the_queues_have_ended() -> None:
    async def play() -> Controller:
        controller = a_controller(asyncio.get_running_loop().time)
        running = await started(controller)
        assert not controller.vitals().queues_ended
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return controller

    assert liveness_problems(asyncio.run(play()).vitals()) == ["the work queues have ended"]


def test_before_the_watches_begin_a_controller_waits_for_the_api_server() -> None:
    assert not a_controller(lambda: 0.0).vitals().is_watching


def test_another_thread_gets_the_objects_as_the_event_loop_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Fleet | None] = []

    async def scenario(controller: Controller) -> None:
        found.append(await asyncio.to_thread(controller.fleet, 10.0))

    played(scenario, monkeypatch)

    assert found[0] is not None
    assert sorted(body["metadata"]["name"] for body in found[0].runs) == ["mine", "other"]


def test_a_thread_that_waits_for_a_hanging_event_loop_goes_without_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Fleet | None] = []

    async def scenario(controller: Controller) -> None:
        waiting = threading.Thread(target=lambda: found.append(controller.fleet(0.05)))
        waiting.start()
        waiting.join()  # in the event loop, which hangs meanwhile

    played(scenario, monkeypatch)

    assert found == [None]


def test_another_thread_gets_a_run_as_it_is_watched_whether_or_not_this_replica_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    async def scenario(controller: Controller) -> None:
        controller.elector.leadership.give_up()
        found.extend([await asyncio.to_thread(controller.run_body, "wards", name, 10.0) for name in ("mine", "none")])

    played(scenario, monkeypatch)

    assert (found[0]["metadata"]["name"], found[1]) == ("mine", None)


def test_before_the_runs_are_watched_nobody_is_told_that_there_is_none() -> None:
    with pytest.raises(TransientError, match="NotWatching"):
        a_controller(lambda: 0.0).run_body("wards", "mine", 0.0)


def test_before_the_controller_runs_there_are_no_objects_and_queues_of_no_keys() -> None:
    controller = a_controller(lambda: 100.0)

    assert controller.fleet(0.0) is None
    assert controller.queue_loads() == dict.fromkeys(("run", "site", "cache"), (0, 0.0))


def test_the_observer_hears_of_events_and_of_the_ends_of_reconciles(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Observer):
        def __init__(self) -> None:
            self.events: list[str] = []
            self.ends: list[tuple[str, str]] = []

        def event_received(self, resource: str) -> None:
            self.events.append(resource)

        def reconciled(self, kind: str, result: str, seconds: float) -> None:
            del seconds
            self.ends.append((kind, result))

    told = Told()

    async def scenario(controller: Controller) -> None:
        controller.observer = told
        controller.event_received("jobs", "MODIFIED")
        controller.run_changed(a_body("mine"))

    played(scenario, monkeypatch)

    assert told.events == ["jobs"]
    assert told.ends == [("run", "success")]
