"""How kopf is set up: it reads and nothing else, and comes up however much there is to read."""

import asyncio

import kopf
import pytest


@pytest.fixture
def settings() -> kopf.OperatorSettings:
    from fedpipe_operator import handlers  # noqa: PLC0415 -- registers with kopf

    settings = kopf.OperatorSettings()
    asyncio.run(handlers.configure(settings))  # type: ignore[arg-type]
    return settings


def test_as_many_objects_as_there_are_can_wait_for_the_indices_at_once(settings: kopf.OperatorSettings) -> None:
    assert settings.queueing.worker_limit is None


def test_kopf_leaves_no_mark_on_objects(settings: kopf.OperatorSettings) -> None:
    body = kopf.Body({"metadata": {"name": "toy"}, "spec": {"suspend": True}})
    storage = settings.persistence.diffbase_storage

    assert not settings.posting.enabled
    assert storage.build(body=body) == {}
    assert storage.fetch(body=body) is None
