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
from fedpipe_operator.store.protocol import check_key, check_prefix, is_object_key

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TRANSIENT = {errno.EIO, errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class FileReader:
    """An open file, read by ranges. Thread-safe, as it keeps no position."""

    descriptor: int
    size: int
    key: str

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the object ends."""
        with _translate_errors(self.key):
            return os.pread(self.descriptor, length, offset)


class DirectoryStore:
    """A store in the folder `root`, which is made if it does not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        with _translate_errors(str(self.root)):
            self.root.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> bytes | None:
        """The content of the object, or None if there is none."""
        path = self._path(key)
        with _translate_errors(key):
            return path.read_bytes() if path.is_file() else None

    def read_start(self, key: str, at_most: int) -> bytes | None:
        """The object's first bytes; None if there is no object."""
        path = self._path(key)
        with _translate_errors(key):
            if not path.is_file():
                return None
            with path.open("rb") as file:
                return file.read(at_most)

    def size(self, key: str) -> int | None:
        """Size of the object in bytes, or None if there is none."""
        path = self._path(key)
        with _translate_errors(key):
            return path.stat().st_size if path.is_file() else None

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        with self.open_reader(key) as reader:
            data = reader.read(offset, length)
        if len(data) != length:
            raise UserError("ObjectTooShort", f"{key} has {reader.size} bytes; cannot read {length} bytes at offset {offset}")
        return data

    @contextmanager
    def open_reader(self, key: str) -> Iterator[FileReader]:
        """A reader of the object. It keeps reading the same content if the object is replaced in the meantime."""
        path = self._path(key)
        with _translate_errors(key):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield FileReader(descriptor, os.fstat(descriptor).st_size, key)
        finally:
            os.close(descriptor)

    def write(self, key: str, data: bytes) -> None:
        """Write the object atomically, by renaming a complete file."""
        with self._complete_file(key, lambda file: file.write(data)) as unfinished:
            unfinished.replace(self._path(key))

    def write_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streamed."""
        with path.open("rb") as source, self._complete_file(key, lambda file: shutil.copyfileobj(source, file)) as unfinished:
            unfinished.replace(self._path(key))

    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; whether this call wrote it. Of several writers, one can make the hard link."""
        target = self._path(key)
        with self._complete_file(key, lambda file: file.write(data)) as unfinished:
            try:
                target.hardlink_to(unfinished)
            except FileExistsError:
                return False
            return True

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of the object `prefix` and of everything in the folder of that name."""
        folder = self.root / check_prefix(prefix)
        with _translate_errors(prefix):
            files = [folder] if folder.is_file() else _files_below(folder)
            return sorted(key for key in (path.relative_to(self.root).as_posix() for path in files) if is_object_key(key))

    def delete(self, prefix: str) -> None:
        """Delete the objects of `list(prefix)`, and unfinished files of writers that died."""
        path = self.root / check_prefix(prefix)
        with _translate_errors(prefix):
            if path.is_file():
                path.unlink(missing_ok=True)
            elif path.is_dir():
                shutil.rmtree(path)
            self.root.mkdir(parents=True, exist_ok=True)

    def url_to_read(self, key: str, seconds: int) -> str:  # noqa: ARG002 -- a path does not expire
        """The URL of the file. It does not expire: whoever can read the folder can read the file anyway."""
        return self._path(key).as_uri()

    def url_to_write(self, key: str, seconds: int) -> str:  # noqa: ARG002 -- a path does not expire
        """The URL of the file. The writer makes its folder, and renames a complete file into it."""
        return self._path(key).as_uri()

    def form_to_write(self, key: str, seconds: int, at_most: int) -> None:
        """There is no form: whoever writes a file by its path is bound by nothing."""

    def parts_to_write(self, key: str, seconds: int, size: int, part_bytes: int) -> None:
        """There are no parts: a file of any size is written at once."""

    def abort_uploads(self, key: str) -> None:
        """There are none."""

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _complete_file(self, key: str, fill: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """A complete and synced file in the object's folder; removed at the end unless it was renamed."""
        folder = self._path(key).parent
        with _translate_errors(key):
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
    """Every file under a folder, which need not exist. A folder that cannot be read is an error."""
    for parent, _, names in os.walk(folder, onerror=_ignore_missing):
        yield from (Path(parent, name) for name in names)


def _ignore_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _translate_errors(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _store_error(error, key) from error


def _store_error(error: OSError, key: str) -> FedPipeError:
    """The `UserError` or `TransientError` for an error of the operating system."""
    what = f"{key}: {error.strerror or error}"
    if error.errno in _FULL:
        return UserError("StoreFull", f"{what}; free space in the file system of the store")
    if error.errno in _DENIED:
        return UserError("StoreDenied", f"{what}; allow the operator's user to read and write there")
    if error.errno == errno.ENOENT:
        return UserError("ObjectMissing", f"{what}; the object is not in the store")
    if error.errno in _TRANSIENT:
        return TransientError("StoreUnavailable", what)
    return UserError("StoreRefused", what)
