"""What a reader makes of a data file: records, and the reasons why some cannot be read. The bounds that hold for every format."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed

MIB: Final = 2**20
LONGEST_RECORD: Final = 64 * MIB
"""Characters of a row. No text to train on is longer, and a file without line ends must not fill the memory."""
SMALL_FILE: Final = 256 * MIB
LARGEST_EXPANSION: Final = 200
"""How many times its size a file may have when it is read, once that is more than `SMALL_FILE`: real text is compressed to a tenth."""


class BadRowError(Exception):
    """This row cannot be used; the message gives the reason."""

    def __init__(self, reason: str, rows: int = 1) -> None:
        super().__init__(reason)
        self.rows = rows
        """How many rows of the file it takes with it."""


class MissingColumnError(BadRowError):
    """The file has no such column. It stands in the place of the value, as some columns are optional."""

    def __init__(self, columns: int) -> None:
        super().__init__("the file lacks a column")
        self.columns = columns
        """Those that the file has."""


Record = Mapping[str, Any] | BadRowError
"""A row as it is in the file, or the reason why it cannot be read."""


class Records(NamedTuple):
    """The records of a file, each with its number."""

    numbered: Iterator[tuple[int, Record]]
    unit: str = "line"
    """What the numbers count, from 1: lines of a text, rows of a file that has none."""


class RepeatedNames(dict[str, Any]):
    """A record in which some names are there more than once."""

    repeated: frozenset[str] = frozenset()


def most_bytes(size: int) -> int:
    """Bytes, at most, that a file of this size may have when it is read."""
    return max(SMALL_FILE, LARGEST_EXPANSION * size)


def bad_data(message: str) -> TaskFailed:
    """The failure of a task whose data cannot be used."""
    return TaskFailed(FailureReason.BAD_DATA, message)
