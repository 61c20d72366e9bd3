"""Whether lines that a quote made one field are rows of the table: told by how the table's other rows look.

A quote too many is closed by the next one, some lines later, and what was between them is one field. A letter, a list or a program in a
quoted field has lines with delimiters, too. What tells the two apart is what stands between the delimiters: a label that other rows have,
a number where others have numbers, a word that begins without space.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

_WHOLE: Final = re.compile(r"[-+]?\d+")
_NUMBER: Final = re.compile(r"[-+]?(\d[\d.,]*|\.\d+)([eE][-+]?\d+)?%?")
_NUMBERS: Final = frozenset({"whole", "number"})
_OF_A_TEXT: Final = frozenset({"words", "word", *_NUMBERS})
_FEWEST_ROWS: Final = 8
_RARE: Final = 0.02
"""Share of a column's values below which a shape is not one of the column's."""
_ENOUGH: Final = 4
_ENOUGH_BY_CHANCE: Final = 8
"""Points, see `are_rows`: where the texts of the column have no delimiters as rows have them, and where they have, or it is not known."""


class ColumnProfile(NamedTuple):
    """What the values of a column look like."""

    values: frozenset[str]
    """Those that several rows have, where most rows have one of them, as of labels; else none."""
    shapes: frozenset[str]
    """Empty: nothing is known of it."""
    texts: tuple[str, ...]
    """The values of one line."""

    @property
    def is_numbers(self) -> bool:
        """Whether it has numbers alone."""
        return bool(self.shapes) and self.shapes <= _NUMBERS

    def has_inside(self, delimiter: str) -> bool:
        """Whether a value has the delimiter as rows have it, without space behind it; or no value is known."""
        return not self.texts or any(re.search(rf"{re.escape(delimiter)}\S", value) for value in self.texts)


def profile_of(rows: Sequence[Sequence[str]]) -> list[ColumnProfile]:
    """The columns of rows with equally many fields. A field of several lines is left out: it is not known whether it is one."""
    return [_column([value for value in column if "\n" not in value and "\r" not in value]) for column in zip(*rows, strict=True)]


def are_rows(lines: Sequence[Sequence[str]], profile: Sequence[ColumnProfile], quoted: int, delimiter: str) -> bool:
    """Whether the fields of these lines are those of rows.

    Every field must look as its column does, and in the quoted column as a text does. Then it is enough that most lines have known values
    in a column of few values; otherwise each delimiter, and each number where the column has numbers alone, counts a point, and as many
    are needed as a text hardly has by chance.

    Args:
        lines: the fields of each line, as many as `profile` has columns.
        profile: of the table's columns.
        quoted: which of them the quote is in.
        delimiter: between the fields.
    """
    columns = list(zip(zip(*lines, strict=True), profile, strict=True))
    if not all(_looks_like(value, known, is_text=at == quoted) for at, (values, known) in enumerate(columns) for value in values):
        return False
    if any(2 * sum(value.strip() in known.values for value in values) > len(lines) for values, known in columns):
        return True
    points = len(lines) * (len(profile) - 1 + sum(known.is_numbers for known in profile))
    return points >= (_ENOUGH_BY_CHANCE if profile[quoted].has_inside(delimiter) else _ENOUGH)


def _column(values: Sequence[str]) -> ColumnProfile:
    shapes = Counter(map(_shape, values))
    usual = frozenset(shape for shape, count in shapes.items() if count > _RARE * len(values))
    often = {value: count for value, count in Counter(map(str.strip, values)).items() if count > 1}
    is_of_few = len(values) >= _FEWEST_ROWS and 2 * sum(often.values()) > len(values)
    return ColumnProfile(frozenset(often if is_of_few else ()), usual, tuple(values))


def _looks_like(value: str, column: ColumnProfile, *, is_text: bool) -> bool:
    shape = _shape(value)
    is_usual = shape in column.shapes or (is_text and shape in _OF_A_TEXT and not column.shapes.isdisjoint(_OF_A_TEXT))
    return is_usual or not column.shapes


def _shape(value: str) -> str:
    """A word for how a value looks: after a comma, prose has a space, or nothing at the end of a line."""
    text = value.strip()
    if not text:
        return "empty"
    what = (
        "words" if any(map(str.isspace, text)) else "whole" if _WHOLE.fullmatch(text) else "number" if _NUMBER.fullmatch(text) else "word"
    )
    return f"spaced {what}" if value[:1].isspace() else what
