"""Tables of text, csv and tsv: the delimiter is found in the file."""

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from fedpipe_trainer.data.readers.record import LONGEST_RECORD, MIB, BadRowError, Record, Records, bad_data
from fedpipe_trainer.data.readers.text import is_utf8, lines, open_text

_DELIMITERS: Final = {".csv": ",;\t|", ".tsv": "\t,;|"}
"""By the name's end, those that are tried: of equally good ones, the first is taken."""
_SAMPLE_LINES: Final = 200
_SAMPLE_CHARACTERS: Final = MIB
_SUSPICIOUS_LINES: Final = 8
"""Lines within one field, each of which would be a row by itself, from which on they are taken for rows."""


def read_table(path: Path, columns: Sequence[str], kind: str) -> Records:
    """The rows of a table with a header.

    Args:
        path: of the file.
        columns: those that the task names; they tell which delimiter is the right one.
        kind: ".csv" or ".tsv".
    """
    return Records(_rows(path, columns, kind))


class _Lines:
    """The lines of a file for `csv.reader`, of which those of the current record are kept."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self.number = 0
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
        delimiter = _find_delimiter(sample, columns, _DELIMITERS[kind])
        read = _Lines(chain(sample, source))
        reader = csv.reader(read, delimiter=delimiter, strict=True)
        header: list[str] | None = None
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
                yield read.number, _record(header, values, read.record, delimiter)


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


def _find_delimiter(sample: Sequence[str], columns: Sequence[str], delimiters: str) -> str:
    """The delimiter by which the header has most of the columns; else by which most records have as many fields as the header."""

    def fit(delimiter: str) -> tuple[int, bool, float]:
        records = [values for values in csv.reader(sample, delimiter=delimiter) if any(map(str.strip, values))]
        header = [name.strip() for name in records[0]] if records else []
        same = sum(len(values) == len(header) for values in records)
        return sum(column in header for column in columns), len(header) > 1, same / max(1, len(records))

    try:
        return max(delimiters, key=fit)  # the first of equal ones
    except csv.Error:  # a field that is too long; reading the rows says so
        return delimiters[0]


def _header(values: Sequence[str], columns: Sequence[str], path: Path) -> list[str]:
    header = [name.strip() for name in values]
    if not all(map(is_utf8, header)):
        raise bad_data(f"the header of the data file {path} is not UTF-8: save it as UTF-8")
    for column in columns:
        if (count := header.count(column)) > 1:
            raise bad_data(f"the header of the data file {path} has column {column!r} {count} times: rename all but one of them")
    return header


def _record(header: Sequence[str], values: Sequence[str], record: Sequence[str], delimiter: str) -> Record:
    if len(values) != len(header):
        return BadRowError(f"it has {len(values)} fields, the header has {len(header)}", len(record))
    if _swallows(record, len(header), delimiter):
        return BadRowError(f"a quote that is not closed takes {len(record)} lines into one field", len(record))
    return dict(zip(header, values, strict=True))


def _swallows(record: Sequence[str], fields: int, delimiter: str) -> bool:
    """Whether the lines of one record would be rows by themselves: a quote too many then made them one field."""
    inner = record[1:-1]
    if len(inner) < _SUSPICIOUS_LINES or fields == 1:
        return False
    return all(len(values) == fields for values in csv.reader(inner, delimiter=delimiter))


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
