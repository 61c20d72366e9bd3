"""Messages show nothing but themselves: paths, columns and what libraries say may hold any character.

Half a surrogate pair, as Python makes of a byte that is not UTF-8, cannot even be written: a task would end without a result.
"""

from typing import Final

LONGEST_MESSAGE: Final = 4096


def printable(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """The text on one line, at most so long. Characters that do more than show are written as Python does in a literal."""
    shown = text[:longest]
    return shown if shown.isprintable() else "".join(map(_shown, shown))[:longest]


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    return character if character.isprintable() else repr(character)[1:-1]
