"""Sequences of any length in little memory: what was added last is in memory, what came before in a file without a name.

Such a file is gone with the process, however that ends, so nothing of it is ever taken for whole. It is read from through the operating
system's page cache, which the kernel takes back when memory is needed.
"""

import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed

KEPT_BYTES: Final = 1 << 20
"""Of a sequence in memory, at most; a shorter one has no file."""
_WINDOW: Final = 1 << 16
"""Bytes that are read at once from the file: neighbours are mostly read next."""
_INTEGER: Final = 8
_INTEGERS_AT_ONCE: Final = 1 << 13
_MIB: Final = 1 << 20


class SpilledBytes:
    """Bytes to which more are added at the end."""

    def __init__(self, folder: Path | None = None) -> None:
        """Have a file, if one is needed, in this folder; None, or where the folder fails: in the system's for temporary files."""
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._written, self._last = 0, bytearray()
        self._window, self._window_at = b"", 0

    def __len__(self) -> int:
        return self._written + len(self._last)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes.

        Raises:
            TaskFailed: TransferFailed, no volume has room for them.
        """
        self._last += data
        if len(self._last) >= KEPT_BYTES:
            self._spill()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, which is within them."""
        if start >= self._written:
            return bytes(self._last[start - self._written : end - self._written])
        if end > self._written:
            return self.read(start, self._written) + self.read(self._written, end)
        if not self._window_at <= start <= end <= self._window_at + len(self._window):
            assert self._file is not None  # noqa: S101 -- there are bytes in it
            self._file.seek(start)
            self._window, self._window_at = self._file.read(max(end - start, _WINDOW)), start
        return self._window[start - self._window_at : end - self._window_at]

    def as_array(self, dtype: str) -> NDArray[Any]:
        """All bytes as numbers: mapped from the file, if there is one. Nothing may be added any more."""
        if self._file is None:
            return np.frombuffer(bytes(self._last), dtype=dtype)
        self._spill()
        return np.memmap(self._file, mode="r", dtype=dtype, shape=(self._written // np.dtype(dtype).itemsize,))

    def _spill(self) -> None:
        if self._file is None:
            self._file = _unnamed_file(self._folder)
            weakref.finalize(self, self._file.close)
        try:
            _write_at(self._file, self._written, self._last)
        except OSError as error:
            self._file = self._moved(self._file, error)
        self._written, self._last = len(self), bytearray()

    def _moved(self, full: IO[bytes], error: OSError) -> IO[bytes]:
        """A file on the volume for temporary files, with all bytes: this one may have room where the folder's has none."""
        try:
            found = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- it is open as long as the sequence is used
            weakref.finalize(self, found.close)
            for at in range(0, self._written, KEPT_BYTES):
                full.seek(at)
                _write_at(found, at, full.read(min(KEPT_BYTES, self._written - at)))
            _write_at(found, self._written, self._last)
        except OSError:
            size = f"{len(self) // _MIB} MiB of one column of the rows, or of their tokens, which is not all of them"
            advice = "give the site a larger cache volume, or raise the value `scratch` of the chart"
            message = f"no volume has room for {size} ({error.strerror}): {advice}"
            raise TaskFailed(FailureReason.TRANSFER_FAILED, message) from error
        full.close()
        return found


class Integers(Sequence[int]):
    """Whole numbers of 64 bits."""

    def __init__(self, numbers: Iterable[int] = (), folder: Path | None = None) -> None:
        """Take these numbers; of the folder see `SpilledBytes`."""
        self._content = SpilledBytes(folder)
        for number in numbers:
            self.append(number)

    def append(self, number: int) -> None:
        """Add a number."""
        self._content.append(number.to_bytes(_INTEGER, "little", signed=True))

    def __len__(self) -> int:
        return len(self._content) // _INTEGER

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> "Sequence[int]": ...
    def __getitem__(self, at: int | slice) -> "int | Sequence[int]":
        if isinstance(at, slice):
            return array("q", (self[one] for one in range(*at.indices(len(self)))))
        position = range(len(self))[at]
        return int.from_bytes(self._content.read(_INTEGER * position, _INTEGER * position + _INTEGER), "little", signed=True)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), _INTEGERS_AT_ONCE):
            end = min(start + _INTEGERS_AT_ONCE, len(self))
            yield from np.frombuffer(self._content.read(_INTEGER * start, _INTEGER * end), dtype="<i8").tolist()

    def __eq__(self, other: object) -> bool:
        """Whether the other has the same numbers; it may be any sequence of them."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # numbers can be added


def _write_at(file: IO[bytes], at: int, data: bytes | bytearray) -> None:
    file.seek(at)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _unnamed_file(folder: Path | None) -> IO[bytes]:
    """A file that no other process sees, unbuffered; of a folder that fails, as a read-only volume does, it is in another."""
    if folder is not None:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=folder, buffering=0)
    return tempfile.TemporaryFile(buffering=0)
