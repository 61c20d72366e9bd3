"""How kopf is set up: it reads and nothing else, and comes up however much there is to read."""

import asyncio
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import kopf
import pytest
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run

from fedpipe_operator.backend import JobResources, TaskKind
from fedpipe_operator.handlers.watch_requests import WatchRequests
from fedpipe_operator.manifests import trainer_job
from fedpipe_operator.names import operator_class_selector
from fedpipe_operator.rounds import job_of


def configured(operator_class: str = "") -> kopf.OperatorSettings:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    settings, selector = kopf.OperatorSettings(), operator_class_selector(operator_class)
    memo = kopf.Memo(controller=SimpleNamespace(live_objects=SimpleNamespace(selector=selector)))
    asyncio.run(watches.configure(settings, memo))  # type: ignore[arg-type]
    return settings


@pytest.fixture
def settings() -> kopf.OperatorSettings:
    return configured()


@pytest.mark.parametrize(
    ("operator_class", "selector"), [("", "!fedpipe.io/operator-class"), ("canary", "fedpipe.io/operator-class=canary")]
)
def test_an_operator_watches_the_runs_and_sites_of_its_class_only(operator_class: str, selector: str) -> None:
    selectors = configured(operator_class).watching.label_selectors

    assert [selectors["fedpipe.io", "v1alpha1", kind] for kind in ("federatedfinetunes", "edgesites")] == [selector] * 2
    assert selectors["batch", "v1", "jobs"] == "fedpipe.io/run"


def test_as_many_objects_as_there_are_can_wait_for_the_indices_at_once(settings: kopf.OperatorSettings) -> None:
    assert settings.queueing.worker_limit is None


def test_a_watch_that_has_died_without_a_word_is_noticed_within_minutes(settings: kopf.OperatorSettings) -> None:
    watching = settings.watching

    assert (watching.server_timeout, watching.client_timeout) == (300, 330), "the server ends it; if it does not, we do"
    assert (watching.connect_timeout, settings.networking.request_timeout) == (10, 60)


def test_kopf_leaves_no_mark_on_objects(settings: kopf.OperatorSettings) -> None:
    body = kopf.Body({"metadata": {"name": "toy"}, "spec": {"suspend": True}})
    storage = settings.persistence.diffbase_storage

    assert not settings.posting.enabled
    assert storage.build(body=body) == {}
    assert storage.fetch(body=body) is None


def test_every_handler_is_a_coroutine_for_kopf_calls_others_in_threads_and_the_work_queue_is_the_event_loops() -> None:
    from fedpipe_operator.handlers import nodes, watches  # noqa: PLC0415 -- registers with kopf

    found = [one for module in (watches, nodes) for one in vars(module).values() if inspect.isfunction(one)]
    ours = [one for one in found if one.__module__ in (watches.__name__, nodes.__name__)]

    assert len(ours) > 10
    assert [one.__name__ for one in ours if not inspect.iscoroutinefunction(one)] == []


class Listener:
    """In place of a controller: its calls, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **_: self.calls.append((name, *arguments))


META = {"name": "one", "namespace": "wards", "uid": "u", "labels": {}, "creationTimestamp": "2026-01-01T00:00:00Z"}


def a_job() -> dict[str, Any]:
    run = a_run()
    body = trainer_job(run, job_of(run, TaskKind.TRAIN, site="site-a", round_=1), run.sites[0], JobResources(), SETTINGS)
    return body | {"metadata": META | body["metadata"], "status": {}}


@pytest.mark.parametrize("event", [None, "ADDED", "MODIFIED", "DELETED"])
def test_a_foreign_job_with_our_labels_reaches_neither_the_controller_nor_an_index(event: str | None) -> None:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    controller, body = Listener(), a_job()
    body["metadata"]["labels"] |= {"fedpipe.io/round": "one"}
    asyncio.run(watches.job_changed(type=event, body=kopf.Body(body), memo=kopf.Memo(controller=controller)))

    assert controller.calls == [("event_received", "jobs", event)]
    assert asyncio.run(watches.jobs_of_runs(kopf.Body(body))) is None
    assert asyncio.run(watches.jobs_at_sites(kopf.Body(body))) is None
    assert asyncio.run(watches.jobs_of_runs(kopf.Body(a_job()))) is not None


@pytest.mark.parametrize(
    ("handler", "resource"), [("run_changed", "federatedfinetunes"), ("site_changed", "edgesites"), ("job_changed", "jobs")]
)
@pytest.mark.parametrize("event", [None, "ADDED", "MODIFIED", "DELETED"])
def test_the_controller_hears_of_every_event_and_so_of_every_list(handler: str, resource: str, event: str | None) -> None:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    controller = Listener()
    body = a_job() if handler == "job_changed" else {"metadata": META}
    asyncio.run(getattr(watches, handler)(type=event, body=kopf.Body(body), memo=kopf.Memo(controller=controller)))

    assert controller.calls[0] == ("event_received", resource, event)
    assert len(controller.calls) == 2


def test_kopf_is_logged_in_as_by_itself_and_its_requests_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    controller = Listener()
    controller.watch_requests = WatchRequests(["/apis/batch/v1/jobs"])  # type: ignore[attr-defined]
    found = kopf.ConnectionInfo(server="https://api:6443", scheme="Bearer", token="secret")  # noqa: S106 -- no secret
    monkeypatch.setattr(kopf, "login_via_client", lambda **_: found)

    async def log_in() -> tuple[str, str, int]:
        made = await watches.login(memo=kopf.Memo(controller=controller))
        async with made.aiohttp_session as session:
            return made.server, session.headers["Authorization"], len(session.trace_configs)

    assert asyncio.run(log_in()) == ("https://api:6443", "Bearer secret", 1)


def test_without_an_account_there_is_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    monkeypatch.setattr(kopf, "login_via_client", lambda **_: None)
    with pytest.raises(kopf.LoginError, match="neither a service account nor a kubeconfig"):
        asyncio.run(watches.login(memo=kopf.Memo(controller=Listener())))


def test_a_controller_that_stops_releases_the_lease_after_its_queues_have_ended() -> None:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    noted: list[str] = []

    async def queues() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            noted.append("queues ended")

    class Elector:
        def stop(self) -> None:
            noted.append("released")

    async def stop() -> None:
        controller = Listener()
        controller.elector = Elector()  # type: ignore[attr-defined]
        memo = kopf.Memo(controller=controller, queues=asyncio.create_task(queues()))
        await asyncio.sleep(0)
        await watches.stop(memo=memo)

    asyncio.run(stop())

    assert noted == ["queues ended", "released"]
