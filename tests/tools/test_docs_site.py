"""The site's navigation and links, from pages that are written for the repository."""

from pathlib import Path

import docs_site
import pytest

PAGES = {
    page: docs_site.site_path(page)
    for page in ("README.md", "docs/README.md", "docs/stores.md", "docs/decisions/README.md", "examples/gpu/README.md")
}
HOST = "https://forge.example/fedpipe/blob/main"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with these pages and a file of code."""
    for name in (*PAGES, "crds/edgesites.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_the_navigation_is_what_the_index_lists_section_by_section() -> None:
    start, set_up = "## Start\n\n* [Install `it`](../README.md)\n", "## Set up\n\n* [Stores](stores.md): one each\n* [Why](stores.md#why)\n"
    index = f"# FedPipe\n\ntext\n\n{start}\n{set_up}"

    assert docs_site.navigation(index) == [
        {"Overview": "README.md"},
        {"Start": [{"Install it": "repository/README.md"}]},
        {"Set up": [{"Stores": "stores.md"}]},
    ]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_the_site_knows_its_place_in_the_repository(page: str) -> None:
    assert docs_site.repository_path(PAGES[page]) == page


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("docs/stores.md", "[a](decisions/README.md#b)", "[a](decisions/README.md#b)"),
        ("docs/stores.md", "[a](../README.md#on-kubernetes)", "[a](repository/README.md#on-kubernetes)"),
        ("docs/stores.md", "[a](../examples/gpu)", "[a](repository/examples/gpu/README.md)"),
        ("docs/decisions/README.md", "[a](../stores.md)", "[a](../stores.md)"),
        ("examples/gpu/README.md", "[`a`](../../docs/stores.md)", "[`a`](../../../stores.md)"),
        ("README.md", "[a](docs/stores.md) and [b](examples/gpu/README.md)", "[a](../stores.md) and [b](examples/gpu/README.md)"),
        ("docs/stores.md", "[a](../crds/edgesites.yaml#L3)", f"[a]({HOST}/crds/edgesites.yaml#L3)"),
        ("docs/stores.md", "[a](../crds/no-such.yaml)", "[a](../crds/no-such.yaml)"),
        ("docs/stores.md", "[a](#b) [c](https://docs.example/d)", "[a](#b) [c](https://docs.example/d)"),
        ("docs/stores.md", "```\n[a](../README.md)\n```\n", "```\n[a](../README.md)\n```\n"),
        ("docs/stores.md", "![a](../crds/edgesites.yaml)", "![a](../crds/edgesites.yaml)"),
    ],
)
def test_a_relative_link_leads_to_the_same_page_in_the_site_and_to_code_in_the_repository(
    root: Path, page: str, link: str, there: str
) -> None:
    assert docs_site.with_links_of_the_site(link, page, PAGES, HOST, root) == there


def test_without_the_repositorys_address_a_link_to_code_is_plain_text(root: Path) -> None:
    assert docs_site.with_links_of_the_site("see [`crds/`](../crds).", "docs/stores.md", PAGES, "", root) == "see `crds/`."


def test_a_list_that_follows_a_paragraph_is_a_list() -> None:
    assert (
        docs_site.with_lists_apart("**A rule**\n* one\n  more\n* two\n\n```\na\n* b\n```\n")
        == "**A rule**\n\n* one\n  more\n* two\n\n```\na\n* b\n```\n"
    )
