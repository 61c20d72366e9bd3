"""Reads the rows of a data file: jsonl, csv or parquet, by the ending of its name.

Real files have a few broken rows. One is skipped, counted and reported; more than one in a hundred means that the
file is not what the run takes it for, and training on the rest would hide that.
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

_TOLERATED: Final = 0.01
_LONGEST_FIELD: Final = 2**31 - 1
_PARQUET_BATCH: Final = 1024

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The good rows, in the order of the file, and how many were skipped."""

    rows: list[Row]
    skipped: int


class _BadRowError(Exception):
    """This row cannot be used; the message says why."""


Record = Mapping[str, Any] | _BadRowError
"""A row as it stands in the file, or why it could not be read as one."""


def read_rows(path: str | Path, columns: Sequence[str]) -> Rows:
    """The rows of the file `path`, cut down to these columns.

    A bad row (broken JSON or CSV, not UTF-8, a column missing, empty or not text) is skipped, counted and logged.

    Raises:
        TaskFailed: BadData when the file cannot be read, has no good row, or more than 1 % bad ones; the message
            names the file, and the first bad line.
    """
    path = Path(path)
    rows: list[Row] = []
    bad: list[tuple[int, str]] = []
    try:
        for line, record in _reader(path)(path):
            try:
                rows.append(_row(record, columns))
            except _BadRowError as error:
                bad.append((line, str(error)))
    except OSError as error:
        raise _failed(f"the data file {path} cannot be read: {error.strerror or error}") from error
    _judge(path, rows, bad)
    return Rows(rows, len(bad))


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[int, Record]]]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise _failed(f"the data file {path} is of an unknown kind: its name must end in one of {', '.join(_READERS)}")
    return reader


def _judge(path: Path, rows: list[Row], bad: list[tuple[int, str]]) -> None:
    if bad:
        line, why = bad[0]
        found = f"{len(bad)} of {len(rows) + len(bad)} rows of {path} cannot be used, the first at line {line}: {why}"
        if not rows or len(bad) > _TOLERATED * (len(rows) + len(bad)):
            raise _failed(f"{found}. More than 1 % is taken for the wrong file: mend it, or leave those rows out")
        _LOG.warning("%s. They are skipped", found)
    if not rows:
        raise _failed(f"the data file {path} holds no row")


def _row(record: Record, columns: Sequence[str]) -> Row:
    if isinstance(record, _BadRowError):
        raise record
    return {column: _text(record, column) for column in columns}


def _text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None:
        present = ", ".join(str(name) for name in record)
        raise _BadRowError(f"no value in column {column!r} (columns: {present})")
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
    except (ValueError, RecursionError) as error:
        return _BadRowError(f"it is not JSON ({error})")
    return value if isinstance(value, dict) else _BadRowError("it is JSON, but no object")


def _csv(path: Path) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(_LONGEST_FIELD)
    # A byte that is not UTF-8 becomes a lone surrogate, which spoils its own row and no other.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, _BadRowError(f"it is not CSV ({error})")
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
    import pyarrow as pa  # noqa: PLC0415 - half a second that only parquet files cost
    from pyarrow import parquet  # noqa: PLC0415 - likewise

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_PARQUET_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _failed(f"the data file {path} cannot be read as parquet: {error}") from error


_READERS: Final[dict[str, Callable[[Path], Iterator[tuple[int, Record]]]]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _failed(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_DATA, message)
