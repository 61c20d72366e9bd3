"""MkDocs' hook for the site: the navigation from docs/README.md, the repository's other pages, and links out of docs/.

In the repository a link is a path relative to its page. In the site every page of the repository is a page, and a path that is no page is a
link to the repository on its forge; where `repo_url` does not say which, it is plain text. So one text serves both.
"""

import posixpath
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = "docs"
INDEX: Final = f"{DOCS}/README.md"
ELSEWHERE: Final = "repository"
"""The site's folder of pages that are not in docs/."""

_LINK: Final = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
_LIST: Final = re.compile(r"^((?![*-] )\S.*)\n(?=[*-] )", re.MULTILINE)
_FENCE: Final = re.compile(r"^(```|~~~)", re.MULTILINE)

Nav = list[dict[str, Any]]


def navigation(index: str) -> Nav:
    """The sections of docs/README.md, each with the pages that it lists, as MkDocs' `nav`."""
    nav: Nav = [{"Overview": "README.md"}]
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        listed = re.findall(r"^\* \[(.+?)\]\(([^)#]+)\)", text, re.MULTILINE)
        nav.append({title: [{name.replace("`", ""): site_path(posixpath.normpath(f"{DOCS}/{path}"))} for name, path in listed]})
    return nav


def site_path(page: str) -> str:
    """Where a page of the repository is in the site's sources; both are relative, with `/`."""
    return page.removeprefix(f"{DOCS}/") if page.startswith(f"{DOCS}/") else f"{ELSEWHERE}/{page}"


def repository_path(source: str) -> str:
    """The inverse of `site_path`."""
    return source.removeprefix(f"{ELSEWHERE}/") if source.startswith(f"{ELSEWHERE}/") else f"{DOCS}/{source}"


def with_links_of_the_site(text: str, page: str, pages: Mapping[str, str], repository: str, root: Path = ROOT) -> str:
    """The text of a page with its relative links as the site has them. A link to nothing stays, for MkDocs to complain of.

    Args:
        text: Markdown.
        page: The page's path in the repository.
        pages: The path in the site's sources of each page of the repository.
        repository: URL below which paths of the repository are; "": nowhere, and links to them become plain text.
        root: The repository's folder.
    """

    def link(found: re.Match[str]) -> str:
        name, target = found[1], found[2]
        if target.startswith("#") or re.match(r"[a-z]+:", target):
            return found[0]
        path, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        of_a_folder = posixpath.join(path, "README.md")
        source = pages.get(path) or pages.get(of_a_folder)
        if source:
            return f"[{name}]({posixpath.relpath(source, posixpath.dirname(pages[page]) or '.')}{mark}{anchor})"
        if not (root / path).exists():
            return found[0]
        return f"[{name}]({repository}/{path}{mark}{anchor})" if repository else name

    return "".join(part if is_code else _LINK.sub(link, part) for is_code, part in _parts(text))


def with_lists_apart(text: str) -> str:
    """The text with an empty line between a paragraph and a list, which Markdown in the repository does not need and MkDocs' does."""
    return "".join(part if is_code else _LIST.sub(r"\1\n\n", part) for is_code, part in _parts(text))


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """The text in parts: whether each is a block of code."""
    start, is_code = 0, False
    for fence in _FENCE.finditer(text):
        yield is_code, text[start : fence.start()]
        start, is_code = fence.start(), not is_code
    yield is_code, text[start:]


def in_the_repository(*patterns: str) -> list[str]:
    """The files of the repository that match, also those that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def on_config(config: Any) -> Any:  # noqa: ANN401 -- MkDocs, which is not installed where types are checked
    """Set the navigation."""
    config.nav = navigation((ROOT / INDEX).read_text(encoding="utf-8"))
    return config


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 -- likewise
    """Add the pages that are not in docs/, and the pictures that they show."""
    from mkdocs.structure.files import File  # noqa: PLC0415 -- the environment that builds the site has it, and no other

    for path in in_the_repository("*.md", "*.svg", "*.png"):
        if not path.startswith(f"{DOCS}/"):
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ANN401 -- likewise
    """Resolve the page's links, and have its lists be lists."""
    del files
    repository = f"{config.repo_url.rstrip('/')}/blob/main" if config.repo_url else ""
    pages = {one: site_path(one) for one in in_the_repository("*.md")}
    return with_lists_apart(with_links_of_the_site(markdown, repository_path(page.file.src_uri), pages, repository))
