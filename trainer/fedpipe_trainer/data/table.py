"""Rows in little memory: the texts of a column stand one after the other in UTF-8, with 8 bytes for the end of each; many on the disk."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from fedpipe_trainer.data.spill import Integers, SpilledBytes

Row = dict[str, str]


class RowTable(Sequence[Row]):
    """A sequence of rows of the same columns, each made when it is asked for. In a list of dicts, a row took some 400 bytes more."""

    def __init__(self, columns: Iterable[str], folder: Path | None = None) -> None:
        """Have these columns; of the folder see `SpilledBytes`."""
        self._columns = {column: _Texts(folder) for column in columns}
        self._kept: Sequence[int] = range(0)
        self._folder = folder

    def append(self, row: Row) -> None:
        """Add a row.

        Raises:
            UnicodeEncodeError: a text has half a surrogate pair; nothing is added.
        """
        encoded = [(texts, row[column].encode()) for column, texts in self._columns.items()]
        for texts, content in encoded:
            texts.append(content)
        self._kept = range(len(self._kept) + 1)

    def at(self, kept: Sequence[int]) -> "RowTable":
        """Those of these rows alone, in this order; the texts are shared."""
        return self._with(Integers((self._kept[at] for at in kept), self._folder))

    def column(self, name: str) -> Iterable[str]:
        """The texts of one column."""
        texts = self._columns[name]
        return (texts[at] for at in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> "RowTable": ...
    def __getitem__(self, at: int | slice) -> "Row | RowTable":
        if isinstance(at, slice):
            return self._with(self._kept[at])
        position = self._kept[at]
        return {column: texts[position] for column, texts in self._columns.items()}

    def __eq__(self, other: object) -> bool:
        """Whether the other has the same rows; it may be any sequence of them."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # rows can be added

    def _with(self, kept: Sequence[int]) -> "RowTable":
        found = RowTable((), self._folder)
        found._columns, found._kept = self._columns, kept
        return found


class _Texts:
    """Texts of any length in one piece."""

    def __init__(self, folder: Path | None) -> None:
        self._content, self._ends = SpilledBytes(folder), Integers((0,), folder)

    def append(self, text: bytes) -> None:
        self._content.append(text)
        self._ends.append(len(self._content))

    def __getitem__(self, at: int) -> str:
        return self._content.read(self._ends[at], self._ends[at + 1]).decode()
