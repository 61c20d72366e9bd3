"""Runs on disk for the tests of `fedpipe run`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_templates import CHATML_WITH_TOOLS
from local_runs import Fleet, a_fleet
from toys import folders, make_toy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, str]:
    """A fleet whose run ended without interruption, and its output; tests do not change it."""
    fleet = a_fleet(tmp_path_factory.mktemp("finished"))
    return fleet, fleet.run()


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet whose run has not started."""
    return a_fleet(tmp_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of a toy model; with a chat template, which renders calls, if its name ends in -chat."""

    def make(name: str, folder: Path) -> None:
        make_toy(name.removesuffix("-chat"), folder)
        if name.endswith("-chat"):
            (folder / "chat_template.jinja").write_text(CHATML_WITH_TOOLS)

    return folders(tmp_path_factory.mktemp("models"), make)
