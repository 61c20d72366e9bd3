"""What stands in the place of a file under its name: the pointer of git-lfs or git-annex, or a server's error page."""

from pathlib import Path
from typing import Final

_POINTERS: Final = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_ANNEX: Final = "/annex/objects/"
"""In the text of a git-annex pointer."""
_PAGES: Final = (b"<!doctype html", b"<html", b"<?xml")
"""How the error page of a server begins that was saved under the name of a file."""
LONGEST: Final = 1024
"""Bytes of a pointer, at most: what is read of a file to tell."""
_COPY_AGAIN: Final = "copy or download it again"


def described(path: Path) -> str:
    """What this file is instead of itself, and what to do, as the end of a sentence; empty if it is none of these.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        first = file.read(LONGEST)
    is_annex = len(first) < LONGEST and _ANNEX in first.decode("utf-8", "replace")
    if first.startswith(_POINTERS) or is_annex:
        kind, command = ("git-annex", "git annex get .") if is_annex else ("git-lfs", "git lfs pull")
        return f"is a {kind} pointer and not the file itself: run `{command}` in the repository that it was copied from"
    if first.lstrip().lower().startswith(_PAGES):
        return f"is a web page, such as a server's error message, and not the file itself: {_COPY_AGAIN}"
    return ""
