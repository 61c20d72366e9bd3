"""The interface of a store, and the rules for its keys.

A key is relative and cannot leave the store. No part of it begins with a dot: such names are of files that are still being
written, and that are renamed when they are complete.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedpipe_operator.errors import UserError
from fedpipe_trainer.contract import PartsUpload, PostForm

MAX_KEY_BYTES = 1024
"""The limit of S3."""


class Reader(Protocol):
    """One object, read by byte ranges: the `Source` from which the aggregation reads single tensors of a large file."""

    @property
    def size(self) -> int:
        """Size of the object in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the object ends."""


class Store(Protocol):
    """Objects by key. Every method raises `errors.TransientError` or `errors.UserError`."""

    def read(self, key: str) -> bytes | None:
        """The content of the object, or None if there is none."""

    def read_start(self, key: str, at_most: int) -> bytes | None:
        """The object's first bytes, at most `at_most`; None if there is no object. For what others wrote: it may have any size."""

    def size(self, key: str) -> int | None:
        """Size of the object in bytes, or None if there is none."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; fewer are an error (`ObjectMissing`, `ObjectTooShort`)."""

    def open_reader(self, key: str) -> AbstractContextManager[Reader]:
        """A reader of the object, to be closed by `with`."""

    def write(self, key: str, data: bytes) -> None:
        """Write the object atomically: a reader sees the old content or the new, never a part."""

    def write_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streamed."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; whether this call wrote it."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of the object `prefix` and of everything in the folder of that name; "" lists everything."""

    def delete(self, prefix: str) -> None:
        """Delete the objects of `list(prefix)`. An object that is already deleted is no error."""

    def url_to_read(self, key: str, seconds: int) -> str:
        """A URL with which anyone may GET this object, valid for `seconds`."""

    def url_to_write(self, key: str, seconds: int) -> str:
        """A URL with which anyone may PUT this object, valid for `seconds`."""

    def form_to_write(self, key: str, seconds: int, at_most: int) -> PostForm | None:
        """A form with which anyone may write this object, of at most so many bytes, valid for `seconds`.

        None: the store has no forms that bind the size.
        """

    def parts_to_write(self, key: str, seconds: int, size: int, part_bytes: int) -> PartsUpload | None:
        """A presigned upload in parts of this object, of at most `size` bytes, begun or gone on with; None if the store has none."""

    def abort_uploads(self, key: str) -> None:
        """End the uploads in parts of this object that were begun and not finished."""


def check_key(key: str) -> str:
    """The key, unchanged.

    Raises:
        UserError: `BadKey`, the key is empty, absolute or too long, or a part of it is empty or begins with a dot.
    """
    if not is_object_key(key) or "" in key.split("/") or not key.isprintable() or "\\" in key or len(key.encode()) > MAX_KEY_BYTES:
        advice = f"use names separated by '/', none of them empty or beginning with a dot, {MAX_KEY_BYTES} bytes at most"
        raise UserError("BadKey", f"{key!r} is not a valid key: {advice}")
    return key


def check_prefix(prefix: str) -> str:
    """The prefix without a trailing '/'; "" is the whole store. Raises like `check_key`."""
    return check_key(prefix.removesuffix("/")) if prefix else ""


def is_in_folder(key: str, folder: str) -> bool:
    """Whether the key is `folder` itself or lies in the folder of that name (`round/10` does not lie in `round/1`)."""
    return not folder or key == folder or key.startswith(folder + "/")


def is_object_key(key: str) -> bool:
    """Whether the key is that of an object, not of an unfinished file."""
    return not any(part.startswith(".") for part in key.split("/"))
