"""How the rows of a file of JSON are written, told by its beginning; of a single object, by what its values are."""

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from fedpipe_trainer.data.readers.json_window import DECODER, Window
from fedpipe_trainer.data.readers.record import bad_data
from fedpipe_trainer.data.readers.text import open_text

_LONGEST_LINE: Final = 2**16
"""Characters of the first line that tell a form."""
_ROWS: Final = frozenset(
    {"data", "rows", "records", "examples", "items", "instances", "samples", "entries", "dataset", "train", "validation", "valid", "test"}
)
"""Keys of an object that hold rows, whatever other keys it has."""


class Form(Enum):
    """A form of rows. That of an object with a list of them is the list's key instead."""

    LINES = auto()
    ARRAY = auto()
    OBJECTS = auto()


class _Value(NamedTuple):
    """What a value of an object is."""

    kind: str
    """`objects` or `list` of a list with elements, `turns` of a conversation, `numbered` of an object with numbers as keys; else empty."""
    length: int = 0


class _Opening(NamedTuple):
    """How a file begins that is no plain list of lines."""

    values: Mapping[str, _Value]
    """Of its first object, by key."""
    is_alone: bool
    """Whether nothing follows the object."""


def form_of(path: Path, columns: Sequence[str]) -> Form | str:
    """The form of a file, or the key of its one object that holds the rows.

    Args:
        path: of the file.
        columns: those that the task names: an object that has one of them is a row.

    Raises:
        TaskFailed: BadData, it is one object that holds columns, or several lists of rows.
        OSError: it cannot be read.
    """
    with open_text(path) as text:
        first = next(_filled_lines(text), "")
        is_whole = first.lstrip()[:1] in {"[", "{"} and _is_json(first)
        follows = is_whole and any(_filled_lines(text))
    start = "".join(first[:64].split())
    is_long = len(first) == _LONGEST_LINE
    if start.startswith("["):
        return Form.LINES if follows or start.startswith("[[") else Form.ARRAY
    if not start.startswith("{") or follows:
        return Form.LINES
    opening = _opening_of(path)
    if opening is None or (is_long and not opening.is_alone):
        return Form.LINES
    key = _key_of_rows(opening.values, columns, path) if opening.is_alone else ""
    if key and is_whole and key.lower() not in _ROWS:  # as likely a row of one column
        key = ""
    return key or (Form.LINES if is_whole else Form.OBJECTS)


def _filled_lines(text: TextIO) -> Iterator[str]:
    """Lines that are not blank, or parts of those that are very long."""
    return (line for line in iter(lambda: text.readline(_LONGEST_LINE), "") if line.strip())


def _is_json(line: str) -> bool:
    try:
        DECODER.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _opening_of(path: Path) -> _Opening | None:
    """The first object; None if it is none that can be read."""
    with open_text(path) as text:
        window = Window(text)
        try:
            values = {key: _value(window) for key in window.members()}
            return _Opening(values, is_alone=not window.skip_space())
        except (ValueError, RecursionError):
            return None


def _value(window: Window) -> _Value:
    """Skip a value, of which one element is in memory at once if it is a list."""
    if window.skip_space() != "[":
        found, _ = window.decode()
        return _Value("numbered" if isinstance(found, dict) and found and all(map(str.isdecimal, found)) else "")
    first: object = None
    length = 0
    for element in window.elements():
        first = element if not length else first
        length += 1
    if not isinstance(first, dict):
        return _Value("list" if length else "", length)
    return _Value("turns" if "role" in first or {"from", "value"} <= set(first) else "objects", length)


def _key_of_rows(values: Mapping[str, _Value], columns: Sequence[str], path: Path) -> str:
    """The key of the list of rows in the one object of a file; empty: the object is a row itself."""
    lists = [key for key, value in values.items() if value.kind == "objects"]
    if len(values) > 1 and (_are_columns(values) or sum(key.lower() in _ROWS for key in lists) > 1):
        what = f"with {len(lists)} lists of rows" if lists else "that holds columns, not rows"
        advice = (
            "write the rows of one as a file of its own" if lists else "write an object for each row (pandas: orient='records', lines=True)"
        )
        raise bad_data(f"the data file {path} is one object {what}: {advice}")
    is_row = any(column in values or column.partition(".")[0] in values for column in columns)
    if is_row or len(lists) != 1 or (len(values) > 1 and lists[0].lower() not in _ROWS):
        return ""
    return lists[0]


def _are_columns(values: Mapping[str, _Value]) -> bool:
    """Whether each value is a list of the same length, or an object with a key for each row's number."""
    kinds = {(value.kind, value.length) for value in values.values()}
    return len(kinds) == 1 and next(iter(kinds))[0] in {"list", "numbered"}
