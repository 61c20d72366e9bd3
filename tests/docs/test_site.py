"""The pages: each is listed in docs/README.md, and every relative link and anchor leads somewhere, in the repository and in the site."""

import re
from functools import cache
from pathlib import Path
from typing import Final

import docs_site
import pytest

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(ROOT / page for page in docs_site.in_the_repository("*.md"))
LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """The relative links of a page, also those to its own headings."""
    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a forge makes them."""
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)]
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def listed(index: Path) -> set[Path]:
    """The pages that an index links to."""
    return {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}


def test_every_page_of_docs_is_listed_in_an_index() -> None:
    indices = [DOCS / "README.md", DOCS / "decisions" / "README.md"]
    missing = set(DOCS.rglob("*.md")) - {page for index in indices for page in listed(index)} - set(indices)

    assert [f"{name_of(page)}: give it a line in docs/README.md" for page in sorted(missing)] == []


def test_a_page_is_listed_once() -> None:
    sections = docs_site.navigation((DOCS / "README.md").read_text(encoding="utf-8"))
    pages = [page for section in sections[1:] for entries in section.values() for entry in entries for page in entry.values()]

    assert len(pages) == len(set(pages)) > 10


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_its_anchor_to_a_heading(page: Path) -> None:
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{link}: no such heading")

    assert wrong == []
