"""Views out of what the watch knows, and who wakes whom. Turns are stand-ins: they note what they were given."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run, a_site
from trainer_results import a_profile

from fedpipe_operator.api import Condition, ConditionStatus, EdgeSite, FineTuneStatus
from fedpipe_operator.backend import Job
from fedpipe_operator.cluster import KubeJob, RunView, SiteView
from fedpipe_operator.cluster.cache_check import drift
from fedpipe_operator.handlers.cache import Cache, Key, RunSummary, labels_of, run_summary
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.rounds import Observed
from fedpipe_operator.sites.capacity import Node
from fedpipe_trainer.contract import Data, Model, ProfileTask, RunRef

NODE = Node("one", {}, {"cpu": 4.0}, takes_pods=True)


def a_body(name: str, *, labels: dict[str, str] | None = None, spec: Any = None, status: Any = None, **meta: str) -> dict[str, Any]:
    whole = {"namespace": "wards", "name": name, "uid": f"uid-{name}", "resourceVersion": "1", "labels": labels or {}} | meta
    return {"metadata": whole, "spec": spec or {}, "status": status or {}}


def a_job(run: str, site: str, **changes: Any) -> KubeJob:
    return KubeJob("wards", run, f"uid-{run}", Job(f"{run}-train-{site}-a0", "train", site), created_at=0.0, **changes)


def in_wards(site: EdgeSite, **labels: str) -> EdgeSite:
    return site.model_copy(update={"metadata": site.metadata.model_copy(update={"namespace": "wards", "labels": labels})})


def cache(**known: Any) -> Cache:
    names = ("run_bodies", "run_summaries", "site_bodies", "sites", "jobs_of_runs", "jobs_at_sites")
    return Cache(**{name: known.get(name, {}) for name in names}, nodes=known.get("nodes"))


def selecting(**labels: str) -> dict[str, Any]:
    return {"sites": {"selector": {"matchLabels": labels}}}


def test_a_runs_view_has_its_own_jobs_and_those_of_others_at_its_sites() -> None:
    mine, others = a_job("mine", "north"), a_job("other", "north")
    north, south = in_wards(a_site("north"), study="triage"), in_wards(a_site("south"), study="another")
    view = cache(
        run_bodies={("wards", "mine"): [a_body("mine", spec=selecting(study="triage"))]},
        sites={("wards", ""): [north, south], ("wards", "study=triage"): [north], ("wards", "study=another"): [south]},
        jobs_of_runs={("wards", "uid-mine"): [mine]},
        jobs_at_sites={("wards", "north"): [mine, others], ("wards", "south"): [others]},
        nodes={None: [NODE]},
    ).run_view(Key("run", "wards", "mine"))

    assert view is not None
    assert view.sites == [north]
    assert view.jobs == {mine.job.name: mine}
    assert view.at_sites == {"north": (mine, others)}
    assert view.nodes == (NODE,)


def test_a_run_without_a_selector_takes_all_sites_of_its_namespace_and_one_with_two_labels_those_with_both() -> None:
    north, south = in_wards(a_site("north"), study="triage", floor="1"), in_wards(a_site("south"), study="triage", floor="2")
    found: dict[tuple[str, str], list[EdgeSite]] = {}
    for site in (north, south):
        for label in labels_of(site.metadata.labels):
            found.setdefault(("wards", label), []).append(site)

    def taken(**labels: str) -> list[str]:
        bodies = {("wards", "mine"): [a_body("mine", spec=selecting(**labels))]}
        view = cache(run_bodies=bodies, sites=found).run_view(Key("run", "wards", "mine"))
        assert view is not None
        return [site.name for site in view.sites]

    assert taken() == ["north", "south"]
    assert taken(study="triage", floor="2") == ["south"]
    assert taken(study="other") == []


def test_a_sites_view_counts_the_runs_that_take_it_and_are_not_over() -> None:
    outlines = [RunSummary({}, is_over=False), RunSummary({"study": "triage"}, is_over=True), RunSummary({"study": "other"}, is_over=False)]
    view = cache(
        site_bodies={("wards", "north"): [a_body("north", labels={"study": "triage"})]}, run_summaries={"wards": outlines}
    ).site_view(Key("site", "wards", "north"))

    assert view is not None
    assert (view.active_runs, view.nodes) == (1, None)


def test_what_is_gone_has_no_view() -> None:
    assert cache().run_view(Key("run", "wards", "mine")) is None
    assert cache().site_view(Key("site", "wards", "north")) is None


@pytest.mark.parametrize(("kind", "over"), [("Succeeded", True), ("Failed", True), ("Progressing", False)])
def test_an_outline_says_what_a_run_selects_and_whether_it_is_over(kind: str, over: bool) -> None:
    body = a_body("mine", spec=selecting(study="triage"), status={"conditions": [{"type": kind, "status": "True"}]})

    assert run_summary(body) == RunSummary({"study": "triage"}, is_over=over)


@dataclass
class StandInRuns:
    """Notes the turns of runs and their forgetting."""

    cluster: Any
    turned: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    on_look: Callable[..., None] = lambda _run, _seen: None

    def is_news(self, body: dict[str, Any]) -> bool:
        return not body["status"].get("ours")

    def turn(self, view: RunView) -> None:
        self.turned.append(view.body["metadata"]["name"])

    def forget(self, body: dict[str, Any]) -> None:
        self.forgotten.append(body["metadata"]["name"])


@dataclass
class StandInSites:
    """Likewise those of sites."""

    turned: list[str] = field(default_factory=list)
    found: dict[tuple[str, str], Any] = field(default_factory=dict)

    def turn(self, view: SiteView) -> None:
        self.turned.append(view.body["metadata"]["name"])

    def measured(self, namespace: str, site: str, found: Any) -> bool:
        is_news = self.found.get((namespace, site)) != found
        self.found[namespace, site] = found
        return is_news

    def forget(self, namespace: str, site: str) -> None:
        self.found.pop((namespace, site), None)


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
class StandInRoll:
    """What the API server has, one call after another; the last for ever."""

    calls: list[dict[str, str]] = field(default_factory=lambda: [{}])

    def call(self) -> dict[str, str]:
        return self.calls.pop(0) if len(self.calls) > 1 else self.calls[0]


KNOWN = cache(
    run_bodies={("wards", "mine"): [a_body("mine")], ("wards", "other"): [a_body("other")]},
    site_bodies={("wards", "north"): [a_body("north")], ("labs", "south"): [a_body("south")]},
)


def played(scenario: Callable[[Controller], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> Controller:
    """The control after a scenario, and after everything that it woke was turned."""
    monkeypatch.setattr("fedpipe_operator.handlers.controller._SETTLE_SECONDS", 0.02)

    async def play() -> Controller:
        clock = asyncio.get_running_loop().time
        controller = Controller(StandInRuns(StandInCluster(clock)), StandInSites(), StandInRoll(), SETTINGS.threads)  # type: ignore[arg-type]
        running = asyncio.create_task(controller.run(KNOWN))
        await asyncio.sleep(0)
        await scenario(controller)
        async with asyncio.timeout(20):
            while controller.queue._entries or controller.site_queue._entries:  # noqa: ASYNC110 -- nothing tells when a queue is empty, as only a test wants it
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return controller

    return asyncio.run(play())


def turned(controller: Controller) -> tuple[list[str], list[str]]:
    """The runs and the sites that were turned, each in order of name."""
    return sorted(controller.runs.turned), sorted(controller.sites.turned)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "is_gone", "is_news"),
    [
        pytest.param({}, False, False, id="was created"),
        pytest.param({"ready": 1}, False, False, id="its pod is at work"),
        pytest.param({"ended": "Complete"}, False, True, id="ended"),
        pytest.param({"given_up": True}, False, True, id="was given up"),
        pytest.param({"is_suspended": True}, False, True, id="a queue holds it"),
        pytest.param({"ready": 1, "is_deleting": True}, False, True, id="goes before its end"),
        pytest.param({"ready": 1}, True, True, id="went before its end"),
        pytest.param({"ended": "Complete", "is_deleting": True}, False, False, id="goes after its end"),
        pytest.param({"ended": "Complete"}, True, False, id="went after its end"),
    ],
)
def test_a_job_wakes_its_run_where_a_turn_has_something_to_do(
    changes: dict[str, Any], is_gone: bool, is_news: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(controller: Controller) -> None:
        controller.see_job(a_job("mine", "north", **changes), is_gone=is_gone)

    assert turned(played(scenario, monkeypatch)) == (["mine"] if is_news else [], [])


def test_a_run_is_woken_by_others_and_not_by_what_the_operator_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.see_run(a_body("mine", status={"ours": True}))
        controller.see_run(a_body("other"))

    assert turned(played(scenario, monkeypatch)) == (["other"], [])


def test_the_end_of_a_job_wakes_the_runs_that_wait_for_its_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = a_run([in_wards(a_site("north"))])
    metadata = waiting.resource.metadata.model_copy(update={"name": "other", "namespace": "wards", "uid": "uid-other"})
    run = type(waiting)(waiting.resource.model_copy(update={"metadata": metadata}), waiting.sites)

    async def scenario(controller: Controller) -> None:
        controller._note_look(run, Observed(busy={"north": "its turn"}))
        controller.see_job(a_job("mine", "north", ready=1))
        controller.see_job(a_job("mine", "north", ended="Complete"))

    assert turned(played(scenario, monkeypatch)) == (["mine", "other"], ["north"])


def test_a_node_that_changes_wakes_every_site_and_its_heartbeat_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.see_node(NODE)
        await asyncio.sleep(0.2)
        controller.see_node(NODE)

    assert turned(played(scenario, monkeypatch)) == ([], ["north", "south"])


def test_a_site_that_changes_wakes_the_runs_of_its_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.see_site(a_body("north"))

    assert turned(played(scenario, monkeypatch)) == (["mine", "other"], ["north"])


def test_a_site_whose_status_changes_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.see_site(a_body("north"))
        await asyncio.sleep(0.2)
        controller.see_site(a_body("north", status={"activeRuns": 1}))

    assert turned(played(scenario, monkeypatch)) == (["mine", "other"], ["north"])


def test_a_run_that_is_deleted_is_forgotten_and_its_sites_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(controller: Controller) -> None:
        controller.forget_run(a_body("mine"))

    controller = played(scenario, monkeypatch)

    assert controller.runs.forgotten == ["mine"]  # type: ignore[attr-defined]
    assert turned(controller) == ([], ["north"])


def test_the_sites_of_a_run_hear_that_it_begins_and_that_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = a_run([in_wards(a_site("north"))])
    meta = asked.resource.metadata.model_copy(update={"name": "mine", "namespace": "wards", "uid": "uid-mine"})
    ended = FineTuneStatus(conditions=(Condition(type="Succeeded", status=ConditionStatus.TRUE, reason="RoundsCompleted"),))
    looks = [type(asked)(asked.resource.model_copy(update={"metadata": meta} | status), asked.sites) for status in ({}, {"status": ended})]
    heard = []

    async def scenario(controller: Controller) -> None:
        for run in (looks[0], looks[0], looks[1], looks[1]):
            controller.note_look(run, Observed())
            await asyncio.sleep(0.2)
            heard.append(len(controller.sites.turned))  # type: ignore[attr-defined]

    played(scenario, monkeypatch)

    assert heard == [1, 1, 2, 2]


def test_what_a_profile_measured_reaches_its_site_once(monkeypatch: pytest.MonkeyPatch) -> None:
    site = in_wards(a_site("north"))
    asked = a_run([site])
    meta = asked.resource.metadata.model_copy(update={"name": "mine", "namespace": "wards", "uid": "uid-mine"})
    run = type(asked)(asked.resource.model_copy(update={"metadata": meta}), asked.sites)
    task = ProfileTask(
        run=RunRef(namespace="wards", name="mine", uid="uid-mine"),
        site="north",
        model=Model(source="file:///toy"),
        result="file:///m",
        objective=run.spec.task,
        data=Data(train="/t", validation="/v"),
        bits=(16,),
    )

    async def scenario(controller: Controller) -> None:
        for _ in range(2):
            controller.note_look(run, Observed(profiles={"north": {0: a_profile(task)}}))
            await asyncio.sleep(0.2)

    controller = played(scenario, monkeypatch)

    assert controller.sites.found["wards", "north"].train_samples == 100  # type: ignore[attr-defined]
    assert turned(controller) == ([], ["north"])


def test_a_process_that_ends_wakes_the_run_it_worked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = a_run([])
    meta = asked.resource.metadata.model_copy(update={"name": "mine", "namespace": "wards", "uid": "uid-mine"})
    run = type(asked)(asked.resource.model_copy(update={"metadata": meta}), ())

    async def scenario(controller: Controller) -> None:
        controller._note_look(run, Observed())
        controller.runs.cluster.workers.on_end("uid-mine")
        controller.runs.cluster.workers.on_end("uid-unknown")
        await asyncio.sleep(0)

    assert turned(played(scenario, monkeypatch)) == (["mine"], [])


THERE = {"uid-mine": "mine", "uid-other": "other", "uid-north": "north", "uid-south": "south"}
GHOST = {"uid-mine": "mine"}
MISSED = {"uid-west": "west"}


def is_astray(*calls: dict[str, str]) -> bool:
    """Whether the operator is astray after these roll calls."""

    async def play() -> bool:
        controller = Controller(StandInRuns(StandInCluster(lambda: 0.0)), StandInSites(), StandInRoll(list(calls)), SETTINGS.threads)  # type: ignore[arg-type]
        running = asyncio.create_task(controller.run(KNOWN))
        await asyncio.sleep(0)
        for _ in calls:
            await controller._roll_turn("")
        running.cancel()
        return controller.diverged.is_set()

    return asyncio.run(play())


def without(names: dict[str, str], *gone: dict[str, str]) -> dict[str, str]:
    return {uid: name for uid, name in names.items() if not any(uid in one for one in gone)}


def test_an_operator_that_remembers_what_is_not_there_is_astray_at_the_second_roll_call() -> None:
    assert not is_astray(without(THERE, GHOST))
    assert is_astray(without(THERE, GHOST), without(THERE, GHOST))


def test_an_operator_that_misses_what_is_there_is_astray_at_the_second_roll_call() -> None:
    assert not is_astray(THERE | MISSED)
    assert is_astray(THERE | MISSED, THERE | MISSED)


def test_news_that_is_on_its_way_leads_nobody_astray() -> None:
    assert not is_astray(THERE, THERE)
    assert not is_astray(without(THERE, GHOST), THERE)
    assert not is_astray(without(THERE, GHOST), THERE | MISSED)
    assert not is_astray(THERE | MISSED, THERE, THERE | MISSED)


def test_after_a_list_the_roll_is_called_within_seconds_and_other_events_call_for_none() -> None:
    controller = Controller(StandInRuns(StandInCluster(lambda: 100.0)), StandInSites(), StandInRoll(), SETTINGS.threads)  # type: ignore[arg-type]

    controller.note_list("MODIFIED")
    assert controller.roll_queue._entries == {}

    controller.note_list(None)
    assert [entry.due for entry in controller.roll_queue._entries.values()] == [105.0]


def test_what_came_or_went_while_the_roll_was_called_is_not_astray() -> None:
    assert drift(before={}, called={"1": "new"}, after={"1": "new"}) == {}
    assert drift(before={}, called={}, after={"1": "newer"}) == {}
    assert drift(before={"1": "old"}, called={"1": "old"}, after={}) == {}
    assert drift(before={"1": "older"}, called={}, after={}) == {}


def test_jobs_and_nodes_answer_the_roll_too() -> None:
    jobs, nodes = [a_job("mine", "north", uid="uid-job")], [replace(NODE, uid="uid-node")]

    known = cache(jobs_of_runs={("wards", "uid-mine"): jobs}, nodes={None: nodes})

    assert known.names() == {"uid-job": "mine-train-north-a0", "uid-node": "one"}


def test_of_two_objects_of_a_name_the_newer_one_is_there() -> None:
    older, newer = a_body("mine", uid="before", resourceVersion="9"), a_body("mine", uid="now", resourceVersion="10")

    view = cache(run_bodies={("wards", "mine"): [newer, older]}).run_view(Key("run", "wards", "mine"))

    assert view is not None
    assert view.body["metadata"]["uid"] == "now"
