"""The store as a folder of this machine: one file per object. For `fedpipe run` and for tests."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store.keys import checked_key, checked_prefix, is_whole

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_WEATHER = {errno.EIO, errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class FileReader:
    """An open file, read by ranges. Safe for several threads: it has no position."""

    descriptor: int
    size: int
    key: str

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the object ends."""
        with _translated(self.key):
            return os.pread(self.descriptor, length, offset)


class DirectoryStore:
    """A store in the folder `root`, which is made when it does not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        with _translated(str(self.root)):
            self.root.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> bytes | None:
        """The whole object, or None when there is none."""
        path = self._path(key)
        with _translated(key):
            return path.read_bytes() if path.is_file() else None

    def size(self, key: str) -> int | None:
        """Bytes in the object, or None when there is none."""
        path = self._path(key)
        with _translated(key):
            return path.stat().st_size if path.is_file() else None

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        with self.open_reader(key) as reader:
            data = reader.read(offset, length)
        if len(data) != length:
            raise UserError("ObjectTooShort", f"{key} has {reader.size} bytes, {length} were asked for at {offset}")
        return data

    @contextmanager
    def open_reader(self, key: str) -> Iterator[FileReader]:
        """The object for reading by ranges: the same bytes to the end, also when it is written anew meanwhile."""
        path = self._path(key)
        with _translated(key):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield FileReader(descriptor, os.fstat(descriptor).st_size, key)
        finally:
            os.close(descriptor)

    def write(self, key: str, data: bytes) -> None:
        """Write the object whole, by renaming."""
        with self._unfinished(key, lambda file: file.write(data)) as unfinished:
            unfinished.replace(self._path(key))

    def write_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streamed."""
        with path.open("rb") as source, self._unfinished(key, lambda file: shutil.copyfileobj(source, file)) as unfinished:
            unfinished.replace(self._path(key))

    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists: a hard link is made by one writer only."""
        target = self._path(key)
        with self._unfinished(key, lambda file: file.write(data)) as unfinished:
            try:
                target.hardlink_to(unfinished)
            except FileExistsError:
                return False
            return True

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of the object `prefix` and of everything in the folder of that name."""
        folder = self.root / checked_prefix(prefix)
        with _translated(prefix):
            files = [folder] if folder.is_file() else _files_below(folder)
            return sorted(key for key in (path.relative_to(self.root).as_posix() for path in files) if is_whole(key))

    def delete(self, prefix: str) -> None:
        """Delete what `list(prefix)` names, and what writers that died left beside it."""
        path = self.root / checked_prefix(prefix)
        with _translated(prefix):
            if path.is_file():
                path.unlink(missing_ok=True)
            elif path.is_dir():
                shutil.rmtree(path)
            self.root.mkdir(parents=True, exist_ok=True)

    def url_to_read(self, key: str, seconds: int) -> str:  # noqa: ARG002 -- a path does not expire
        """The file's URL. It does not expire: who can read the folder can read it anyway."""
        return self._path(key).as_uri()

    def url_to_write(self, key: str, seconds: int) -> str:  # noqa: ARG002 -- a path does not expire
        """The file's URL. Who writes makes the folder, and renames the whole file into it."""
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    @contextmanager
    def _unfinished(self, key: str, fill: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """A complete and synced file beside the object's place, gone at the end unless it was renamed."""
        folder = self._path(key).parent
        with _translated(key):
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = folder / f".{secrets.token_hex(8)}"
            try:
                with unfinished.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                yield unfinished
            finally:
                unfinished.unlink(missing_ok=True)


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file under a folder that may not exist. A folder that cannot be read is an error, not an empty one."""
    for parent, _, names in os.walk(folder, onerror=_unless_missing):
        yield from (Path(parent, name) for name in names)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translated(error, key) from error


def translated(error: OSError, key: str) -> FedPipeError:
    """The operator's own error for one of the operating system's."""
    what = f"{key}: {error.strerror or error}"
    if error.errno in _FULL:
        return UserError("StoreFull", f"{what}; free space where the store is, then go on")
    if error.errno in _DENIED:
        return UserError("StoreDenied", f"{what}; let the operator's user read and write there")
    if error.errno == errno.ENOENT:
        return UserError("ObjectMissing", f"{what}; it is not, or no longer, in the store")
    if error.errno in _WEATHER:
        return TransientError("StoreUnavailable", what)
    return UserError("StoreRefused", what)
