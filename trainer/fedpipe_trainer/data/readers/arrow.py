"""Columns of Arrow types: parquet files, folders of their shards, and `datasets` folders that were saved to disk.

Only the task's columns are read: others may have types that Python has none for, or images.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyarrow import compute, ipc, parquet

from fedpipe_trainer.data.readers.record import MIB, BadRowError, MissingColumnError, Record, Records, bad_data, most_bytes

_BATCH_BYTES: Final = 16 * MIB
"""Of the rows that are in memory at once beside those that are kept, about."""
_MOST_ROWS: Final = 4096
"""Of a batch."""
_LONGEST_METADATA: Final = 16 * MIB
_DEEPEST: Final = 3
"""Parts of a path that `names_of` tells."""
_Batches = Callable[[Path, Sequence[str]], Iterator[tuple[pa.RecordBatch, int]]]
"""Batches of these columns of a file, each with the number of columns that the file has."""


def read_parquet(files: Sequence[Path], columns: Sequence[str]) -> Records:
    """The rows of parquet files, one after the other."""
    return Records(_numbered(files, columns, _parquet_batches), "row")


def read_arrow(files: Sequence[Path], columns: Sequence[str]) -> Records:
    """The rows of the files of a `datasets` folder."""
    return Records(_numbered(files, columns, _arrow_batches), "row")


def names_of(path: Path) -> list[str]:
    """The columns of a file, and the paths into its nested ones.

    Raises:
        TaskFailed: BadData, it cannot be read.
    """
    try:
        with path.open("rb") as raw:
            schema = ipc.open_stream(raw).schema if path.suffix == ".arrow" else parquet.read_schema(raw)
    except (pa.ArrowException, UnicodeDecodeError, OverflowError, OSError) as error:
        raise _unreadable(path, error) from None
    return [name for field in schema for name in _paths(field, field.name, _DEEPEST)]


def _paths(field: pa.Field, path: str, depth: int) -> Iterator[str]:
    yield path
    if depth > 1 and pa.types.is_struct(field.type):
        for inner in field.type:
            yield from _paths(inner, f"{path}.{inner.name}", depth - 1)


def _numbered(files: Sequence[Path], columns: Sequence[str], batches: _Batches) -> Iterator[tuple[int, Record]]:
    number = characters = 0
    most = most_bytes(sum(path.stat().st_size for path in files))
    for path in files:
        try:
            for batch, count in batches(path, columns):
                for record in _records(batch, columns, count):
                    number += 1
                    characters += sum(len(value) for value in record.values() if isinstance(value, str))
                    yield number, record
                if characters > most:  # one text may stand for millions of rows
                    raise bad_data(f"the data file {path} has more than {most // MIB} MiB of text: write it anew, in smaller files")
        except (pa.ArrowException, UnicodeDecodeError, OverflowError, OSError) as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = f"the data file {path} cannot be read ({type(error).__name__})"
    return bad_data(f"{found}: it is damaged, cut short, or of another format; write it anew")


def _parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
    with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
        if not file.metadata.num_rows:
            return
        names, count = _top_levels(columns, file.schema_arrow, path), len(file.schema_arrow.names)
        rows = _rows_of_a_batch(_checked_size(file.metadata, path) / file.metadata.num_rows)
        for batch in file.iter_batches(rows, columns=[*names]):
            yield batch, count


def _checked_size(metadata: parquet.FileMetaData, path: Path) -> int:
    """Bytes of the file when it is decompressed."""
    size = sum(int(metadata.row_group(at).total_byte_size) for at in range(metadata.num_row_groups))
    if size > (most := most_bytes(path.stat().st_size)):
        raise bad_data(f"the data file {path} has more than {most // MIB} MiB when it is decompressed: write it anew, in smaller files")
    return size


def _rows_of_a_batch(bytes_of_a_row: float) -> int:
    return max(1, min(_MOST_ROWS, int(_BATCH_BYTES / max(1.0, bytes_of_a_row))))


def _arrow_batches(path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
    with path.open("rb") as raw:
        schema = ipc.open_stream(raw).schema
        names = _top_levels(columns, schema, path)
        raw.seek(0)
        options = ipc.IpcReadOptions(included_fields=[at for at, name in enumerate(schema.names) if name in names])
        for batch in ipc.open_stream(raw, options=options):
            rows = _rows_of_a_batch(batch.nbytes / max(1, len(batch)))
            yield from ((batch.slice(at, rows), len(schema.names)) for at in range(0, len(batch), rows))


def _top_levels(columns: Sequence[str], schema: pa.Schema, path: Path) -> list[str]:
    """The columns of the file that have these: themselves, or those that their paths begin with.

    Raises:
        TaskFailed: BadData, there is none, or there are several of a name.
    """
    found = list(dict.fromkeys(name for column in columns if (name := _split(column, schema)[0])))
    for name in found:
        if (count := schema.names.count(name)) > 1:
            raise bad_data(f"the data file {path} has column {name!r} {count} times: rename all but one of them")
    if not found:
        count, named = len(schema.names), ", ".join(map(repr, columns))
        raise bad_data(f"the data file {path} has {count} columns, and none of the name {named}: correct the task's columns, or the file")
    return found


def _split(column: str, schema: pa.Schema) -> tuple[str, list[str]]:
    """The column of the file that a path begins with, and the rest of the path; an empty name if there is none."""
    parts = column.split(".")
    at = next((at for at in range(len(parts), 0, -1) if ".".join(parts[:at]) in schema.names), 0)
    return ".".join(parts[:at]), parts[at:]


def _records(batch: pa.RecordBatch, columns: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    values = [_values(batch, column, count) for column in columns]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _values(batch: pa.RecordBatch, column: str, count: int) -> list[Any]:
    """The values of a column, by path: None where there is none, a `BadRowError` where it cannot be read."""
    name, rest = _split(column, batch.schema)
    if not name:
        return [MissingColumnError(count)] * len(batch)
    array = batch.column(batch.schema.names.index(name))
    for part in rest:
        if not pa.types.is_struct(array.type) or array.type.get_field_index(part) < 0:
            return [None] * len(batch)
        array = compute.struct_field(array, [part])
    if not _has_text(array.type):
        return [BadRowError(f"column {column!r} is {_named(array.type)}, not text")] * len(batch)
    return _with_class_names(_as_python(array), _class_names(batch.schema, [name, *rest]), column)


def _as_python(array: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(array.type):
        known = _as_python(array.dictionary)
        return [None if index is None else known[index] for index in array.indices.to_pylist()]
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_cell(value) for value in array]


def _cell(value: pa.Scalar) -> Any:  # noqa: ANN401 -- any value
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return BadRowError("it is not UTF-8: write the file anew, with texts in UTF-8")


def _has_text(kind: pa.DataType) -> bool:
    """Whether Python has values for the type that may be texts or labels, or lists and objects of them."""
    t = pa.types
    if t.is_dictionary(kind) or t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return _has_text(kind.value_type)
    if t.is_struct(kind):
        return all(_has_text(field.type) for field in kind)
    is_text = t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
    is_number = t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind)
    return bool(is_text or is_number or t.is_boolean(kind) or t.is_null(kind))


def _named(kind: pa.DataType) -> str:
    """The type in a word of ours: Arrow's own description may quote the file."""
    t = pa.types
    if t.is_temporal(kind):
        return "a date or a time"
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind):
        return "binary"
    return "nested" if t.is_nested(kind) else "of a type without text"


def _class_names(schema: pa.Schema, parts: Sequence[str]) -> list[str] | None:
    """The names of the classes of a column, if the `datasets` library wrote that it is a ClassLabel."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        found: Any = json.loads(text)["info"]["features"] if 0 < len(text) <= _LONGEST_METADATA else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    for part in parts:
        found = found.get(part) if isinstance(found, dict) else None
    names = found.get("names") if isinstance(found, dict) and found.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _with_class_names(values: list[Any], names: list[str] | None, column: str) -> list[Any]:
    if names is None:
        return values
    return [_class_name(value, names, column) if isinstance(value, int) else value for value in values]


def _class_name(value: int, names: list[str], column: str) -> Any:  # noqa: ANN401 -- a name, or why there is none
    if value == -1:  # what `datasets` writes where a row has no label
        return None
    is_class = 0 <= value < len(names)
    return names[value] if is_class else BadRowError(f"column {column!r} has a number that is none of its {len(names)} classes")
