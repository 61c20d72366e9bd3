"""Adapter files: safetensors files that are read by byte range and written sequentially, and the keys that peft gives their tensors.

The lowest layer of the aggregation: it never holds a whole file in memory. A reader needs only a `Source` (a length and ranged reads), so
that a local file and ranged GET requests to a store look the same; a writer needs only something with `write`. The format is
https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, tensors without gaps).
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

from fedpipe_trainer.codecs import DTYPES, Array
from fedpipe_trainer.contract import Artifact

Float32 = npt.NDArray[np.float32]

CHUNK: Final = 4 * 2**20
"""Bytes read at a time where a file is streamed."""
_MATRIX_DIMENSIONS: Final = 2
_MAX_HEADER: Final = 100_000_000
"""Bytes; the safetensors library refuses longer headers, too."""
_ITEM_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


_ALL_FLOAT32: Final[Mapping[str, str]] = {}


class MalformedError(ValueError):
    """The bytes are not a complete safetensors file; the message says what is wrong and where."""


def factor_keys(weight: str) -> tuple[str, str]:
    """The keys of (A, B) of the weight with this module path, as peft writes them."""
    stem = f"base_model.model.{weight}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


class Source(Protocol):
    """Stored bytes, read by range."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only at the end of the source."""


class Sink(Protocol):
    """Where an output is written, sequentially."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append these bytes."""


class FileSource:
    """A local file, opened and closed by the caller. Reads do not change the file's position."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()

    @property
    def size(self) -> int:
        """Current length in bytes."""
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `Source.read`."""
        return os.pread(self._descriptor, length, offset)


def read_chunks(source: Source) -> Iterator[bytes]:
    """The source from start to end, `CHUNK` bytes at a time."""
    offset = 0
    while data := source.read(offset, CHUNK):
        yield data
        offset += len(data)


def sha256_of(source: Source) -> str:
    """SHA-256 of the whole source in hex, streamed."""
    digest = hashlib.sha256()
    for data in read_chunks(source):
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its type and shape, and where its bytes are (from the start of the file)."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header has been read and checked; a tensor is read from the source at every call."""

    source: Source
    entries: Mapping[str, Entry]

    def read(self, key: str) -> Float32:
        """The float32 tensor under this key.

        Raises:
            KeyError: there is no such key.
            MalformedError: the tensor is not float32, or the source ends before the tensor does.
        """
        entry = self.entries[key]
        if entry.dtype != "F32":
            raise MalformedError(f"tensor {key} is {entry.dtype}, not F32")
        return np.asarray(self.read_array(key), np.float32)

    def read_array(self, key: str) -> Array:
        """The tensor under this key, of one of the types of `fedpipe_trainer.codecs.DTYPES`.

        Raises:
            KeyError: there is no such key.
            MalformedError: the tensor is of another type, or the source ends before the tensor does.
        """
        entry = self.entries[key]
        if entry.dtype not in DTYPES:
            raise MalformedError(f"tensor {key} is {entry.dtype}, not one of {', '.join(DTYPES)}")
        data = _read_exactly(self.source, entry.offset, entry.length, f"tensor {key}")
        return np.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def open_tensors(source: Source, max_header: int = _MAX_HEADER) -> TensorFile:
    """Read and check the header, which has at most `max_header` bytes.

    Raises:
        MalformedError: the bytes are not a complete safetensors file.
    """
    length = int.from_bytes(_read_exactly(source, 0, 8, "the header's length"), "little")
    if length > min(max_header, source.size - 8):
        raise MalformedError(
            f"the header claims {length} bytes, but the file has {source.size} bytes and a header may have at most {max_header}"
        )
    header = _parse_header(_read_exactly(source, 8, length, "the header"))
    # Interned because a round holds the entries of all its sites, which are mostly equal.
    entries = {sys.intern(key): _parse_entry(key, value, 8 + length) for key, value in header.items() if key != "__metadata__"}
    _check_contiguous(entries, 8 + length, source.size)
    return TensorFile(source, entries)


def _read_exactly(source: Source, offset: int, length: int, what: str) -> bytes:
    data = source.read(offset, length)
    if len(data) != length:
        raise MalformedError(f"{what} ends after {len(data)} of {length} bytes")
    return data


def _dict_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise MalformedError("the header has a duplicate key")
    return values


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_dict_of_unique_keys)
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise MalformedError("the header is not a JSON object")
    return header


def _parse_entry(key: str, value: object, start: int) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in _ITEM_BYTES:
            if not all(type(size) is int and size >= 0 for size in shape):
                raise MalformedError(f"tensor {key} has the invalid shape {shape}")
            if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
                raise MalformedError(f"tensor {key} of shape {shape} and dtype {dtype} has {end - begin} bytes")
            return Entry(
                dtype=sys.intern(dtype),
                shape=_interned_shape(*shape) if len(shape) == _MATRIX_DIMENSIONS else tuple(shape),
                offset=start + begin,
                length=end - begin,
            )
        case _:
            raise MalformedError(f"the header's entry of tensor {key} is not {{dtype, shape, data_offsets}} with a known dtype")


@lru_cache(maxsize=1024)
def _interned_shape(rows: int, columns: int) -> tuple[int, int]:
    """The same tuple for all matrices of this shape."""
    return rows, columns


def _check_contiguous(entries: Mapping[str, Entry], start: int, size: int) -> None:
    position = start
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].length)):
        if entry.offset != position:
            raise MalformedError(f"tensor {key} starts at byte {entry.offset}, expected {position}")
        position += entry.length
    if position != size:
        raise MalformedError(f"the tensors end at byte {position}, the file ends at byte {size}")


class TensorWriter:
    """Writes tensors of declared shapes: first the header, then one tensor after the other in the order of `shapes`."""

    def __init__(self, sink: Sink, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] = _ALL_FLOAT32) -> None:
        """`dtypes` has the keys of tensors that are not float32."""
        self._sink = sink
        self._shapes, self._dtypes = dict(shapes), dict(dtypes)
        self._pending = list(shapes)[::-1]
        self._digest = hashlib.sha256()
        self._size = 0
        self._write(_header(shapes, dtypes))

    def write(self, key: str, tensor: Array) -> None:
        """Append the next tensor.

        Raises:
            ValueError: another key was expected, or the shape or dtype is not the declared one.
        """
        expected = self._pending.pop() if self._pending else None
        if key != expected:
            raise ValueError(f"tensor {key} was written where {expected} was expected")
        dtype = DTYPES[self._dtypes.get(key, "F32")]
        if tensor.shape != self._shapes[key] or tensor.dtype != dtype:
            raise ValueError(f"tensor {key} is {tensor.dtype} {tensor.shape}, but was declared as {dtype} {self._shapes[key]}")
        self._write(np.ascontiguousarray(tensor, dtype=dtype).data.cast("B") if tensor.size else b"")

    def close(self, name: str) -> Artifact:
        """The size and hash of what was written. The caller closes the sink.

        Raises:
            ValueError: declared tensors are missing.
        """
        if self._pending:
            raise ValueError(f"{len(self._pending)} declared tensors were not written, the first is {self._pending[-1]}")
        return Artifact(name=name, size=self._size, sha256=self._digest.hexdigest())

    def _write(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self._digest.update(data)
        self._size += len(data)


def _header(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {}
    position = 0
    for key, shape in shapes.items():
        dtype = dtypes.get(key, "F32")
        end = position + _ITEM_BYTES[dtype] * math.prod(shape)
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format requires tensors aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text
