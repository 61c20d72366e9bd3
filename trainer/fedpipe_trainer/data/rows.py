"""Reads the rows of a data file. The file extension determines the format: jsonl, csv or parquet.

Real files contain a few bad rows. They are skipped, counted and reported. If more than one row in a hundred is bad, the
file is probably the wrong one, and training on the other rows would hide that; so the task fails.
"""

import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed

Row = dict[str, str]

_MAX_BAD_SHARE: Final = 0.01
_LONGEST_FIELD: Final = 2**31 - 1
_PARQUET_BATCH: Final = 1024

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The good rows in the order of the file, and the number of rows that were skipped."""

    rows: list[Row]
    skipped: int
    lines: list[int]
    """The line of each row in its file (of parquet: the number of the row), for messages, which never quote a row."""
    dropped: int = 0
    """Good rows that were left out because the run does not have their label."""


class _BadRowError(Exception):
    """This row cannot be used; the message gives the reason."""


class BadValueError(Exception):
    """What a `ValueReader` raises. The message says what is wrong with the value, and quotes nothing of it."""


ValueReader = Callable[[Any], str]
"""Makes the text of a structured or optional column from its value in the file, which is None where the row has none."""

Record = Mapping[str, Any] | _BadRowError
"""A row as it is in the file, or the reason why it cannot be read."""


def read_rows(path: str | Path, columns: Sequence[str], readers: Mapping[str, ValueReader] | None = None) -> Rows:
    """Read these columns of the rows of the file `path`.

    A bad row (invalid JSON or CSV, not UTF-8, a column that is missing, empty or not text) is skipped, counted and logged.

    Args:
        path: the file.
        columns: those to read.
        readers: by column whose value is not simply a text: how it becomes one.

    Raises:
        TaskFailed: BadData if the file cannot be read, has no good row, or has more than 1 % bad rows. The message
            names the file and the line of the first bad row.
    """
    path = Path(path)
    rows: list[Row] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    try:
        for line, record in _reader(path)(path):
            try:
                rows.append(_select_columns(record, columns, readers or {}))
                lines.append(line)
            except _BadRowError as error:
                bad.append((line, str(error)))
    except OSError as error:
        raise _bad_data(f"the data file {path} cannot be read: {error.strerror or error}") from error
    _check_bad_share(path, rows, bad)
    return Rows(rows, len(bad), lines)


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[int, Record]]]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise _bad_data(f"the data file {path} has an unknown format: its name must end in one of {', '.join(_READERS)}")
    return reader


def _check_bad_share(path: Path, rows: list[Row], bad: list[tuple[int, str]]) -> None:
    if bad:
        line, reason = bad[0]
        summary = f"{len(bad)} of {len(rows) + len(bad)} rows of {path} cannot be used, the first at line {line}: {reason}"
        if not rows or len(bad) > _MAX_BAD_SHARE * (len(rows) + len(bad)):
            raise _bad_data(f"{summary}. At most 1 % of the rows may be bad: correct or remove them, or use the right file")
        _LOG.warning("%s. They are skipped", summary)
    if not rows:
        raise _bad_data(f"the data file {path} has no rows")


def _select_columns(record: Record, columns: Sequence[str], readers: Mapping[str, ValueReader]) -> Row:
    if isinstance(record, _BadRowError):
        raise record
    return {column: _read_value(record, column, readers[column]) if column in readers else _text(record, column) for column in columns}


def _read_value(record: Mapping[str, Any], column: str, read: ValueReader) -> str:
    try:
        text = read(record.get(column))
    except BadValueError as error:
        raise _BadRowError(f"column {column!r}: {error}") from error
    if not _is_utf8(text):
        raise _BadRowError(f"column {column!r} is not UTF-8")
    return text


def _text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None:
        # Without a header, the first row of a CSV file would be the names of its columns.
        raise _BadRowError(f"no value in column {column!r}, or no column of this name among the {len(record)} of the file")
    if not isinstance(value, str):
        raise _BadRowError(f"column {column!r} is of type {type(value).__name__}, not text")
    if not value.strip():
        raise _BadRowError(f"column {column!r} is empty")
    if not _is_utf8(value):
        raise _BadRowError(f"column {column!r} is not UTF-8")
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_object(line)


def _json_object(line: bytes) -> Record:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _BadRowError("it is not UTF-8")
    except (ValueError, RecursionError):
        return _BadRowError("it is not JSON")
    return value if isinstance(value, dict) else _BadRowError("it is JSON, but not an object")


def _csv(path: Path) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(_LONGEST_FIELD)
    # A byte that is not UTF-8 becomes a lone surrogate, which makes only its own row bad.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield reader.line_num, _BadRowError("it is not CSV")
                continue
            if header is None:
                header = values
            elif values:
                yield reader.line_num, _csv_record(header, values)


def _csv_record(header: list[str], values: list[str]) -> Record:
    if len(values) != len(header):
        return _BadRowError(f"it has {len(values)} fields, the header has {len(header)}")
    return dict(zip(header, values, strict=True))


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow as pa  # noqa: PLC0415 - the import takes half a second and only parquet files need it
    from pyarrow import parquet  # noqa: PLC0415 - only parquet files need it

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_PARQUET_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _bad_data(f"the data file {path} cannot be read as parquet ({type(error).__name__}): write it anew") from error


_READERS: Final[dict[str, Callable[[Path], Iterator[tuple[int, Record]]]]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _bad_data(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_DATA, message)
