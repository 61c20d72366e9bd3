"""What is in the columns of a data file, from its first rows: what `fedpipe init` guesses a task from. No row is kept."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedpipe_trainer.contract.inspection import ColumnFacts, ListShape, ValueKind
from fedpipe_trainer.data.formats import number_of
from fedpipe_trainer.data.found_labels import ROWS_OF_A_LABEL
from fedpipe_trainer.data.python_text import parse_spelled
from fedpipe_trainer.data.readers import MOST_ROWS, BadRowError, Bounds, FirstRecords, column_names, is_utf8, read_records
from fedpipe_trainer.data.rows import BadRows, check_bad_share
from fedpipe_trainer.data.values import BadValueError, read_label

_MOST_COLUMNS: Final = 500
_LONGEST_NAME: Final = 253
"""As of the API's columns."""
_DEEPEST: Final = 3
"""Parts of a path into nested objects."""
_MOST_LABELS: Final = 1000
_LONGEST_LABEL: Final = 200


_OF_UNSPACED_SCRIPTS: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff]")
"""Thai, Lao, Burmese, Khmer, Chinese, Japanese, Korean."""
_FEW: Final = 4
_LOOKED_AT: Final = 1000


class Look(NamedTuple):
    """What was found in the first rows."""

    columns: tuple[ColumnFacts, ...]
    rows: int
    bad_rows: int
    is_whole: bool


def look_at(path: Path, most_rows: int = MOST_ROWS) -> Look:
    """Look at the first rows of a file or folder of data.

    Raises:
        TaskFailed: BadData, as `read_records`; also where a column is there twice, or no row can be read.
        OSError: it cannot be read.
    """
    names = column_names(path)
    # Of text files the names are those of the first rows; a header that has one twice is refused when it is asked for.
    numbered, unit = read_records(path, names)
    first, good, bad = FirstRecords(numbered, Bounds(most_rows)), [], BadRows()
    for number, record in first:
        if isinstance(record, BadRowError):
            bad.add(number, record)
        else:
            good.append(record)
    if bad.count and not good:
        check_bad_share(path, 0, bad, unit)
    seen: dict[str, _Seen] = {}
    for record in good:
        for name, value in _columns(record):
            if len(seen) < _MOST_COLUMNS or name in seen:
                seen.setdefault(name, _Seen()).add(value)
    columns = tuple(one.facts(name) for name, one in seen.items() if 0 < len(name) <= _LONGEST_NAME and is_utf8(name))
    return Look(columns, len(good), bad.count, first.is_whole)


def _columns(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a row by name, and those of its objects by path; a column whose own name is such a path comes first."""
    own = {name: value for name, value in record.items() if isinstance(name, str)}
    for name, value in own.items():
        yield name, value
        for path, inner in _nested(name, value, _DEEPEST - 1):
            if path not in own:
                yield path, inner


def _nested(path: str, value: object, depth: int) -> Iterator[tuple[str, Any]]:
    if depth and isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(name, str) and name and "." not in name:
                yield f"{path}.{name}", inner
                yield from _nested(f"{path}.{name}", inner, depth - 1)


@dataclass
class _Seen:
    """The values of a column, counted."""

    rows: int = 0
    kinds: Counter[ValueKind] = field(default_factory=Counter)
    shapes: Counter[ListShape | None] = field(default_factory=Counter)
    numbers: int = 0
    whole_numbers: int = 0
    largest_number: float = 0.0
    characters: int = 0
    longest: int = 0
    texts: int = 0
    sentences: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    is_labels: bool = True

    def add(self, value: Any) -> None:  # noqa: ANN401 - any value of a data file
        if value is None or (isinstance(value, str) and not value.strip()) or value != value:  # noqa: PLR0124 - NaN is no value
            return
        self.rows += 1
        kind = _kind(value)
        self.kinds[kind] += 1
        text = value if isinstance(value, str) else json.dumps(value, default=str) if kind in {"list", "object"} else ""
        self.characters += len(text)
        self.longest = max(self.longest, len(text))
        if kind == "text":
            self.texts += 1
            self.sentences += _has_words(value.strip())
        items = _list_of(value)
        if items is not None:
            self.shapes[_shape(items)] += 1
        self._count_number(value)
        self._count_labels([value] if items is None else items)

    def facts(self, name: str) -> ColumnFacts:
        shapes = [shape for shape, _ in self.shapes.most_common() if shape]
        shape = shapes[0] if shapes and 2 * sum(self.shapes.values()) > self.rows else None
        frequent = {label: count for label, count in sorted(self.labels.items()) if count >= ROWS_OF_A_LABEL} if self.is_labels else {}
        return ColumnFacts(
            name=name,
            rows=self.rows,
            kinds=tuple(kind for kind, _ in self.kinds.most_common()),
            shape=shape,
            is_numeric=0 < self.rows == self.numbers,
            is_whole=0 < self.rows == self.whole_numbers,
            largest_number=self.largest_number,
            mean_characters=self.characters / max(1, self.rows),
            longest_characters=self.longest,
            share_of_sentences=self.sentences / max(1, self.texts),
            distinct=len(self.labels) if self.is_labels else self.rows,
            labels=frequent,
        )

    def _count_number(self, value: Any) -> None:  # noqa: ANN401 - likewise
        try:
            number = number_of(value)
        except BadValueError:
            return
        self.numbers += 1
        self.whole_numbers += number == int(number)
        self.largest_number = max(self.largest_number, abs(number))

    def _count_labels(self, values: Iterable[Any]) -> None:
        if not self.is_labels:
            return
        for value in values:
            try:
                label = read_label(value)
            except BadValueError:
                self.is_labels = False
                break
            self.labels[label] += 1
            self.is_labels = len(self.labels) <= _MOST_LABELS and len(label) <= _LONGEST_LABEL and is_utf8(label)
        if not self.is_labels:
            self.labels.clear()


def _has_words(text: str) -> bool:
    """Whether it has several words. Some scripts write them without space between."""
    return any(map(str.isspace, text)) or len(_OF_UNSPACED_SCRIPTS.findall(text[:_LOOKED_AT])) >= _FEW


_KINDS: Final[tuple[tuple[type, ValueKind], ...]] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (list, "list"),
    (Mapping, "object"),
)


def _kind(value: Any) -> ValueKind:  # noqa: ANN401 - any value of a data file
    if isinstance(value, str):
        return "text" if is_utf8(value) else "text in no UTF-8"
    return next((kind for type_, kind in _KINDS if isinstance(value, type_)), "other")


def _list_of(value: Any) -> list[Any] | None:  # noqa: ANN401 - any value of a data file
    """The items of a list, or of the JSON of one as text, or Python's spelling, which is how a table has it."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _parsed(value)
    return value if isinstance(value, list) else None


def _parsed(text: str) -> Any:  # noqa: ANN401 - any value of JSON
    """What a text is the JSON of; None: of nothing."""
    with suppress(ValueError):
        return parse_spelled(text)
    return None


def _shape(items: Sequence[Any]) -> ListShape | None:
    if not items:
        return None
    if all(isinstance(item, Mapping) for item in items):
        names = [set(item) for item in islice(items, 8)]
        if all("role" in one for one in names):
            return "messages"
        return "turns" if all({"from", "value"} <= one for one in names) else "objects"
    if all(isinstance(item, list) and [type(one) for one in item] == [str, str] for item in items):
        return "pairs"
    if all(isinstance(item, str) and item.lstrip()[:1] == "{" and isinstance(_parsed(item), Mapping) for item in islice(items, 8)):
        return "objects"
    return "labels" if all(isinstance(item, str | int) for item in items) else None
