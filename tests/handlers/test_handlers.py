"""How kopf is set up: it reads and nothing else, and comes up however much there is to read."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import kopf
import pytest
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run

from fedpipe_operator.backend import JobResources, TaskKind
from fedpipe_operator.manifests import trainer_job
from fedpipe_operator.rounds import job_of


@pytest.fixture
def settings() -> kopf.OperatorSettings:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    settings = kopf.OperatorSettings()
    asyncio.run(watches.configure(settings))  # type: ignore[arg-type]
    return settings


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


class Queues:
    """The task of the controller's work queues."""

    def __init__(self, *, are_over: bool) -> None:
        self.done = lambda: are_over


def test_the_probe_fails_once_the_work_queues_have_ended() -> None:
    from fedpipe_operator.handlers import watches  # noqa: PLC0415 -- registers with kopf

    assert asyncio.run(watches.is_reconciling(kopf.Memo(queues=Queues(are_over=False))))
    with pytest.raises(kopf.PermanentError):
        asyncio.run(watches.is_reconciling(kopf.Memo(queues=Queues(are_over=True))))
