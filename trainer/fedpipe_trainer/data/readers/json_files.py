"""JSON: an object a line (jsonl), an array of objects, or objects that are written over several lines."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpipe_trainer.data.readers.json_form import Form, form_of
from fedpipe_trainer.data.readers.json_window import DECODER, Window
from fedpipe_trainer.data.readers.record import LONGEST_RECORD, MIB, BadRowError, Record, Records, bad_data
from fedpipe_trainer.data.readers.text import is_utf8, lines, open_text


def read_json(path: Path, columns: Sequence[str] = ()) -> Records:
    """The objects of a file: one a line, those of an array, those of the one list of one object (`{"data": [...]}`), or one after another.

    Args:
        path: of the file.
        columns: those that the task names: an object that has one of them is a row.
    """
    match form_of(path, columns):
        case Form.LINES:
            return Records(_lines(path))
        case Form.ARRAY:
            return Records(_elements(path), "row")
        case Form.OBJECTS:
            return Records(_objects(path), "row")
        case str(key):
            return Records(_elements(path, key), "row")


def _lines(path: Path) -> Iterator[tuple[int, Record]]:
    with open_text(path) as text:
        for number, line in enumerate(lines(text, path), start=1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: str) -> Record:
    if not is_utf8(line):
        return BadRowError("it is not UTF-8: save the file as UTF-8")
    try:
        # Files that were joined have a byte order mark in the middle.
        return _record(DECODER.decode(line.removeprefix("\ufeff")))
    except RecursionError:
        return BadRowError("it is nested too deeply")
    except ValueError:
        return BadRowError("it is not JSON")


def _record(value: object) -> Record:
    return value if isinstance(value, dict) else BadRowError("it is JSON, but not an object")


def _elements(path: Path, key: str = "") -> Iterator[tuple[int, Record]]:
    """The elements of an array, each parsed as soon as it is read: of the file itself, or of this key of its object."""
    with open_text(path) as text:
        window = Window(text)
        if key:
            window.go_to(key)
        window.skip("[")
        number = 0
        while window.skip(",") not in {"", "]"}:
            number += 1
            yield number, _row(window, number, path)
        if window.current() != "]":
            raise bad_data(f"the array in the data file {path} ends after row {number} without a closing bracket: it is cut short")
        if not key and window.skip("]"):
            found = f"the data file {path} goes on after the array that it begins with"
            raise bad_data(f'{found}: write one array, or an object a line, such as {{"messages": [...]}}')


def _objects(path: Path) -> Iterator[tuple[int, Record]]:
    """Objects that follow one another, with space alone between them."""
    with open_text(path) as text:
        window = Window(text)
        number = 0
        while window.skip_space():
            number += 1
            yield number, _row(window, number, path)


def _row(window: Window, number: int, path: Path) -> Record:
    value = _element(window, number, path)
    return value if isinstance(value, BadRowError) else _record(value)


def _element(window: Window, number: int, path: Path) -> object:
    """The next element.

    Raises:
        TaskFailed: BadData; after what is no JSON, it is unknown where the next element begins.
    """
    try:
        value, element = window.decode()
    except RecursionError:
        raise bad_data(f"row {number} of the data file {path} is nested too deeply") from None
    except ValueError:
        found = f"row {number} of the data file {path} is not JSON, or longer than {LONGEST_RECORD // MIB} MiB"
        raise bad_data(f"{found}: correct it") from None
    return value if is_utf8(element) else BadRowError("it is not UTF-8: save the file as UTF-8")
