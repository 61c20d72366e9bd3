"""CONTRIBUTING.md and docs/decisions: every path, name and `make` target that they mention exists, and the tables are complete."""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest
import yaml

from fedpipe_operator.aggregation import METHODS, RULES
from fedpipe_operator.aggregation.normalization import NORMALIZATIONS
from fedpipe_operator.api import AggregationMethod, AggregationRule, Normalization, PlanningMode
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.planning import MODES
from fedpipe_operator.rounds.kinds import KINDS

ROOT: Final = Path(__file__).parents[2]
GUIDE: Final = ROOT / "CONTRIBUTING.md"
DECISIONS: Final = ROOT / "docs" / "decisions"
PAGES: Final = [GUIDE, *sorted(DECISIONS.glob("*.md"))]

OPERATOR: Final = ROOT / "operator" / "fedpipe_operator"
TRAINER: Final = ROOT / "trainer" / "fedpipe_trainer"
FOLDERS: Final = (ROOT, OPERATOR, TRAINER, ROOT / "tests" / "helpers")
"""The folders that a path on a page may be relative to."""
BASES: Final = {"operator": (OPERATOR, ROOT), "trainer": (TRAINER,), "chart": (ROOT,), "API": (ROOT,), "tests": (ROOT,), "docs": (ROOT,)}
"""The same behind the first word of a list item of the guide."""
BUILT: Final = ("dist", "site/")
"""The folders that a release and the site are built in."""

CODE: Final = re.compile(r"`([^`\n]+)`")
PATH: Final = re.compile(r"[\w.-]*/[\w./-]*|[\w-]+\.(?:py|md|toml|yaml|json|tpl|operator|trainer)|Makefile")
NAME: Final = re.compile(r"\w+(?:\.\w+)*")
SUFFIXES: Final = (".py", ".yaml", ".json", ".tpl")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    missing = [token for token, folders in _paths(page) if not any((folder / token).exists() for folder in folders)]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_has_a_target(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_is_one_of_the_code(page: Path) -> None:
    names = {token.rpartition(".")[2] for token in CODE.findall(page.read_text()) if NAME.fullmatch(token) and not PATH.fullmatch(token)}

    assert sorted(names - _words()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"`make ([a-z0-9-]+)", page.read_text())) <= targets


def test_the_tables_that_the_guide_names_are_complete() -> None:
    assert METHODS.keys() == {str(method) for method in AggregationMethod}
    assert RULES.keys() == {str(rule) for rule in AggregationRule}
    assert NORMALIZATIONS.keys() == set(Normalization)
    assert MODES.keys() == set(PlanningMode)
    assert KINDS.keys() == set(TaskKind)


def test_the_version_is_the_same_in_every_place_that_the_guide_names() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "charts" / "fedpipe" / "Chart.yaml").read_text())
    tagged = ("README.md", "Dockerfile.operator", "Dockerfile.trainer", "tests/e2e/test_readme.py")
    tags = {name: set(re.findall(r"/fedpipe-[\w$]+:(\d+\.\d+\.\d+)", (ROOT / name).read_text())) for name in tagged}

    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert tags == {name: {version} for name in tagged}


def test_a_decision_has_its_four_sections_on_half_a_screen_and_its_line_in_the_index() -> None:
    pages = {page.name: page.read_text() for page in PAGES if page.parent == DECISIONS and page.name != "README.md"}
    index = dict(re.findall(r"^\* \[(.*)\]\((.*)\)$", (DECISIONS / "README.md").read_text(), re.MULTILINE))

    for text in pages.values():
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Rejected", "Consequences"]
        assert len(text.splitlines()) <= 30
    assert {name: title for title, name in index.items()} == {name: text.splitlines()[0].removeprefix("# ") for name, text in pages.items()}


def _paths(page: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Every path on the page, also in a command, with the folders that it may be relative to."""
    folders = FOLDERS
    for line in page.read_text().splitlines():
        label = re.match(r"\* (\w+): ", line)
        if label and page == GUIDE:
            folders = BASES[label[1]]
        elif not line.startswith("  "):
            folders = FOLDERS
        for code in CODE.findall(line):
            words = code.replace("=", " ").split()
            paths = [word for word in words if PATH.fullmatch(word) and not word.startswith("/")]
            yield from ((path, folders) for path in paths if not path.startswith(BUILT))


@cache
def _words() -> set[str]:
    """Every word in the code, the CRDs and the chart."""
    folders = ("operator", "trainer", "crds", "charts")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES]
    return {word for file in [*files, ROOT / "pyproject.toml"] for word in re.findall(r"\w+", file.read_text())}
