"""The value of a column as text: by path in nested rows, a label from integers and booleans, and a structure as JSON."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from fedpipe_trainer.data.readers import BadRowError, Record, RepeatedNames, is_utf8
from fedpipe_trainer.data.table import Row

_LARGEST_WHOLE: Final = 2**53
"""Above this, a floating-point number does not tell which integer it was."""


@dataclass(frozen=True)
class Columns:
    """What is read of each row."""

    names: Sequence[str]
    labels: Collection[str] = ()
    """Those that hold labels: texts, integers or booleans, without the space around them."""
    structured: Collection[str] = ()
    """Those that may hold anything: their values are JSON texts."""


def select_columns(record: Record, columns: Columns) -> Row:
    """The texts of these columns.

    Raises:
        BadRowError: one of them has no value that can be used.
    """
    if isinstance(record, BadRowError):
        raise record
    return {column: _text(_value(record, column), column, columns) for column in columns.names}


def _value(record: Mapping[str, Any], column: str) -> Any:  # noqa: ANN401 -- any value
    """The value of this name; if there is no such column, the one that the name leads to as a path."""
    if type(record) is dict and isinstance(found := record.get(column), str):  # nearly all
        return found
    value: Any = record
    parts = (column,) if column in record else column.split(".")
    for part in parts:
        if isinstance(value, RepeatedNames) and part in value.repeated:
            raise BadRowError(f"column {column!r} is there more than once")
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None and column in record:
        raise BadRowError(f"no value in column {column!r}")
    if value is None:
        # Without a header, the first row of a CSV file would be the names of its columns.
        raise BadRowError(f"no value in column {column!r}, or no column of this name among the {len(record)} of the file")
    if isinstance(value, float) and math.isnan(value):
        raise BadRowError(f"no value in column {column!r}")
    if isinstance(value, BadRowError):
        raise value
    return value


def _text(value: object, column: str, columns: Columns) -> str:
    if column in columns.structured:
        text = _json(value, column)
    elif column in columns.labels:
        text = _label(value, column)
    elif isinstance(value, str):
        text = value
    else:
        raise BadRowError(f"column {column!r} is {_named(value)}, not text")
    if not text.strip():
        raise BadRowError(f"column {column!r} is empty")
    if not is_utf8(text):
        raise BadRowError(f"column {column!r} is not UTF-8: save the file as UTF-8")
    return text


def _label(value: object, column: str) -> str:
    """A label as all sites spell it: `true` and `false` as in JSON, whole numbers without a point."""
    match value:
        case str():
            text = value.strip()
            if not text.isprintable() and any(not character.isprintable() and not character.isspace() for character in text):
                raise BadRowError(f"column {column!r} has a label with characters that cannot be seen: remove them")
            return text
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() | Decimal() if (whole := _whole(value)) is not None:
            return str(whole)
        case _:
            raise BadRowError(f"column {column!r} is {_named(value)}, and a label is a text, an integer or a boolean")


def _whole(value: float | Decimal) -> int | None:
    """The integer that the number is; None if it has a fraction, or is too large to tell."""
    is_exact = math.isfinite(value) and abs(float(value)) <= _LARGEST_WHOLE
    return int(value) if is_exact and value == int(value) else None


def _json(value: object, column: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadRowError(f"column {column!r} is {_named(value)} with values that JSON does not have") from None


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
