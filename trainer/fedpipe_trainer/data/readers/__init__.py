"""Readers of data files, one module a family of formats. The name's end, or what a folder holds, tells which reads it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fedpipe_trainer.data.readers.delimited import read_table
from fedpipe_trainer.data.readers.folders import files_of
from fedpipe_trainer.data.readers.json_files import read_json, read_json_lines
from fedpipe_trainer.data.readers.record import BadRowError, MissingColumnError, Record, Records, RepeatedNames, bad_data
from fedpipe_trainer.data.readers.text import COMPRESSIONS, is_utf8

__all__ = ["BadRowError", "MissingColumnError", "Record", "RepeatedNames", "bad_data", "files_of", "is_utf8", "read_records"]

_TEXTS: Final[dict[str, Callable[[Path, Sequence[str]], Records]]] = {
    ".jsonl": lambda path, _columns: read_json_lines(path),
    ".json": lambda path, _columns: read_json(path),
    ".csv": lambda path, columns: read_table(path, columns, ".csv"),
    ".tsv": lambda path, columns: read_table(path, columns, ".tsv"),
}


def read_records(path: Path, columns: Sequence[str]) -> Records:
    """The records of a file or folder of data; at least these columns of each.

    Raises:
        TaskFailed: BadData, it has an unknown format or cannot be used; also while the records are read.
        OSError: likewise, it cannot be read.
    """
    name = path.name.lower()
    plain = next((name.removesuffix(end) for end in COMPRESSIONS if name.endswith(end)), name)
    if (reader := _TEXTS.get(Path(plain).suffix)) and not path.is_dir():
        return reader(path, columns)
    if not path.is_dir() and path.suffix.lower() != ".parquet":
        ends = f"{', '.join(_TEXTS)} (also with {' or '.join(COMPRESSIONS)}) or .parquet"
        missing = "" if path.exists() else "there is nothing of this name, and "
        raise bad_data(f"the data file {path} has an unknown format: {missing}its name must end in one of {ends}, or it is a folder")
    # The import takes half a second, and only these files need it.
    from fedpipe_trainer.data.readers.arrow import read_arrow, read_parquet  # noqa: PLC0415

    files = files_of(path)
    return (read_arrow if files[0].suffix == ".arrow" else read_parquet)(files, columns)
