"""What a store can do. The rest of the operator is written against this."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Reader(Protocol):
    """One object, read by byte ranges: the `Source` from which the aggregation takes tensors out of a large file."""

    @property
    def size(self) -> int:
        """Bytes in the object."""

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the object ends."""


class Store(Protocol):
    """Objects by key. Every method raises `errors.TransientError` or `errors.UserError`, and nothing else on purpose."""

    def read(self, key: str) -> bytes | None:
        """The whole object, or None when there is none."""

    def size(self, key: str) -> int | None:
        """Bytes in the object, or None when there is none."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; less is an error (`ObjectMissing`, `ObjectTooShort`)."""

    def open_reader(self, key: str) -> AbstractContextManager[Reader]:
        """The object for reading by ranges, to be closed by `with`."""

    def write(self, key: str, data: bytes) -> None:
        """Write the object whole: a reader sees the old bytes or the new ones, never a part."""

    def write_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streamed."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; whether this call wrote it."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of the object `prefix` and of everything in the folder of that name; "" is all."""

    def delete(self, prefix: str) -> None:
        """Delete what `list(prefix)` names. What is already gone is no error."""

    def url_to_read(self, key: str, seconds: int) -> str:
        """A URL with which anyone may GET this one object for so many seconds."""

    def url_to_write(self, key: str, seconds: int) -> str:
        """A URL with which anyone may PUT this one object for so many seconds."""
