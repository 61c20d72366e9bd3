"""Readers of data files, one module a family of formats. The name's end, or what a folder holds, tells which reads it."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from fedpipe_trainer import stand_ins
from fedpipe_trainer.data.readers.delimited import read_table
from fedpipe_trainer.data.readers.first import MOST_ROWS, Bounds, FirstRecords
from fedpipe_trainer.data.readers.folders import files_of
from fedpipe_trainer.data.readers.json_files import read_json
from fedpipe_trainer.data.readers.record import BadRowError, MissingColumnError, Record, Records, RepeatedNames, bad_data
from fedpipe_trainer.data.readers.text import COMPRESSIONS, is_utf8
from fedpipe_trainer.errors import TaskFailed

__all__ = [
    "MOST_ROWS",
    "BadRowError",
    "Bounds",
    "FirstRecords",
    "MissingColumnError",
    "Record",
    "RepeatedNames",
    "bad_data",
    "column_names",
    "files_of",
    "is_data_file",
    "is_utf8",
    "read_records",
    "suffix_of",
]

_TEXTS: Final[dict[str, Callable[[Path, Sequence[str]], Records]]] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": lambda path, columns: read_table(path, columns, ".csv"),
    ".tsv": lambda path, columns: read_table(path, columns, ".tsv"),
}


_PARQUET: Final = ".parquet"
_ADVICE: Final = {
    ".txt": 'it does not tell where a text ends: write a line {"text": "..."} of a .jsonl file for each',
    ".xlsx": "save the sheet as .csv, in UTF-8",
    ".xls": "save the sheet as .csv, in UTF-8",
}
"""For files that are no rows, what to do."""
_ROWS_WITH_NAMES: Final = 200
"""First rows of a text file that tell its columns: rows of JSON may leave some out."""


def suffix_of(path: Path) -> str:
    """The end of a data file's name that tells its format, in lower case, such as `.jsonl.gz`; empty if it tells none."""
    name = path.name.lower()
    compression = next((end for end in COMPRESSIONS if name.endswith(end)), "")
    format_ = Path(name.removesuffix(compression)).suffix
    is_known = format_ in _TEXTS or (format_ == _PARQUET and not compression)
    return f"{format_}{compression}" if is_known else ""


def is_data_file(path: Path) -> bool:
    """Whether it is a file whose name tells a format."""
    return bool(suffix_of(path)) and path.is_file()


def column_names(path: Path) -> list[str]:
    """The names of the columns of a file or folder of data: of JSON those of its first rows.

    Raises:
        TaskFailed: BadData, as `read_records`.
        OSError: likewise.
    """
    if suffix_of(path) not in {"", _PARQUET} and not path.is_dir():
        records = (record for _, record in islice(read_records(path, ()).numbered, _ROWS_WITH_NAMES))
        return list(dict.fromkeys(name for record in records if not isinstance(record, BadRowError) for name in record if name))
    if not path.is_dir() and suffix_of(path) != _PARQUET:
        raise _unknown_format(path)
    # As below.
    from fedpipe_trainer.data.readers.arrow import names_of  # noqa: PLC0415

    files = files_of(path)
    _require_themselves(files[:1])
    return names_of(files[0])


def read_records(path: Path, columns: Sequence[str]) -> Records:
    """The records of a file or folder of data; at least these columns of each.

    Raises:
        TaskFailed: BadData, it has an unknown format or cannot be used; also while the records are read.
        OSError: likewise, it cannot be read.
    """
    suffix = suffix_of(path)
    format_ = next((one for one in _TEXTS if suffix == one or suffix.startswith(f"{one}.")), "")
    if (reader := _TEXTS.get(format_)) and not path.is_dir():
        _require_themselves([path])
        return reader(path, columns)
    if not path.is_dir() and suffix != _PARQUET:
        raise _unknown_format(path)
    # The import takes half a second, and only these files need it.
    from fedpipe_trainer.data.readers.arrow import read_arrow, read_parquet  # noqa: PLC0415

    files = files_of(path)
    _require_themselves(files)
    return (read_arrow if files[0].suffix == ".arrow" else read_parquet)(files, columns)


def _require_themselves(files: Sequence[Path]) -> None:
    """A pointer of git-lfs under the name of a csv would be read as a table, and a pipe be waited for without end."""
    for file in files:
        if file.exists() and not file.is_file():
            raise bad_data(f"the data file {file} is no file, but a folder, a pipe or a device: write the rows into a file")
        if file.is_file() and (found := stand_ins.described(file)):
            raise bad_data(f"the data file {file} {found}")


def _unknown_format(path: Path) -> TaskFailed:
    ends = f"{', '.join(_TEXTS)} (also with {' or '.join(COMPRESSIONS)}) or .parquet"
    missing = "" if path.exists() else "there is nothing of this name, and "
    if path.exists() and (advice := _ADVICE.get(path.suffix.lower())):
        return bad_data(f"the data file {path} has no rows in a format that is read: {advice}")
    return bad_data(f"the data file {path} has an unknown format: {missing}its name must end in one of {ends}, or it is a folder")
