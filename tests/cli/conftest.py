"""Runs on disk for the tests of `fedpipe run`."""

from pathlib import Path

import pytest
from local_runs import Fleet, a_fleet


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, str]:
    """A fleet whose run ended without interruption, and its output; tests do not change it."""
    fleet = a_fleet(tmp_path_factory.mktemp("finished"))
    return fleet, fleet.run()


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet whose run has not started."""
    return a_fleet(tmp_path)
