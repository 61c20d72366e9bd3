"""Reads an object that was written in pieces: objects `0000`, `0001`, … of a folder, which are one file."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, takewhile

from fedpipe_operator import names
from fedpipe_operator.errors import UserError
from fedpipe_operator.store.protocol import Reader, Store


@dataclass(frozen=True)
class PiecesReader:
    """The pieces, one after the other."""

    pieces: tuple[Reader, ...]
    ends: tuple[int, ...]
    """Where each ends in the file."""

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return self.ends[-1]

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the last piece ends. Raises as the reader of a piece."""
        found, end = bytearray(), min(offset + length, self.size)
        while offset < end:
            number = bisect_right(self.ends, offset)
            found += self.pieces[number].read(offset - self._start(number), min(end, self.ends[number]) - offset)
            offset = min(end, self.ends[number])
        return bytes(found)

    def _start(self, number: int) -> int:
        return self.ends[number - 1] if number else 0


@contextmanager
def open_whole_or_pieces(store: Store, key: str, folder: str, size: int) -> Iterator[Reader]:
    """A reader of the object, or of its pieces in this folder if it is not there.

    Args:
        store: that has them.
        key: of the object.
        folder: of its pieces.
        size: bytes that the object is said to have. Pieces behind these are left out: an earlier pod of the same job may have written
            smaller ones, and so more.

    Raises:
        UserError: `ObjectMissing`, there is neither.
    """
    with ExitStack() as opened:
        if store.size(key) is not None:
            yield opened.enter_context(store.open_reader(key))
            return
        keys = pieces_in(store, folder)
        if not keys:
            raise UserError("ObjectMissing", f"{key}: the object is not in the store, and nor are pieces of it")
        pieces, ends = list[Reader](), list[int]()
        for one in keys:
            pieces.append(opened.enter_context(store.open_reader(one)))
            ends.append(pieces[-1].size + (ends[-1] if ends else 0))
            if ends[-1] >= size:
                break
        yield PiecesReader(tuple(pieces), tuple(ends))


def pieces_in(store: Store, folder: str) -> list[str]:
    """The keys of the pieces, up to the first that is missing."""
    found = set(store.list(folder))
    return list(takewhile(found.__contains__, (names.piece(folder, number) for number in count())))
