"""A text of JSON that is parsed in parts: no more of it is in memory than the value that is read."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, TextIO

from fedpipe_trainer.data.readers.record import LONGEST_RECORD, MIB, RepeatedNames

_SPACE: Final = " \t\r\n"
_CHUNK: Final = MIB


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Of a name that is there twice, Python would take the last."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = RepeatedNames(found)
    repeated.repeated = frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeated


DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)


class Window:
    """A part of a text that moves on as it is parsed."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._part, self._at = text, "", 0

    def current(self) -> str:
        """The character at the window's position; empty at the end of the text."""
        return self._part[self._at : self._at + 1]

    def skip(self, character: str) -> str:
        """Skip space, and one such character with the space around it; the character that follows, empty at the end."""
        if self.skip_space() == character:
            self._at += 1
            return self.skip_space()
        return self.current()

    def skip_space(self) -> str:
        """Skip space; the character that follows, empty at the end."""
        while True:
            while (character := self.current()) and character in _SPACE:
                self._at += 1
            if character or not self._read_on():
                return character

    def decode(self) -> tuple[object, str]:
        """The value at the position, and its text; reads on until it is whole."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._part, self._at)
            except ValueError:
                if len(self._part) - self._at > LONGEST_RECORD or not self._read_on():
                    raise
                continue
            # A number at the end of what was read may go on.
            if end < len(self._part) or not self._read_on():
                break
        element, self._at = self._part[self._at : end], end
        return value, element

    def members(self) -> Iterator[str]:
        """The keys of the object at the position, each with the window at its value, which is to be skipped before the next one.

        Raises:
            ValueError: it is no object.
        """
        if self.skip_space() != "{":
            raise ValueError
        self.skip("{")
        while self.skip(",") not in {"", "}"}:
            key, _ = self.decode()
            if not isinstance(key, str) or self.skip_space() != ":":
                raise ValueError
            self.skip(":")
            yield key
        if self.current() != "}":
            raise ValueError
        self.skip("}")

    def elements(self) -> Iterator[object]:
        """The elements of the array at the position.

        Raises:
            ValueError: it is no array, or cut short.
        """
        self.skip("[")
        while self.skip(",") not in {"", "]"}:
            yield self.decode()[0]
        if self.current() != "]":
            raise ValueError
        self.skip("]")

    def go_to(self, key: str) -> None:
        """Go to the value of this key of the object at the position, which has it."""
        for found in self.members():
            if found == key:
                return
            self.decode()

    def _read_on(self) -> bool:
        """Read as much again as there is: a long value is not parsed from its start for every chunk."""
        rest = self._part[self._at :]
        more = self._text.read(max(_CHUNK, len(rest)))
        self._part, self._at = rest + more, 0
        return bool(more)
