"""Small files that a site keeps on its cache volume. Those that no task has used for a month are removed, so that a folder stays small."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedpipe_trainer.atomic_file import atomic_file

_UNUSED_SECONDS: Final = 30 * 86400.0


def read_kept(path: Path) -> bytes:
    """The content of a file, whose age starts again.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    content = path.read_bytes()
    with suppress(OSError):  # a read-only volume, where nothing is removed
        os.utime(path)
    return content


def write_kept(path: Path, content: bytes) -> None:
    """Replace a file as a whole, after those of its folder that were not used for a month have been removed.

    Raises:
        OSError: the folder is full or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.iterdir():
        with suppress(OSError):  # another task has removed it
            if other.is_file() and time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                other.unlink()
    with atomic_file(path) as file:
        file.write(content)
