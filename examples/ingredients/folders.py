"""Folders that are created atomically: if the script is stopped, a folder is complete or does not exist."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

_STAMP = ".made-from"


def make_once(folder: Path, make: Callable[[Path], None], *, made_from: str = "") -> bool:
    """Create `folder` with `make`, unless it exists and was made from the same input; returns whether it was created.

    `make` fills a temporary folder, which is renamed at the end.
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


def link_folder(link: Path, target: Path) -> None:
    """Create or replace the symbolic link `link` to the folder `target`."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target, target_is_directory=True)


def digest_of(files: Sequence[Path]) -> str:
    """One hash of the contents of all files, to detect that a folder must be made again."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
