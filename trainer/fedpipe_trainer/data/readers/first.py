"""The first records of a file, so that a look at a large one takes seconds."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from fedpipe_trainer.data.readers.record import BadRowError, Record

MOST_ROWS: Final = 2000


class Bounds(NamedTuple):
    """How much of a file is read, at most."""

    rows: int = MOST_ROWS
    characters: int = 32 * 2**20
    """Of the texts in these rows, after which no further one is read."""


class FirstRecords:
    """The records of a file up to the bounds, each with its number; to be read once."""

    def __init__(self, numbered: Iterator[tuple[int, Record]], bounds: Bounds | None) -> None:
        """Without bounds, all are read."""
        self._numbered, self._bounds = numbered, bounds
        self.is_whole = True
        """Whether these are all; known when they were read."""

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """The records in the order of the file."""
        if self._bounds is None:
            yield from self._numbered
            return
        characters = 0
        for rows, (number, record) in enumerate(self._numbered):
            if rows == self._bounds.rows or characters > self._bounds.characters:
                self.is_whole = False
                return
            yield number, record
            characters += 0 if isinstance(record, BadRowError) else _characters(record)


def _characters(record: Mapping[str, object]) -> int:
    """Of the texts in a row, however deep they are; not by recursion, which a hostile row would exhaust."""
    left: list[object] = [*record.values()]
    characters = 0
    while left:
        value = left.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return characters
