"""Files that a command makes together: if it fails, none is left for the next try to stumble over."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def removed_if_it_fails(paths: Iterable[Path]) -> Iterator[None]:
    """Remove these files and links, and the folders made for them, if the block ends by an exception (Ctrl-C, too).

    What was there before the block stays, also where it was overwritten.

    Raises:
        OSError: a path cannot be looked at.
    """
    new = [path for path in paths if not (path.is_symlink() or path.exists())]
    folders = {folder for path in new for folder in path.parents if not folder.exists()}
    try:
        yield
    except BaseException:
        # The failure is what the user has to hear of, not that a file of it cannot be removed; a folder that has others' files stays.
        with suppress(OSError):
            _remove(new, folders)
        raise


def _remove(files: Iterable[Path], folders: Iterable[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
    for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()
