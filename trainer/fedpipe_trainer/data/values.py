"""The value of a column as text: by path in nested rows, and a label from integers and booleans."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from fedpipe_trainer.contract import does_more_than_show
from fedpipe_trainer.data.readers import BadRowError, MissingColumnError, Record, RepeatedNames, is_utf8
from fedpipe_trainer.data.table import Row

_LARGEST_WHOLE: Final = 2**53
"""Above this, a floating-point number does not tell which integer it was."""


class NoColumnError(BadRowError):
    """The record, or its whole file, has no such column."""

    def __init__(self, column: str, columns: int) -> None:
        # Without a header, the first row of a CSV file would be the names of its columns.
        super().__init__(f"no value in column {column!r}, or no column of this name among the {columns} of the file")
        self.column, self.columns = column, columns
        """Its name, and how many the record has."""


class BadValueError(Exception):
    """What a `ValueReader` raises. The message says what is wrong with the value, and quotes nothing of it."""


ValueReader = Callable[[Any], str]
"""Makes the text of a structured or optional column from its value in the file, which is None where the row has none."""


@dataclass(frozen=True)
class Columns:
    """What is read of each row."""

    names: Sequence[str]
    readers: Mapping[str, ValueReader] = field(default_factory=dict)
    """By column whose value is not simply a text: how it becomes one."""
    check: Callable[[Row], None] | None = None
    """Raises `BadValueError` for columns that do not fit together; None: any do."""


def select_columns(record: Record, columns: Columns) -> Row:
    """The texts of these columns.

    Raises:
        BadRowError: one of them has no value that can be used, or they do not fit together.
    """
    if isinstance(record, BadRowError):
        raise record
    row = {column: _text(record, column, columns.readers.get(column, _read_text)) for column in columns.names}
    try:
        if columns.check is not None:
            columns.check(row)
    except BadValueError as error:
        raise BadRowError(str(error)) from error
    return row


def lacking_columns(record: Mapping[str, Any], columns: Columns) -> frozenset[str]:
    """Those of these columns that the record does not have, though it needs them."""
    return frozenset(column for column in columns.names if _is_lacking(record, column, columns))


def _is_lacking(record: Mapping[str, Any], column: str, columns: Columns) -> bool:
    try:
        _text(record, column, columns.readers.get(column, _read_text))
    except BadRowError as error:
        return isinstance(error, NoColumnError)
    return False


def read_label(value: Any) -> str:  # noqa: ANN401 -- any value of a data file
    """A label as all sites spell it: `true` and `false` as in JSON, whole numbers without a point, no space around it.

    Raises:
        BadValueError: the value is no label.
    """
    match value:
        case str():
            return _read_visible(value.strip())
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() | Decimal() if (whole := _whole(value)) is not None:
            return str(whole)
        case _:
            raise BadValueError(f"it is {_named(value)}, and a label is a text, an integer or a boolean")


def _read_visible(label: str) -> str:
    if not label:
        raise BadValueError("it is empty")
    if is_utf8(label) and does_more_than_show(label):  # which the operator would refuse; what is not UTF-8 is told as that
        raise BadValueError("it has a label with control characters: remove them")
    return label


def _read_text(value: Any) -> str:  # noqa: ANN401 -- any value of a data file
    if not isinstance(value, str):
        raise BadValueError(f"it is {_named(value)}, not text")
    if not value.strip():
        raise BadValueError("it is empty")
    return value


def _text(record: Mapping[str, Any], column: str, read: ValueReader) -> str:
    value = value_of(record, column)
    try:
        text = read(value)
    except BadValueError as error:
        raise _missing(record, column) if value is None else BadRowError(f"column {column!r}: {error}") from error
    if not is_utf8(text):
        raise BadRowError(f"column {column!r} is not UTF-8: save the file as UTF-8")
    return text


def value_of(record: Mapping[str, Any], column: str) -> Any:  # noqa: ANN401 -- any value
    """The value of this name; if there is no such column, the one that the name leads to as a path. None: there is none."""
    if type(record) is dict and isinstance(found := record.get(column), str):  # nearly all
        return found
    value: Any = record
    for part in (column,) if column in record else column.split("."):
        if isinstance(value, RepeatedNames) and part in value.repeated:
            raise BadRowError(f"column {column!r} is there more than once")
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, MissingColumnError) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, BadRowError):
        raise value
    return value


def _missing(record: Mapping[str, Any], column: str) -> BadRowError:
    found = record.get(column)
    if column in record and not isinstance(found, MissingColumnError):
        return BadRowError(f"no value in column {column!r}")
    return NoColumnError(column, found.columns if isinstance(found, MissingColumnError) else len(record))


def _whole(value: float | Decimal) -> int | None:
    """The integer that the number is; None if it has a fraction, or is too large to tell."""
    is_exact = math.isfinite(value) and abs(float(value)) <= _LARGEST_WHOLE
    return int(value) if is_exact and value == int(value) else None


def _named(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int() | float() | Decimal():
            return "a number"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
        case _:
            return "of another type"
