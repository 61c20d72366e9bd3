"""Which part of some data is for training, and which for validation: told by the names of files and folders."""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedpipe_trainer.data.readers import BadRowError, Record, bad_data, is_data_file, is_utf8, read_records, suffix_of
from fedpipe_trainer.data.readers.folders import SAVED_STATE
from fedpipe_trainer.data.rows import BadRows, check_bad_share
from fedpipe_trainer.data.values import Columns, select_columns, value_of

_WORDS: Final = re.compile(r"(?<![a-z])(train|training|validation|valid|val|dev|eval|test|testing)(?![a-z])")
_TRAIN: Final = ("train", "training")
_VALIDATION: Final = ("validation", "valid", "val", "dev", "eval", "test", "testing")
"""The first of these that is there."""
_DESCRIPTIONS: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"})
"""What the datasets library and model folders have beside data."""
_SHOWN: Final = 5
"""File names in a message."""
_SHARE: Final = 0.1
_MOST_HELD_OUT: Final = 1000
"""As many as an evaluation uses by default."""
_DIGEST: Final = 8


class Parts(NamedTuple):
    """The two parts of the data of a site."""

    train: Path
    validation: Path | None
    """None: there is none."""


def find_parts(path: Path) -> Parts:
    """The training part of a file or folder, and the validation part in it or beside it.

    Raises:
        TaskFailed: BadData, it is not clear which file is the training part, or there is nothing of this name.
        OSError: it cannot be read.
    """
    if not path.is_dir():
        return Parts(path, _sibling(path))
    if (path / SAVED_STATE).exists():
        return Parts(path, None)
    children = [child for child in sorted(path.iterdir()) if not child.name.startswith((".", "_"))]
    found = [child for child in children if child.name not in _DESCRIPTIONS and (is_data_file(child) or _is_part(child))]
    train = _one_of(found, _TRAIN, path)
    if train is not None:
        return Parts(train, _one_of(found, _VALIDATION, path))
    if not found and (path / "data").is_dir():  # as repositories of data sets have it
        return find_parts(path / "data")
    return Parts(_only(found, path), None)


def _sibling(path: Path) -> Path | None:
    """The validation file beside a training file: of the same name but for that word."""
    word = _word(path)
    if word not in _TRAIN or not path.parent.is_dir():
        return None
    stem = path.name.lower().removesuffix(suffix_of(path))
    others = [other for other in sorted(path.parent.iterdir()) if is_data_file(other)]
    names = {other.name.lower().removesuffix(suffix_of(other)): other for other in others}
    wanted = (stem.replace(word, name, 1) for name in _VALIDATION)
    return next((names[name] for name in wanted if name in names), None)


def _word(path: Path) -> str:
    """The word of its name that tells a part; empty without one."""
    name = path.name.lower().removesuffix(suffix_of(path))
    words: list[str] = _WORDS.findall(name)
    return words[0] if len(set(words)) == 1 else ""


def _is_part(child: Path) -> bool:
    """Whether it is the folder of a part: of shards, or saved by the datasets library."""
    return child.is_dir() and child.name.lower() in (*_TRAIN, *_VALIDATION)


def _one_of(found: Sequence[Path], words: Sequence[str], folder: Path) -> Path | None:
    """The file or folder of the first of these parts that is there; of several shards their pattern."""
    for word in words:
        named = [child for child in found if _word(child) == word]
        if len(named) == 1:
            return named[0]
        if named and all(child.suffix == ".parquet" for child in named):
            return folder / f"{word}*.parquet"
        if named:
            raise _unclear(named, folder, f"{len(named)} files of the part {word}")
    return None


def _only(found: Sequence[Path], folder: Path) -> Path:
    """The only file of a folder, or the folder of parquet shards."""
    if len(found) == 1:
        return found[0]
    if found and all(child.suffix.lower() == ".parquet" for child in found):
        return folder
    if not found:
        raise bad_data(f"the folder {folder} has no data: no file whose name ends in .jsonl, .ndjson, .json, .csv, .tsv or .parquet")
    raise _unclear(found, folder, f"{len(found)} files of data")


