"""Every block of commands on a page is run by a test, or says why not (see `readmes`)."""

import re
from pathlib import Path
from typing import Final

import docs_site
import pytest
from readmes import blocks, notes

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [page for page in docs_site.in_the_repository("*.md") if "```sh" in (ROOT / page).read_text(encoding="utf-8")]
HOW: Final = "write <!-- run by: TEST --> or <!-- not run: REASON --> on the line before it"


def fault(page: str, note: str, block: str) -> str:
    """What is wrong with the note before a block; "" if nothing is."""
    how, _, what = note.partition(": ")
    if how in ("not run", "not run as it stands"):
        return "" if len(what.split()) > 3 else "give a reason"
    if how != "run by":
        return HOW
    if not (ROOT / what).is_file():
        return f"{what} does not exist"
    text = (ROOT / what).read_text(encoding="utf-8")
    if what.endswith(".py"):
        return "" if "blocks(" in text and Path(page).name in text else f"{what} does not take blocks from this page"
    made = re.findall(r"^timed .*? make --no-print-directory ([a-z0-9-]+)", text, re.MULTILINE)
    other = [line for line in block.splitlines() if re.sub(r" +#.*", "", line) not in [f"make {target}" for target in made]]
    return f"{what} does not run {other[0]}" if other else ""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_is_run_by_a_test_or_says_why_not(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")

    assert [f"{block.splitlines()[0]}: {problem}" for note, block in notes(text) if (problem := fault(page, note, block))] == []
    assert [block for _, block in notes(text)] == blocks(text)


def test_no_block_of_commands_has_another_language() -> None:
    other = re.compile(r"^```(bash|console|shell|zsh)$", re.MULTILINE)

    assert [page for page in docs_site.in_the_repository("*.md") if other.search((ROOT / page).read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("note", "block", "problem"),
    [
        ("", "make demo", HOW),
        ("run by: tests/e2e/no_such_test.py", "make demo", "tests/e2e/no_such_test.py does not exist"),
        ("run by: tests/docs/test_vocabulary.py", "make demo", "tests/docs/test_vocabulary.py does not take blocks from this page"),
        ("run by: .ci/run", "make bench", ".ci/run does not run make bench"),
        ("run by: .ci/run", "make demo\nls", ".ci/run does not run ls"),
        ("run by: .ci/run", "make demo\nmake test", ""),
        ("not run: no", "make demo", "give a reason"),
        ("not run: it needs GPUs of the reader", "make demo", ""),
        ("not run as it stands: tests run the same commands", "make demo", ""),
    ],
)
def test_a_note_is_held_to_what_it_says(note: str, block: str, problem: str) -> None:
    assert fault("README.md", note, block) == problem
