"""Reads the rows of a data file or folder; `readers` has the formats.

Real files contain a few bad rows. They are skipped, counted and reported. If more than one row in a hundred is bad, the
file is probably the wrong one, and training on the other rows would hide that; so the task fails.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedpipe_trainer.contract import named_columns
from fedpipe_trainer.data.readers import BadRowError, Bounds, FirstRecords, Record, bad_data, read_records
from fedpipe_trainer.data.spill import Integers
from fedpipe_trainer.data.table import Row, RowTable
from fedpipe_trainer.data.values import BadValueError, Columns, ValueReader, lacking_columns, select_columns
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.printable import printable

__all__ = ["BadRows", "BadValueError", "Row", "Rows", "ValueReader", "check_bad_share", "read_rows"]

_MAX_BAD_SHARE: Final = 0.01
_TABLES: Final = frozenset({".csv", ".tsv"})
"""Without a header, the first row would be the names of its columns."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The good rows in the order of the file, and the number of rows that were skipped."""

    rows: RowTable
    skipped: int
    lines: Sequence[int]
    """The number of each row in its file, for messages, which never quote a row."""
    unit: str = "line"
    """What `lines` counts: lines of a text, rows of a file that has no lines."""
    dropped: int = 0
    """Good rows that were left out because the run does not have their label."""
    notes: tuple[str, ...] = ()
    """Why rows were left out, each note with their number; they quote nothing."""
    folder: Path | None = None
    """Where many rows are on the disk, see `SpilledBytes`."""
    is_whole: bool = True
    """Whether these are the rows of the whole file."""

    def at(self, kept: Sequence[int]) -> "Rows":
        """Those of these rows alone, by their positions."""
        return replace(self, rows=self.rows.at(kept), lines=Integers((self.lines[at] for at in kept), self.folder))


@dataclass
class BadRows:
    """The rows that cannot be used."""

    count: int = 0
    first: tuple[int, str] = (0, "")
    """Its number, and the reason."""
    lacking: frozenset[str] | None = None
    """The columns that none of them has that could be read; None: none could."""
    readable: int = 0

    def add(self, number: int, error: BadRowError) -> None:
        """Count this row."""
        if not self.count:
            self.first = (number, str(error))
        self.count += error.rows

    def note_lacking(self, record: Record, columns: Columns) -> None:
        """Keep of the lacking columns those that this record lacks, too."""
        if not isinstance(record, BadRowError):
            self.readable += 1
            if self.lacking != frozenset():
                lacked = lacking_columns(record, columns)
                self.lacking = lacked if self.lacking is None else self.lacking & lacked

    def summary(self, path: Path, good: int, unit: str) -> str:
        """How many rows of a file these are, beside so many good ones, and why the first is one."""
        number, reason = self.first
        return f"{self.count} of {good + self.count} rows of {path} cannot be used, the first at {unit} {number}: {reason}"


def read_rows(  # noqa: PLR0913 -- what is read of a file, and how much of it
    path: str | Path,
    columns: Sequence[str],
    readers: Mapping[str, ValueReader] | None = None,
    check: Callable[[Row], None] | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    folder: Path | None = None,
    bounds: Bounds | None = None,
) -> Rows:
    """Read these columns of the rows of the file or folder `path`: they alone are decoded and kept, on the disk if they are many.

    A bad row (invalid JSON or CSV, not UTF-8, a column that is missing, empty or not text) is skipped, counted and logged.

    Args:
        path: of the file or folder; see `readers`.
        columns: names, or paths such as `review.body` into nested rows.
        readers: by column whose value is not simply a text: how it becomes one.
        check: raises `BadValueError` for a row whose columns do not fit together.
        fields: by column, the field of the run's spec that names it, for messages.
        folder: on whose volume many rows are kept, see `SpilledBytes`.
        bounds: how much of the file is read, at most; None: all of it.

    Raises:
        TaskFailed: BadData if the file cannot be read, has no good row, or has more than 1 % bad rows. The message
            names the file and the line of the first bad row.
    """
    path = Path(path)
    wanted = Columns(columns, readers or {}, check)
    good, lines, bad = RowTable(columns, folder), Integers(folder=folder), BadRows()
    try:
        numbered, unit = read_records(path, columns)
        first = FirstRecords(numbered, bounds)
        for number, record in first:
            try:
                good.append(select_columns(record, wanted))
                lines.append(number)
            except BadRowError as error:
                bad.add(number, error)
                if not len(good):
                    bad.note_lacking(record, wanted)
    except OSError as error:
        raise bad_data(f"the data file {path} cannot be read: {error.strerror or type(error).__name__}") from error
    if bad.lacking and not len(good) and bad.count - bad.readable <= _MAX_BAD_SHARE * bad.count:
        raise _no_such_columns(path, [column for column in columns if column in bad.lacking], fields or {}, is_whole=first.is_whole)
    check_bad_share(path, len(good), bad, unit)
    notes = (bad.summary(path, len(good), unit),) if bad.count else ()
    return Rows(good, bad.count, lines, unit, notes=notes, folder=folder, is_whole=first.is_whole)


def _no_such_columns(path: Path, columns: Sequence[str], fields: Mapping[str, str], *, is_whole: bool) -> TaskFailed:
    """That no row of the file has these columns, most often because the run's author misspelled them."""
    do = "do" if len(columns) > 1 else "does"
    where = path if is_whole else f"the first rows of {path}"
    named = " and ".join(dict.fromkeys(fields[column] for column in columns if column in fields)) or "the task"
    header = ", or write their names into its first line" if set(path.suffixes) & _TABLES else ""
    message = f"{named_columns(columns, fields)} {do} not exist in {where}: correct {named}, or use the right file{header}"
    return bad_data(message.removeprefix("the "))


def check_bad_share(path: Path, good: int, bad: BadRows, unit: str) -> None:
    """Check that no more than one row in a hundred is bad.

    Raises:
        TaskFailed: BadData; there is no good row, or too many are bad.
    """
    if bad.count:
        summary = bad.summary(path, good, unit)
        if not good or bad.count > _MAX_BAD_SHARE * (good + bad.count):
            raise bad_data(f"{summary}. At most 1 % of the rows may be bad: correct or remove them, or use the right file")
        _LOG.warning("%s. They are skipped", printable(summary))
    if not good:
        raise bad_data(f"the data file {path} has no rows")
