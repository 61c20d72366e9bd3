"""Reads lists and objects that a table has in Python's spelling, as pandas' `to_csv` writes a column of them: `[{'role': 'user'}]`.

Nothing is evaluated, and Python's parser, whose stack and memory a hostile text can fill, has no part: what differs from JSON is
respelled, in one pass over the text, and the JSON is read.
"""

import json
import re
import sys
from typing import Any, Final

_TEXT: Final = re.compile(r"""'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+"|['"]""", re.DOTALL)
"""A text, or the quote of one that does not end, so that nothing is looked for twice."""
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_ESCAPED: Final = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
"""What `repr` writes; others are not read."""
_NAME: Final = re.compile(r"\b(?:None|True|False)\b")
_NAMES: Final = {"None": "null", "True": "true", "False": "false"}
_NEIGHBOURS: Final = re.compile(r"\}\s+\{")
"""NumPy writes no comma between the objects of an array."""


def parse_spelled(text: str) -> Any:  # noqa: ANN401 - any value of JSON
    """The value that a text is the JSON of, or the list or object that it spells as Python's `repr` does.

    Raises:
        ValueError: it is neither, or nested too deeply.
    """
    try:
        try:
            return json.loads(text)
        except ValueError:
            return _read_python(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read_python(text: str) -> Any:  # noqa: ANN401 - any value of JSON
    if text.lstrip()[:1] not in ("[", "{"):
        raise ValueError("it is no list and no object")
    parts, end = [], 0
    for found in _TEXT.finditer(text):
        if len(found[0]) == 1:
            raise ValueError("it has a quote that does not end")
        parts += [_respelled(text[end : found.start()]), json.dumps(_ESCAPE.sub(_character, found[0][1:-1]))]
        end = found.end()
    return json.loads("".join([*parts, _respelled(text[end:])]))


def _respelled(between: str) -> str:
    """What stands between two texts, as JSON has it."""
    return _NAME.sub(lambda found: _NAMES[found[0]], _NEIGHBOURS.sub("}, {", between))


def _character(found: re.Match[str]) -> str:
    if digits := found[1] or found[2] or found[3]:
        if (code := int(digits, 16)) > sys.maxunicode:
            raise ValueError("it has an escape of no character")
        return chr(code)
    if found[4] not in _ESCAPED:
        raise ValueError("it has an escape that repr does not write")
    return _ESCAPED[found[4]]
