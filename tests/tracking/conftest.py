"""A run of three sites and two rounds with everything that it left in its store, made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_servers import StandInMlflow, running_stand_in
from stand_in_runs import World, a_run

from fedpipe_operator import names


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The run after its end. Tests that write into a store copy it."""
    world = World(a_run(), tmp_path_factory.mktemp("ended"))
    world.settle()
    world.store.write(names.MODEL_CARD, b"# A model")
    return world


@pytest.fixture
def server() -> Iterator[StandInMlflow]:
    """A server that keeps what it is told."""
    with running_stand_in() as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the real programs."""
    return tmp_path_factory.mktemp("trackers")
