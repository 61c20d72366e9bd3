"""Tables of text, csv and tsv: the delimiter is found in the file."""

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple

from fedpipe_trainer.data.readers.record import LONGEST_RECORD, MIB, BadRowError, Record, Records, bad_data
from fedpipe_trainer.data.readers.swallowed import are_rows, profile_of
from fedpipe_trainer.data.readers.text import is_utf8, lines, open_text

_DELIMITERS: Final = {".csv": ",;\t|", ".tsv": "\t,;|"}
"""By the name's end, those that are tried: of equally good ones, the first is taken."""
_SAMPLE_LINES: Final = 200
_SAMPLE_CHARACTERS: Final = MIB
_KEPT_ROWS: Final = 200
_LONGEST_KEPT: Final = 4096
"""Characters of a row that is kept to compare others with."""
_NAMED_DELIMITER: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""The first line of a table that names its delimiter to Excel."""


def read_table(path: Path, columns: Sequence[str], kind: str) -> Records:
    """The rows of a table with a header.

    Args:
        path: of the file.
        columns: those that the task names; they tell which delimiter is the right one.
        kind: ".csv" or ".tsv".
    """
    return Records(_rows(path, columns, kind))


class _Dialect(NamedTuple):
    """How the fields of a line are divided."""

    delimiter: str
    skips_space: bool = False
    """Whether space after a delimiter is no part of the field, so that a quote may follow it."""

    def read(self, source: Iterator[str] | Sequence[str], *, strict: bool = False) -> Iterator[list[str]]:
        """The fields of each record."""
        return csv.reader(source, delimiter=self.delimiter, skipinitialspace=self.skips_space, strict=strict)


class _Lines:
    """The lines of a file for `csv.reader`, of which those of the current record are kept."""

    def __init__(self, source: Iterator[str], number: int) -> None:
        self._source = source
        self.number = number
        """Of the last line that was read."""
        self.record: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._source)
        self.number += 1
        self.record.append(line)
        return line


def _rows(path: Path, columns: Sequence[str], kind: str) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(LONGEST_RECORD)
    with open_text(path) as text:
        source = lines(text, path)
        sample = _sample(source)
        named = _NAMED_DELIMITER.fullmatch(sample[0]) if sample else None
        first = sample[1:] if named else sample
        dialect = _find_dialect(first, columns, named[1] if named else _DELIMITERS[kind])
        read = _Lines(chain(first, source), len(sample) - len(first))
        reader = dialect.read(read, strict=True)
        header: list[str] | None = None
        known = _Known(first, dialect)
        while True:
            read.record.clear()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield read.number, _broken(error, read, path)
                continue
            if not any(map(str.strip, values)):
                continue
            if header is None:
                header = _header(values, columns, path)
            else:
                yield read.number, _record(header, values, read.record, known)


class _Known:
    """Rows of the table that others are compared with: those of its beginning, and the last ones that were read."""

    def __init__(self, sample: Sequence[str], dialect: _Dialect) -> None:
        self.dialect = dialect
        self._sample = sample
        self._last: deque[Sequence[str]] = deque(maxlen=_KEPT_ROWS)

    def add(self, values: Sequence[str], record: Sequence[str]) -> None:
        """Keep a row, if it is one line of no great length."""
        if len(record) == 1 and len(record[0]) <= _LONGEST_KEPT:
            self._last.append(values)

    def rows(self, fields: int) -> list[Sequence[str]]:
        """Those with so many fields. The sample's header is none, and its last record may be cut."""
        return [values for values in chain(self._beginning, self._last) if len(values) == fields]

    @cached_property
    def _beginning(self) -> list[list[str]]:
        return [values for values in self.dialect.read(self._sample) if any(map(str.strip, values))][1:-1]


def _sample(source: Iterator[str]) -> list[str]:
    """The first lines of a file."""
    found: list[str] = []
    characters = 0
    for line in source:
        found.append(line)
        characters += len(line)
        if len(found) == _SAMPLE_LINES or characters > _SAMPLE_CHARACTERS:
            break
    return found


