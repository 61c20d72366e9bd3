"""Tensors by name in a safetensors file that is read by byte range and written front to back.

Lowest layer of the aggregation: it never holds a whole file. A reader needs only `Source` (a length and "these bytes, please"), so a
local file and a store's range GET look the same; a writer needs only something with `write`. The format is
https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, tensors without holes).
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
import numpy.typing as npt

from fedpipe_trainer.contract import Artifact

Float32 = npt.NDArray[np.float32]

CHUNK: Final = 4 * 2**20
"""Bytes read at a time where a file is streamed."""
_MATRIX: Final = 2
_MAX_HEADER: Final = 100_000_000
"""Bytes; the safetensors library refuses longer headers too."""
_ITEM_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


class MalformedError(ValueError):
    """The bytes are no safetensors file (or a cut one); the message says where they stop making sense."""


class Source(Protocol):
    """Bytes at rest, read by range."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the source ends."""


class Sink(Protocol):
    """Where an output goes, front to back."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append these bytes."""


class FileSource:
    """A local file, opened (and closed) by the caller. Reads do not move the file's position."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()

    @property
    def size(self) -> int:
        """Length in bytes, now."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `Source.read`."""
        return os.pread(self._descriptor, length, offset)


def chunks(source: Source) -> Iterator[bytes]:
    """The source front to back, `CHUNK` bytes at a time."""
    offset = 0
    while data := source.read(offset, CHUNK):
        yield data
        offset += len(data)


def sha256_of(source: Source) -> str:
    """SHA-256 of the whole source in hex, streamed."""
    digest = hashlib.sha256()
    for data in chunks(source):
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: how it is stored and where its bytes are (from the start of the file)."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header was read and found sound; tensors are read on demand, every time anew."""

    source: Source
    entries: Mapping[str, Entry]

    def read(self, key: str) -> Float32:
        """The float32 tensor under this key.

        Raises:
            KeyError: there is no such key.
            MalformedError: it is not float32, or the source ends before it does.
        """
        entry = self.entries[key]
        if entry.dtype != "F32":
            raise MalformedError(f"tensor {key} is {entry.dtype}, not F32")
        data = _exactly(self.source, entry.offset, entry.length, f"tensor {key}")
        return np.frombuffer(data, dtype="<f4").reshape(entry.shape)


def open_tensors(source: Source) -> TensorFile:
    """Read and check the header.

    Raises:
        MalformedError: the bytes are no safetensors file, or a cut one.
    """
    length = int.from_bytes(_exactly(source, 0, 8, "the header's length"), "little")
    if length > min(_MAX_HEADER, source.size - 8):
        raise MalformedError(
            f"the header claims {length} bytes, the file has {source.size} and {_MAX_HEADER} is the most a header may have"
        )
    header = _parse(_exactly(source, 8, length, "the header"))
    # Interned, as a round holds the entries of all its sites, and they are mostly alike.
    entries = {sys.intern(key): _entry(key, value, 8 + length) for key, value in header.items() if key != "__metadata__"}
    _without_holes(entries, 8 + length, source.size)
    return TensorFile(source, entries)


def _exactly(source: Source, offset: int, length: int, what: str) -> bytes:
    data = source.read(offset, length)
    if len(data) != length:
        raise MalformedError(f"{what} ends after {len(data)} of {length} bytes")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedError("the header names a key twice")
    return found


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise MalformedError("the header is not a JSON object")
    return header


def _entry(key: str, value: object, start: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in _ITEM_BYTES:
            if not all(type(size) is int and size >= 0 for size in shape):
                raise MalformedError(f"tensor {key} has the shape {shape}")
            if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
                raise MalformedError(f"tensor {key} of shape {shape} and dtype {dtype} has {end - begin} bytes")
            return Entry(
                dtype=sys.intern(dtype),
                shape=_shared(*shape) if len(shape) == _MATRIX else tuple(shape),
                offset=start + begin,
                length=end - begin,
            )
        case _:
            raise MalformedError(f"the header's entry of tensor {key} is not {{dtype, shape, data_offsets}} of a known dtype")


@lru_cache(maxsize=1024)
def _shared(rows: int, columns: int) -> tuple[int, int]:
    """One tuple for all matrices of this shape."""
    return rows, columns


def _without_holes(entries: Mapping[str, Entry], start: int, size: int) -> None:
    position = start
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].length)):
        if entry.offset != position:
            raise MalformedError(f"tensor {key} starts at byte {entry.offset}, expected {position}")
        position += entry.length
    if position != size:
        raise MalformedError(f"the tensors end at byte {position}, the file at {size}")


class TensorWriter:
    """Writes float32 tensors whose shapes are known beforehand: header first, then each tensor as it comes, in the order of `shapes`."""

    def __init__(self, sink: Sink, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._sink = sink
        self._shapes = dict(shapes)
        self._waiting = list(shapes)[::-1]
        self._digest = hashlib.sha256()
        self._size = 0
        self._write(_header(shapes))

    def write(self, key: str, tensor: Float32) -> None:
        """Append the next tensor.

        Raises:
            ValueError: another key was due, or the shape or dtype is not the announced one.
        """
        due = self._waiting.pop() if self._waiting else None
        if key != due:
            raise ValueError(f"tensor {key} was written where {due} was due")
        if tensor.shape != self._shapes[key] or tensor.dtype != np.float32:
            raise ValueError(f"tensor {key} is {tensor.dtype} {tensor.shape}, announced was float32 {self._shapes[key]}")
        self._write(np.ascontiguousarray(tensor, dtype="<f4").data.cast("B") if tensor.size else b"")

    def close(self, name: str) -> Artifact:
        """What was written, by size and hash. The sink stays the caller's to close.

        Raises:
            ValueError: announced tensors are missing.
        """
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} announced tensors were not written, the next is {self._waiting[-1]}")
        return Artifact(name=name, size=self._size, sha256=self._digest.hexdigest())

    def _write(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self._digest.update(data)
        self._size += len(data)


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    entries: dict[str, object] = {}
    position = 0
    for key, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        entries[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text
