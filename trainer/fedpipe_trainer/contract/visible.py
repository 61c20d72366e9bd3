"""What a text may have that others are shown: nothing that changes how the rest of a page, a log or a terminal looks."""

from typing import Final

_SPACES: Final = "\n\r\t"
_DIRECTIONS: Final = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""What follows them is shown in another order."""


def does_more_than_show(text: str) -> bool:
    """Whether it has control characters but the usual spaces, halves of surrogate pairs, or changes of direction.

    Joiners and marks belong to scripts and emoji.
    """
    # A quick look first: nearly all texts are printable.
    return not text.isprintable() and any(map(_is_more_than_shown, text))


def _is_more_than_shown(character: str) -> bool:
    code = ord(character)
    is_control = code < 0x20 or 0x7F <= code < 0xA0  # noqa: PLR2004 -- C0, DEL and C1
    return (is_control and character not in _SPACES) or 0xD800 <= code < 0xE000 or character in _DIRECTIONS  # noqa: PLR2004 -- surrogates
