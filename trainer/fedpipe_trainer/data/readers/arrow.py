"""Columns of Arrow types: parquet files, folders of their shards, and `datasets` folders that were saved to disk.

Only the task's columns are read, and of their lists and objects what JSON has values for, see `arrow_values`: other columns and other
fields may have any type, or hold images.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyarrow import compute, ipc, parquet

from fedpipe_trainer.data.readers.arrow_values import is_readable, type_named, values_of
from fedpipe_trainer.data.readers.class_names import FEATURES_FILE, Features, class_names, features_in, with_class_names
from fedpipe_trainer.data.readers.record import MIB, BadRowError, MissingColumnError, Record, Records, bad_data, most_bytes

_BATCH_BYTES: Final = 16 * MIB
"""Of the rows that are in memory at once beside those that are kept, about."""
_MOST_ROWS: Final = 4096
"""Of a batch."""
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
        features: Features = None
        beside = path.parent / FEATURES_FILE if path.suffix == ".arrow" else None
        try:
            for batch, count in batches(path, columns):
                features = features or features_in((batch.schema.metadata or {}).get(b"huggingface", b""), beside)
                for record in _records(batch, columns, features, count):
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


def _records(batch: pa.RecordBatch, columns: Sequence[str], features: Features, count: int) -> Iterator[dict[str, Any]]:
    values = [_values(batch, column, features, count) for column in columns]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _values(batch: pa.RecordBatch, column: str, features: Features, count: int) -> list[Any]:
    """The values of a column, by path: None where there is none, a `BadRowError` where it cannot be read."""
    name, rest = _split(column, batch.schema)
    if not name:
        return [MissingColumnError(count)] * len(batch)
    array = batch.column(batch.schema.names.index(name))
    at = 0
    while at < len(rest) and pa.types.is_struct(array.type):
        if array.type.get_field_index(rest[at]) < 0:
            return [None] * len(batch)
        array, at = compute.struct_field(array, [rest[at]]), at + 1
    if at < len(rest) and not pa.types.is_map(array.type):
        return [None] * len(batch)
    if not is_readable(array.type):
        return [BadRowError(f"column {column!r} is {type_named(array.type)}, not text")] * len(batch)
    found = [_at(value, rest[at:]) for value in values_of(array)]
    return with_class_names(found, class_names(features, [name, *rest]), column)


def _at(value: Any, path: Sequence[str]) -> Any:  # noqa: ANN401 -- any value
    for part in path:
        value = value.get(part) if isinstance(value, dict) else value if isinstance(value, BadRowError) else None
    return value
