"""Writes rows in each format that a site's data may have."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyarrow import ipc, parquet

Rows = Sequence[dict[str, Any]]


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(rows: Rows, delimiter: str) -> bytes:
    """As a table is written from such rows: lists and objects as JSON, nothing for what is missing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    compressed: bytes = sink.getvalue().to_pybytes()
    return compressed


def _write(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def _parquet(folder: Path, rows: Rows) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), folder / "notes.parquet")
    return folder / "notes.parquet"


def _shards(folder: Path, rows: Rows) -> Path:
    half = len(rows) // 2
    (folder / "shards").mkdir(parents=True)
    for at, part in enumerate((rows[:half], rows[half:])):
        parquet.write_table(pa.Table.from_pylist(list(part)), folder / "shards" / f"part-0000{at}-of-00002.parquet")
    return folder / "shards"


def _saved(folder: Path, rows: Rows) -> Path:
    """As `Dataset.save_to_disk` writes it."""
    table, saved = pa.Table.from_pylist(list(rows)), folder / "saved"
    saved.mkdir(parents=True)
    with (saved / "data-00000-of-00001.arrow").open("wb") as file, ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (saved / "dataset_info.json").write_text("{}")
    return saved


FORMATS: Final[dict[str, Callable[[Path, Rows], Path]]] = {
    "jsonl": lambda folder, rows: _write(folder, "notes.jsonl", as_jsonl(rows)),
    "jsonl.gz": lambda folder, rows: _write(folder, "notes.jsonl.gz", gzip.compress(as_jsonl(rows))),
    "jsonl.zst": lambda folder, rows: _write(folder, "notes.jsonl.zst", _zstd(as_jsonl(rows))),
    "json array": lambda folder, rows: _write(folder, "notes.json", json.dumps(list(rows), indent=1).encode()),
    "csv": lambda folder, rows: _write(folder, "notes.csv", as_table(rows, ",")),
    "csv with semicolons": lambda folder, rows: _write(folder, "notes.csv", as_table(rows, ";")),
    "tsv.gz": lambda folder, rows: _write(folder, "notes.tsv.gz", gzip.compress(as_table(rows, "\t"))),
    "parquet": _parquet,
    "folder of shards": _shards,
    "saved dataset": _saved,
}
"""By name of a format: writes the rows into a folder; the path by which a site names them."""
