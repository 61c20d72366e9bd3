"""JSON: an object a line (jsonl), or an array of objects."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from fedpipe_trainer.data.readers.record import LONGEST_RECORD, MIB, BadRowError, Record, Records, RepeatedNames, bad_data
from fedpipe_trainer.data.readers.text import is_utf8, lines, open_text

_SPACE: Final = " \t\r\n"
_CHUNK: Final = MIB


def read_json_lines(path: Path) -> Records:
    """The objects of a file with one a line."""
    return Records(_lines(path))


def read_json(path: Path) -> Records:
    """The objects of a file with an array of them; one that begins with an object is read by line."""
    with open_text(path) as text:
        is_array = _first_character(text) == "["
    return Records(_elements(path), "row") if is_array else read_json_lines(path)


def _first_character(text: TextIO) -> str:
    while (character := text.read(1)) and character in _SPACE:
        pass
    return character


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
        return _record(_DECODER.decode(line.removeprefix("\ufeff")))
    except RecursionError:
        return BadRowError("it is nested too deeply")
    except ValueError:
        return BadRowError("it is not JSON")


def _record(value: object) -> Record:
    return value if isinstance(value, dict) else BadRowError("it is JSON, but not an object")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Of a name that is there twice, Python would take the last."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = RepeatedNames(found)
    repeated.repeated = frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeated


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)


def _elements(path: Path) -> Iterator[tuple[int, Record]]:
    """The elements of an array, each parsed as soon as it is read."""
    with open_text(path) as text:
        window = _Window(text)
        window.skip("[")
        number = 0
        while window.skip(",") not in {"", "]"}:
            number += 1
            value = _element(window, number, path)
            yield number, value if isinstance(value, BadRowError) else _record(value)
        if window.current() != "]":
            raise bad_data(f"the array in the data file {path} ends after row {number} without a closing bracket: it is cut short")


def _element(window: "_Window", number: int, path: Path) -> object:
    """The next element.

    Raises:
        TaskFailed: BadData; after what is no JSON, it is unknown where the next element begins.
    """
    try:
        value, element = window.decode()
    except RecursionError:
        raise bad_data(f"row {number} of the array in the data file {path} is nested too deeply") from None
    except ValueError:
        found = f"row {number} of the array in the data file {path} is not JSON, or longer than {LONGEST_RECORD // MIB} MiB"
        raise bad_data(f"{found}: correct it") from None
    return value if is_utf8(element) else BadRowError("it is not UTF-8: save the file as UTF-8")


class _Window:
    """A part of a text that moves on as it is parsed."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._part, self._at = text, "", 0

    def current(self) -> str:
        """The character at the window's position; empty at the end of the text."""
        return self._part[self._at : self._at + 1]

    def skip(self, character: str) -> str:
        """Skip space, and one such character with the space around it; the character that follows, empty at the end."""
        if self._skip_space() == character:
            self._at += 1
            return self._skip_space()
        return self.current()

    def decode(self) -> tuple[object, str]:
        """The value at the position, and its text; reads on until it is whole."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._part, self._at)
            except ValueError:
                if len(self._part) - self._at > LONGEST_RECORD or not self._read_on():
                    raise
                continue
            # A number at the end of what was read may go on.
            if end < len(self._part) or not self._read_on():
                break
        element, self._at = self._part[self._at : end], end
        return value, element

    def _skip_space(self) -> str:
        while True:
            while (character := self.current()) and character in _SPACE:
                self._at += 1
            if character or not self._read_on():
                return character

    def _read_on(self) -> bool:
        """Read as much again as there is: a long value is not parsed from its start for every chunk."""
        rest = self._part[self._at :]
        more = self._text.read(max(_CHUNK, len(rest)))
        self._part, self._at = rest + more, 0
        return bool(more)
