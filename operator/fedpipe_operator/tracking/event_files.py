"""TensorBoard's event files as bytes: the same for the same figures, and a longer one begins with the shorter. Pure.

A file is a sequence of TFRecords, each an `Event` of tensorboard/compat/proto/event.proto. A dozen fields of it are all that
is needed, so they are written here: tensorboardX imports torch where it is installed, and TensorBoard itself has gRPC and a web server. Its
own reader reads them in tests/tracking/test_event_files.py.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DT_STRING: Final = 7
_POLYNOMIAL: Final = 0x82F63B78
"""Of CRC-32C, reflected."""
_MASK: Final = 0xA282EAD8
_HEADER: Final = 12
"""Bytes before a record: its length, and the checksum of that."""
_FOOTER: Final = 4
_STEP_AT: Final = 9
"""Where an event of these files has its step: behind its time."""
_VARINT_BYTES: Final = 10
"""The longest number of Protocol Buffers. Whoever owns the bucket may write one of megabytes, which would take hours to read."""


def _table() -> tuple[int, ...]:
    values = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        values.append(value)
    return tuple(values)


_CRC: Final = _table()


def beginning(at: float) -> bytes:
    """The record that every file begins with. `at` in Unix seconds, as below."""
    return _record(_double(1, at) + _integer(2, 0) + _bytes(3, b"brain.Event:2"))


def scalars(step: int, at: float, figures: Mapping[str, float]) -> bytes:
    """A record with these figures of a step, by tag."""
    values = b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in figures.items())
    return _record(_double(1, at) + _integer(2, step) + _bytes(5, values))


def text(step: int, at: float, tag: str, markdown: str) -> bytes:
    """A record with a text, which TensorBoard shows as Markdown."""
    tensor = _integer(1, _DT_STRING) + _bytes(2, _bytes(2, _integer(1, 1))) + _bytes(8, markdown.encode())
    value = _bytes(1, tag.encode()) + _bytes(8, tensor) + _bytes(9, _bytes(1, _bytes(1, b"text")))
    return _record(_double(1, at) + _integer(2, step) + _bytes(5, _bytes(1, value)))


def last_step(file: bytes) -> int | None:
    """The last step of a file of this module, of which each has figures; None if its beginning is damaged."""
    return max((step for step, _ in _records(file)), default=None)


def up_to(file: bytes, step: int) -> bytes:
    """The file's records up to this step; empty if it is damaged."""
    return b"".join(record for at, record in _records(file) if at <= step)


def table(rows: Iterable[tuple[str, str]]) -> str:
    """A Markdown table of parameters."""
    cells = "".join(f"| {name} | {value.replace('|', chr(92) + '|')} |\n" for name, value in rows)
    return f"| parameter | value |\n|---|---|\n{cells}"


def _records(file: bytes) -> Iterator[tuple[int, bytes]]:
    """Each record with its step, up to the first that is damaged."""
    at = 0
    while len(file) - at >= _HEADER + _STEP_AT + _FOOTER:
        (length,) = struct.unpack_from("<Q", file, at)
        end = at + _HEADER + length + _FOOTER
        event = file[at + _HEADER : end - _FOOTER]
        if end > len(file) or _record(event) != file[at:end]:
            return
        yield _step(event), file[at:end]
        at = end


def _step(event: bytes) -> int:
    value, shift = 0, 0
    for byte in event[_STEP_AT + 1 :][:_VARINT_BYTES]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 -- a varint's last byte
            break
    return value


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _key(number: int, wire: int) -> bytes:
    return bytes([number << 3 | wire])


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:  # noqa: PLR2004 -- seven bits a byte
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _integer(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _key(number, _FIXED64) + struct.pack("<d", value)


def _float(number: int, value: float) -> bytes:
    """As float32: beyond its range, infinity, which TensorBoard shows as such."""
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return _key(number, _FIXED32) + packed


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(value)) + value