def _unclear(named: Sequence[Path], folder: Path, what: str) -> Exception:
    listed = f"{', '.join(child.name for child in named[:_SHOWN])}{' and others' if len(named) > _SHOWN else ''}"
    advice = "name the file of each site, or call the two parts of one site train and validation"
    return bad_data(f"the folder {folder} has {what} ({listed}): {advice}")


class HeldOutRows(NamedTuple):
    """Numbers of rows."""

    train: int
    validation: int
    skipped: int


def hold_out(path: Path, columns: Columns, train: Path, validation: Path) -> HeldOutRows:
    """Write these columns of the rows to two files of JSON lines: a tenth of the rows, at most a thousand, is for validation.

    Which rows is decided by their content: equal rows go into the same file, and a second call writes the same. A row whose columns cannot
    be used is for training, where it is one of more: such rows are often equal, as those without a text. The data are read twice.

    Raises:
        TaskFailed: BadData; fewer than two rows differ, or as `read_rows`.
        OSError: a file cannot be read or written.
    """
    bad, digests, count = BadRows(), array("Q"), 0
    for line in _lines(path, columns, bad):
        count += 1
        digests.extend([_digest(line.text)] if line.is_usable else [])
    check_bad_share(path, count, bad, "row")
    if not digests:  # whoever reads the two files says why
        return hold_out(path, anything_in(columns.names), train, validation)
    limit = _limit(sorted(digests), path)
    written = {True: 0, False: 0}
    with train.open("w", encoding="utf-8") as kept, validation.open("w", encoding="utf-8") as held:
        for line in _lines(path, columns, BadRows()):
            is_held = line.is_usable and _digest(line.text) <= limit
            (held if is_held else kept).write(line.text + "\n")
            written[is_held] += 1
    return HeldOutRows(written[False], written[True], bad.count)


def anything_in(names: Sequence[str]) -> Columns:
    """Columns of which any value can be used."""
    return Columns(names, dict.fromkeys(names, lambda _value: ""))


def _limit(ordered: Sequence[int], path: Path) -> int:
    """The largest digest of a row that is held out."""
    if ordered[0] == ordered[-1]:
        found = f"the data {path} have {len(ordered)} rows, of which no two differ"
        raise bad_data(f"{found}: a part for validation needs another row, so give the validation data, or more rows")
    wanted = max(1, min(_MOST_HELD_OUT, round(_SHARE * len(ordered))))
    limit = ordered[wanted - 1]
    return limit if limit < ordered[-1] else max(one for one in ordered if one < ordered[-1])


def _digest(line: str) -> int:
    return int.from_bytes(sha256(line.encode()).digest()[:_DIGEST], "big")


class _Line(NamedTuple):
    """A row as JSON, and whether its columns can be used."""

    text: str
    is_usable: bool


def _lines(path: Path, columns: Columns, bad: BadRows) -> Iterator[_Line]:
    """The rows. What cannot be read is counted."""
    for number, record in read_records(path, columns.names).numbered:
        try:
            if isinstance(record, BadRowError):
                raise record
            line = json.dumps({column: _plain(value_of(record, column)) for column in columns.names}, ensure_ascii=False)
        except (BadRowError, ValueError, TypeError, RecursionError) as error:
            bad.add(number, error if isinstance(error, BadRowError) else BadRowError("it has a value that JSON does not have"))
            continue
        if is_utf8(line):
            yield _Line(line, _is_usable(record, columns))
        else:
            bad.add(number, BadRowError("it is not UTF-8: save the file as UTF-8"))


def _is_usable(record: Record, columns: Columns) -> bool:
    try:
        select_columns(record, columns)
    except BadRowError:
        return False
    return True


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of a data file
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return value
