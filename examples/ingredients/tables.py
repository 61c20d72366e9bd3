"""Writes rows in the format of the file's suffix, so that the examples use all three formats."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Row = dict[str, str]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns to a .jsonl, .csv or .parquet file. Their values are texts; not in CSV also lists and objects.

    Raises:
        KeyError: the file has another suffix.
    """
    _WRITERS[file.suffix](file, rows)


def _jsonl(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _parquet(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa  # noqa: PLC0415 - takes half a second, needed for parquet only
    from pyarrow import parquet  # noqa: PLC0415 - likewise

    parquet.write_table(pa.Table.from_pylist(list(rows)), file)


_WRITERS: Final[dict[str, Callable[[Path, Sequence[Mapping[str, Any]]], None]]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
