"""The lines of a text file, plain or compressed: in UTF-8, each and all of them bounded."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from fedpipe_trainer.data.readers.record import LONGEST_RECORD, MIB, bad_data, most_bytes

COMPRESSIONS: Final = (".gz", ".zst")
_LOOKED_AT: Final = 4096
"""Bytes at the beginning of a file that tell its encoding."""
_MOST_NULS: Final = 0.1
"""Share of NUL bytes above which a file is no UTF-8: of English in UTF-16, half of the bytes are."""
_OTHER_MARKS: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks; those of UTF-32 begin with one of UTF-16's."""
_COMPRESSED: Final = {b"\x1f\x8b": "gzip: name it .gz", b"\x28\xb5\x2f\xfd": "zstd: name it .zst", b"PK\x03\x04": "zip: unpack it"}


class _Bounded(io.RawIOBase):
    """The content of a file, which fails when it gets too large for the file, or cannot be decompressed."""

    def __init__(self, content: Any, path: Path, most: int) -> None:  # noqa: ANN401 -- a file of Python or of pyarrow
        super().__init__()
        self._content, self._path, self._most, self._read = content, path, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 -- any writable buffer
        try:
            part = self._content.read(len(buffer))
        except (EOFError, zlib.error, ValueError, OSError) as error:  # pyarrow raises an OSError for damaged content
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise bad_data(f"the data file {self._path} cannot be decompressed: it is damaged, cut short, or of another format") from None
        self._read += len(part)
        if self._read > self._most:
            advice = "if it is no mistake, write it uncompressed"
            raise bad_data(f"the data file {self._path} has more than {self._most // MIB} MiB when it is decompressed: {advice}")
        buffer[: len(part)] = part
        return len(part)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The text of a file. Its line ends are kept; a byte that is not UTF-8 becomes a lone surrogate, which makes only its own row bad.

    Raises:
        TaskFailed: BadData, it is compressed otherwise than its name says, or has another encoding; while it is read: it is damaged, or
            has far more content than its size allows.
        OSError: it cannot be read.
    """
    with path.open("rb") as raw, io.BufferedReader(_content(raw, path), MIB) as file:
        _require_utf8(file.peek(_LOOKED_AT)[:_LOOKED_AT], path)
        with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield text


def lines(text: TextIO, path: Path) -> Iterator[str]:
    """The lines, with their ends: LF, CRLF or CR.

    Raises:
        TaskFailed: BadData, a line is longer than `LONGEST_RECORD`.
    """
    number = 0
    while line := text.readline(LONGEST_RECORD + 1):
        number += 1
        if len(line) > LONGEST_RECORD:
            raise bad_data(f"line {number} of the data file {path} is longer than {LONGEST_RECORD // MIB} MiB: write one row a line")
        yield line


def is_utf8(text: str) -> bool:
    """Whether the text has a form in UTF-8: no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _content(raw: BinaryIO, path: Path) -> _Bounded:
    size = path.stat().st_size
    match path.suffix.lower():
        case ".gz":
            return _Bounded(gzip.GzipFile(fileobj=raw), path, most_bytes(size))
        case ".zst":
            import pyarrow as pa  # noqa: PLC0415 - the import takes half a second, and only some files need it

            return _Bounded(pa.CompressedInputStream(raw, "zstd"), path, most_bytes(size))
        case _:
            return _Bounded(raw, path, most_bytes(size))


def _require_utf8(start: bytes, path: Path) -> None:
    for mark, name in _OTHER_MARKS.items():
        if start.startswith(mark):
            raise bad_data(f"the data file {path} is {name}, not UTF-8: save it as UTF-8")
    for mark, what in _COMPRESSED.items():
        if start.startswith(mark):
            raise bad_data(f"the data file {path} is compressed with {what}")
    if start.count(0) > _MOST_NULS * len(start):
        raise bad_data(f"the data file {path} is not UTF-8, but UTF-16 or no text: save it as UTF-8")
