"""Files that a reader never sees in part: written under a temporary name in the same folder, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(to: Path) -> Iterator[BinaryIO]:
    """A temporary file that replaces `to` at the end of this context; after an exception it is removed. Anybody may read it.

    It is on the disk before it gets its name, and the name before this returns.

    Raises:
        OSError: the folder does not exist, is full, or cannot be written to.
    """
    handle, name = tempfile.mkstemp(dir=to.parent, prefix=f".{to.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(to)
    except BaseException:
        temporary.unlink()
        raise
    sync_folder(to.parent)


def sync_folder(folder: Path) -> None:
    """Return when the names of a folder's files are on the disk.

    Raises:
        OSError: the folder does not exist or cannot be read, or the disk fails.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
