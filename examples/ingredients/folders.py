"""Folders that are either whole or not there, whatever stops the script half-way."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

_STAMP = ".made-from"


def made_once(folder: Path, make: Callable[[Path], None], *, made_from: str = "") -> bool:
    """Fill `folder` by `make`, unless it is there and was made from the same; returns whether it had to be made.

    The work is done in a folder beside it, which takes the name at the end.
    """
    stamp = folder / _STAMP
    if stamp.is_file() and stamp.read_text() == made_from:
        return False
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        make(partial)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial)
        raise
    (partial / _STAMP).write_text(made_from)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return True


def linked(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, whatever it led to before."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target, target_is_directory=True)


def digest_of(files: Sequence[Path]) -> str:
    """One hash over the contents of these files: what a folder was made from."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