def _find_dialect(sample: Sequence[str], columns: Sequence[str], delimiters: str) -> _Dialect:
    """The one by which the header has most of the columns; else by which most records have as many fields as the header."""

    def fit(dialect: _Dialect) -> tuple[int, bool, float]:
        records = [values for values in dialect.read(sample) if any(map(str.strip, values))]
        header = [name.strip() for name in records[0]] if records else []
        same = sum(len(values) == len(header) for values in records)
        return sum(column in header for column in columns), len(header) > 1, same / max(1, len(records))

    header = next((line for line in sample if line.strip()), "")
    spaced = {one for one in delimiters if 0 < header.count(one) == header.count(f"{one} ")}
    tried = [_Dialect(one, skips) for one in delimiters for skips in ((True, False) if one in spaced else (False, True))]
    try:
        return max(tried, key=fit)  # the first of equal ones
    except csv.Error:  # a field that is too long; reading the rows says so
        return tried[0]


def _header(values: Sequence[str], columns: Sequence[str], path: Path) -> list[str]:
    header = [name.strip() for name in values]
    if not all(map(is_utf8, header)):
        raise bad_data(f"the header of the data file {path} is not UTF-8: save it as UTF-8")
    for column in columns:
        if (count := header.count(column)) > 1:
            raise bad_data(f"the header of the data file {path} has column {column!r} {count} times: rename all but one of them")
    return header


def _record(header: Sequence[str], values: Sequence[str], record: Sequence[str], known: _Known) -> Record:
    if len(values) != len(header):
        return BadRowError(f"it has {len(values)} fields, the header has {len(header)}", len(record))
    if len(record) > 1 and _swallows(record, values, known):
        return BadRowError(f"a quote that is not closed takes {len(record)} lines into one field", len(record))
    known.add(values, record)
    return dict(zip(header, values, strict=True))


def _swallows(record: Sequence[str], values: Sequence[str], known: _Known) -> bool:
    """Whether the lines of one record are rows by themselves: a quote too many then made them one field."""
    if len(values) == 1:
        return False
    found = []
    for row in _lines_as_rows(record, known.dialect):
        if len(row) != len(values):
            return False
        found.append(row)
    quoted = next(at for at, value in enumerate(values) if "\n" in value or "\r" in value)
    return are_rows(found, profile_of([*known.rows(len(values)), values]), quoted, known.dialect.delimiter)


def _lines_as_rows(record: Sequence[str], dialect: _Dialect) -> Iterator[list[str]]:
    """The fields of each line of a record if the quotes around its lines were literal ones."""

    def fields(line: str) -> list[str]:
        return next(dialect.read([line]), [])

    opened = fields(record[0])  # the last one goes on in the next line
    yield opened[:-1] + (fields(opened[-1]) or [""])
    yield from map(fields, islice(record, 1, len(record) - 1))
    closed = fields(f'"{record[-1]}')
    yield (fields(closed[0]) or [""]) + closed[1:]


def _broken(error: csv.Error, read: _Lines, path: Path) -> BadRowError:
    """The lines of a record that is not CSV.

    Raises:
        TaskFailed: BadData, a quote is not closed: what follows is in one field, up to the end of the file or to what a field may have.
    """
    first = read.number - len(read.record) + 1
    at_end = "unexpected end of data" in str(error)
    if at_end or "field limit" in str(error):
        where = "the end of the file" if at_end else f"{LONGEST_RECORD // MIB} MiB later"
        found = f"a quote that is opened in the row at line {first} of the data file {path} is not closed until {where}"
        raise bad_data(f"{found}, which takes {len(read.record)} lines into one field: close it, or write a literal quote twice")
    return BadRowError("it is not CSV: a quote in it is not closed, or not written twice", len(read.record))
