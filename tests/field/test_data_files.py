"""What people report of data files elsewhere, and files of the same kinds: each is read as it was meant, or refused in words."""

import codecs
import csv
import gzip
import io
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.data import Rows, read_rows
from fedpipe_trainer.data.readers import files_of
from fedpipe_trainer.data.values import read_label
from fedpipe_trainer.errors import TaskFailed

COLUMNS: Final = ("text", "label")
LINES: Final = tuple(f"note number {at} all well,{('red', 'blue')[at % 2]}" for at in range(300))
ROWS: Final = [{"text": line.partition(",")[0], "label": line.partition(",")[2]} for line in LINES]


def read(path: Path, columns: Sequence[str] = COLUMNS) -> Rows:
    return read_rows(path, columns, {"label": read_label})


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message_of(path: Path, columns: Sequence[str] = COLUMNS) -> str:
    """Why the file cannot be used: a message that can be written, printed and read."""
    with pytest.raises(TaskFailed) as caught:
        read(path, columns)
    assert caught.value.reason is FailureReason.BAD_DATA
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 4096
    return caught.value.message


def table(lines: Sequence[str] = LINES, header: str = "text,label", end: str = "\n") -> str:
    return end.join((header, *lines)) + end


def as_jsonl(rows: Sequence[dict[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_parquet(found: pa.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(found, sink)
    return sink.getvalue()


def labels_of(rows: Rows) -> list[str]:
    return list(rows.rows.column("label"))


# Encodings


@pytest.mark.parametrize("name", ["data.csv", "data.tsv"])
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift-jis"])
def test_a_header_that_is_not_utf8_is_told_in_a_message_that_can_be_written(tmp_path: Path, name: str, encoding: str) -> None:
    other = "ｶﾅ" if encoding == "shift-jis" else "für"
    path = write(tmp_path, name, table(header=f"Befund,label,{other}", lines=["a,b,c"] * 20).encode(encoding))

    assert message_of(path) == f"the header of the data file {path} is not UTF-8: save it as UTF-8"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.json", "data.tsv"])
def test_a_file_in_another_encoding_of_unicode_is_told_to_be_saved_as_utf8(tmp_path: Path, name: str, encoding: str) -> None:
    content = table() if name.endswith("sv") else as_jsonl()

    assert "save it as UTF-8" in message_of(write(tmp_path, name, content.encode(encoding)))


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_rows_that_are_not_utf8_are_told_to_be_saved_as_utf8(tmp_path: Path, name: str) -> None:
    rows = [{"text": "für alle", "label": "rot"}] * 50
    content = as_jsonl(rows) if name.endswith("jsonl") else table([f"{row['text']},{row['label']}" for row in rows])
    message = message_of(write(tmp_path, name, content.encode("cp1252")))

    assert "not UTF-8: save the file as UTF-8" in message


def test_a_text_of_parquet_that_is_not_utf8_costs_its_own_row(tmp_path: Path) -> None:
    texts = pa.array([b"f\xfcr", *[row["text"].encode() for row in ROWS]], pa.binary()).cast(pa.string(), safe=False)
    path = write(tmp_path, "data.parquet", as_parquet(pa.table({"text": texts, "label": ["red", *[row["label"] for row in ROWS]]})))
    found = read(path)

    assert (list(found.rows), found.skipped) == (ROWS, 1)


@pytest.mark.parametrize("mark", ["\x1b[31m", "\u202e", "\u2028", "\udcfc", "\n"])
def test_a_message_about_a_path_of_any_name_is_printable(tmp_path: Path, mark: str) -> None:
    assert "cannot be read" in message_of(tmp_path / f"a{mark}b.csv")


@pytest.mark.parametrize("mark", ["\u202e", "\u2066", "\x1b[31m", "\x00", "\x85"])
def test_a_label_that_does_more_than_show_is_no_label(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path, "data.jsonl", as_jsonl([{"text": "a", "label": f"spam{mark}x"}] * 4))

    assert "column 'label': it has a label with control characters: remove them" in message_of(path)


@pytest.mark.parametrize("label", ["👩\u200d👩\u200d👧", "क्\u200dष", "हिन्दी", "naïve\u00a0x", "שלום"])
def test_a_label_of_any_script_is_one(tmp_path: Path, label: str) -> None:
    assert labels_of(read(write(tmp_path, "data.jsonl", as_jsonl([{"text": "a", "label": label}])))) == [label]


# Quotes


def test_a_quote_that_is_never_closed_is_an_error_that_names_its_line(tmp_path: Path) -> None:
    lines = [*LINES[:150], '"open quote never closed,red', *LINES[151:]]
    message = message_of(write(tmp_path, "data.csv", table(lines)))

    assert "a quote that is opened in the row at line 152" in message
    assert "is not closed until the end of the file, which takes 150 lines into one field" in message


def test_the_lines_that_a_quote_swallows_are_counted_each(tmp_path: Path) -> None:
    quoted = [f'"{line.partition(",")[0]}",red' for line in LINES]
    lines = [*LINES[:150], '"open,red', *LINES[151:200], *quoted[200:]]
    message = message_of(write(tmp_path, "data.csv", table(lines)))

    assert "51 of 300 rows" in message
    assert "a quote in it is not closed" in message


def test_lines_that_become_one_field_of_a_whole_row_are_counted_each(tmp_path: Path) -> None:
    lines = [*LINES[:100], '"open,red', *LINES[101:140], 'closed here",blue', *LINES[141:]]
    message = message_of(write(tmp_path, "data.csv", table(lines)))

    assert "41 of 300 rows" in message
    assert "a quote that is not closed takes 41 lines into one field" in message


def test_a_text_of_many_lines_is_one_row(tmp_path: Path) -> None:
    text = io.StringIO()
    poem = "\n".join(["shall I compare thee", "to a summer's day?", "", "thou art, more lovely, and"] * 10)
    csv.writer(text).writerows([("text", "label"), *[(poem, "red")] * 5])

    assert read(write(tmp_path, "data.csv", text.getvalue())).rows == [{"text": poem, "label": "red"}] * 5


def test_a_quote_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_trainer.data.readers.delimited.LONGEST_RECORD", 2000)
    message = message_of(write(tmp_path, "data.csv", table(['"open,red', *LINES])))

    assert "a quote that is opened in the row at line 2" in message


# Headers


def test_a_header_that_names_the_tasks_column_twice_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "data.csv", table([f"{line},other" for line in LINES], header="text,label,text"))

    assert message_of(path) == f"the header of the data file {path} has column 'text' 2 times: rename all but one of them"
    assert labels_of(read(path, ("label",))) == [row["label"] for row in ROWS]


@pytest.mark.parametrize("header", ["text,label, text", "text,label,text ", "label,text,x,x,text"])
def test_a_header_that_repeats_a_column_but_for_space_is_one_too(tmp_path: Path, header: str) -> None:
    lines = [",".join("abcde"[: header.count(",") + 1])] * 5

    assert "column 'text' 2 times" in message_of(write(tmp_path, "data.csv", table(lines, header)))


def test_an_object_of_json_that_names_the_column_twice_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, "data.jsonl", '{"text": "a", "label": "x", "text": "b"}\n' * 3)

    assert "column 'text' is there more than once" in message_of(path)
    assert labels_of(read(path, ("label",))) == ["x"] * 3


def test_parquet_that_has_the_column_twice_is_an_error(tmp_path: Path) -> None:
    found = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["x"])], names=["text", "text", "label"])

    assert "column 'text' 2 times" in message_of(write(tmp_path, "data.parquet", as_parquet(found)))


@pytest.mark.parametrize("start", ["\n", "\r\n\r\n", "   \n", ",\n", "\ufeff\n", " , , \n"])
def test_blank_lines_before_the_header_are_no_header(tmp_path: Path, start: str) -> None:
    assert read(write(tmp_path, "data.csv", start + table())).rows == ROWS


def test_rows_without_any_value_are_no_rows(tmp_path: Path) -> None:
    found = read(write(tmp_path, "data.csv", table([*LINES, ",", " , ", ""])))

    assert (list(found.rows), found.skipped) == (ROWS, 0)


# Types


@pytest.mark.parametrize(
    "other",
    [
        pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("us", tz="Mars/Olympus")),
        pa.array([1, 2], pa.timestamp("ns")),
        pa.array([2**50, 2**50], pa.timestamp("ms")),
        pa.array([300_000_000] * 2, pa.date32()),
        pa.array([[1.0], [2.0]], pa.list_(pa.float32())),
        pa.array([b"\xff", b"\xfe"]),
        pa.array([{"a": {"b": [1]}}, None]),
        pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda array: str(array.type),
)
def test_columns_that_nobody_asked_for_may_have_any_type(tmp_path: Path, other: pa.Array) -> None:
    path = write(tmp_path, "data.parquet", as_parquet(pa.table({"text": ["a", "b"], "label": ["x", "y"], "other": other})))

    assert labels_of(read(path)) == ["x", "y"]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (pa.array([1, 2], pa.timestamp("ns", tz="Mars/Olympus")), "a date or a time"),
        (pa.array([300_000_000] * 2, pa.date32()), "a date or a time"),
        (pa.array([b"a", b"b"]), "binary"),
        (pa.array([["a"], ["b"]]), "a list"),
        (pa.array([{"secret": 1}] * 2), "an object"),
        (pa.array([0.5, 1.5]), "a number"),
        (pa.array([Decimal("0.5"), Decimal("1.5")]), "a number"),
        (pa.array([[("secret", 1)], []], pa.map_(pa.string(), pa.int64())), "an object"),
        (pa.array([[(1, "secret")], []], pa.map_(pa.int64(), pa.string())), "nested"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_a_label_of_another_type_is_told_in_a_word(tmp_path: Path, values: pa.Array, word: str) -> None:
    message = message_of(write(tmp_path, "data.parquet", as_parquet(pa.table({"text": ["a", "b"], "label": values}))))

    assert f"column 'label' is {word}" in message or f"column 'label': it is {word}" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], ["0", "1"]),
        ([True, False], ["true", "false"]),
        ([0.0, 1.0], ["0", "1"]),
        ([-1, 10**18], ["-1", str(10**18)]),
        ([" spam ", "\tham\u00a0"], ["spam", "ham"]),
        (["0.0", "True"], ["0.0", "True"]),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
def test_integers_and_booleans_are_labels(tmp_path: Path, name: str, values: list[Any], labels: list[str]) -> None:
    rows = [{"text": "a", "label": value} for value in values]
    content = {
        "data.jsonl": as_jsonl(rows).encode(),
        "data.json": json.dumps(rows).encode(),
        "data.parquet": as_parquet(pa.Table.from_pylist(rows)),
    }

    assert labels_of(read(write(tmp_path, name, content[name]))) == labels


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint64(), pa.float16(), pa.decimal128(21, 2), pa.dictionary(pa.int8(), pa.int64())], ids=str
)
def test_every_type_of_whole_numbers_makes_the_same_labels(tmp_path: Path, kind: pa.DataType) -> None:
    values = (
        pa.array([0, 1, 1], pa.int64()).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array([0, 1, 1]).cast(kind)
    )

    assert labels_of(read(write(tmp_path, "data.parquet", as_parquet(pa.table({"text": ["a"] * 3, "label": values}))))) == ["0", "1", "1"]


@pytest.mark.parametrize("value", [[1], {"a": 1}, 0.5, 1e300])
def test_what_is_no_text_and_no_whole_number_is_no_label(tmp_path: Path, value: Any) -> None:
    assert "a label is a text, an integer or a boolean" in message_of(
        write(tmp_path, "data.jsonl", as_jsonl([{"text": "a", "label": value}] * 3))
    )


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_a_label_that_is_nan_is_no_value(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a", "label": 1.0}] * 200 + [{"text": "a", "label": math.nan}]
    found = read(write(tmp_path, name, as_jsonl(rows) if name.endswith("jsonl") else as_parquet(pa.Table.from_pylist(rows))))

    assert (labels_of(found), found.skipped) == (["1"] * 200, 1)


# Formats


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.csv.gz"])
def test_the_delimiter_is_found(tmp_path: Path, name: str, delimiter: str) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([COLUMNS, *[(f"a, b; c | d\t{at}", "red") for at in range(20)]])
    content = text.getvalue().encode()
    path = write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)

    assert read(path).rows == [{"text": f"a, b; c | d\t{at}", "label": "red"} for at in range(20)]


def test_a_table_of_one_column_may_have_any_delimiter_in_its_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "data.csv", "text\nhello, world\nbye, world\n")

    assert read_rows(path, ("text",)).rows == [{"text": "hello, world"}, {"text": "bye, world"}]


def compressed(content: str, end: str) -> bytes:
    plain = content.encode()
    return gzip.compress(plain) if end == ".gz" else bytes(pa.compress(plain, "zstd", asbytes=True)) if end == ".zst" else plain


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv", "data.tsv"])
def test_every_format_of_text_is_read_compressed_as_well(tmp_path: Path, name: str, end: str) -> None:
    content = {"data.jsonl": as_jsonl(), "data.json": json.dumps(ROWS, indent=1)}.get(name, table())

    assert read(write(tmp_path, name + end, compressed(content, end))).rows == ROWS


@pytest.mark.parametrize("end", [".gz", ".zst"])
@pytest.mark.parametrize("fault", ["cut", "other", "joined"])
def test_a_compressed_file_that_is_damaged_is_told_as_such(tmp_path: Path, end: str, fault: str) -> None:
    whole = compressed(as_jsonl(), end)
    if fault == "joined":
        assert read(write(tmp_path, f"data.jsonl{end}", whole + whole)).rows == ROWS * 2
        return
    message = message_of(write(tmp_path, f"data.jsonl{end}", whole[:-9] if fault == "cut" else b"c4n4ry" + whole))

    assert "cannot be decompressed" in message
    assert "c4" not in message


def test_a_compressed_file_of_another_name_is_told_its_name(tmp_path: Path) -> None:
    assert "compressed with gzip: name it .gz" in message_of(write(tmp_path, "data.jsonl", gzip.compress(as_jsonl().encode())))


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_file_that_expands_without_bounds_is_stopped(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_trainer.data.readers.record.SMALL_FILE", 2**20)
    bomb = compressed(as_jsonl([{"text": "a" * 1000, "label": "x"}]) * 20_000, end)

    assert "when it is decompressed" in message_of(write(tmp_path, f"data.jsonl{end}", bomb))


def test_parquet_in_which_one_text_stands_for_millions_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_trainer.data.readers.record.SMALL_FILE", 2**20)
    found = pa.table({"text": pa.array(["a" * 10_000] * 5000), "label": ["x"] * 5000})

    assert "MiB of text" in message_of(write(tmp_path, "data.parquet", as_parquet(found)))


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.json"])
def test_a_line_without_end_is_an_error_and_no_memory(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("text", "json_files", "json_window", "delimited"):
        monkeypatch.setattr(f"fedpipe_trainer.data.readers.{module}.LONGEST_RECORD", 10_000)
    long = '[{"text": "' + "a" * 4_000_000 if name == "data.json" else '"' + "a" * 20_000
    message = message_of(write(tmp_path, name, long))

    assert "longer than" in message or "MiB" in message


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_told_as_such(tmp_path: Path, name: str, opening: str) -> None:
    deep = opening * 200_000

    message = message_of(write(tmp_path, name, ("[" if name == "data.json" else "") + deep))
    assert "nested too deeply" in message


@pytest.mark.parametrize("content", ["[]", " [ ] ", ""])
def test_an_array_without_elements_has_no_rows(tmp_path: Path, content: str) -> None:
    assert "has no rows" in message_of(write(tmp_path, "data.json", content))


@pytest.mark.parametrize("content", ['[{"text": "a", "label": "b"}', '[{"text": "a", "label": "b"},'])
def test_an_array_that_is_cut_short_is_told_as_such(tmp_path: Path, content: str) -> None:
    assert "cut short" in message_of(write(tmp_path, "data.json", content))


def test_an_array_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_trainer.data.readers.json_window._CHUNK", 7)

    assert read(write(tmp_path, "data.json", json.dumps(ROWS))).rows == ROWS


def test_json_lines_are_read_from_a_file_json_too(tmp_path: Path) -> None:
    assert read(write(tmp_path, "data.json", as_jsonl())).rows == ROWS


NESTED: Final = [{"review": {"body": f"a {at}", "stars": at % 2}, "review.title": "flat"} for at in range(10)]


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_a_column_is_found_by_its_path(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, as_jsonl(NESTED) if name.endswith("jsonl") else as_parquet(pa.Table.from_pylist(NESTED)))
    found = read_rows(path, ("review.body", "review.stars", "review.title"), {"review.stars": read_label})

    assert found.rows[3] == {"review.body": "a 3", "review.stars": "1", "review.title": "flat"}


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_a_path_that_leads_nowhere_is_a_missing_column(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, as_jsonl(NESTED) if name.endswith("jsonl") else as_parquet(pa.Table.from_pylist(NESTED)))

    for column in ("review.body.deeper", "review.other", "other.body"):
        assert f"{column!r}" in message_of(path, (column,))


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_a_structured_or_optional_column_is_read_by_its_own_reader(tmp_path: Path, name: str) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi “you”"}]}]
    path = write(tmp_path, name, as_jsonl(rows) if name.endswith("jsonl") else as_parquet(pa.Table.from_pylist(rows)))
    (row,) = read_rows(path, ("messages", "tools"), {"messages": json.dumps, "tools": json.dumps}).rows

    assert {name: json.loads(text) for name, text in row.items()} == rows[0] | {"tools": None}


# Folders


def shards(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for at, name in enumerate(names):
        write(folder, name, as_parquet(pa.Table.from_pylist(ROWS[at * 10 : at * 10 + 10])))
    return folder


def test_the_shards_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data", "train-00001-of-00002.parquet", "train-00000-of-00002.parquet")
    write(folder, "_SUCCESS", "")

    assert read(folder).rows == ROWS[10:20] + ROWS[:10]


def test_shards_that_are_missing_are_told(tmp_path: Path) -> None:
    assert "has 1 of the 2 shards" in message_of(shards(tmp_path / "data", "train-00000-of-00002.parquet"))


@pytest.mark.parametrize(
    "names", [("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"), ("train.parquet", "validation.parquet")]
)
def test_shards_of_several_sets_are_not_mixed(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = shards(tmp_path / "data", *names)

    assert "files of several sets" in message_of(folder)
    assert read(folder / "train*.parquet").rows == ROWS[:10]


def test_folders_within_a_folder_of_shards_are_not_passed_over(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data", "a.parquet")
    shards(folder / "more", "b.parquet")

    assert "folders with more of them" in message_of(folder)


def saved_dataset(folder: Path, found: pa.Table, features: dict[str, Any]) -> Path:
    """As `Dataset.save_to_disk` of the datasets library writes it."""
    folder.mkdir()
    schema = found.schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    names = [f"data-0000{at}-of-00002.arrow" for at in range(2)]
    for at, name in enumerate(names):
        with ipc.new_stream(folder / name, schema) as writer:
            writer.write_table(found.slice(at * 2, 2).cast(schema))
    write(folder, "dataset_info.json", json.dumps({"features": features}))
    write(folder, "state.json", json.dumps({"_data_files": [{"filename": name} for name in names], "_split": "train"}))
    return folder


FEATURES: Final = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["World", "Sports"], "_type": "ClassLabel"},
    "image": {"_type": "Image"},
}
SAVED: Final = pa.table({"text": ["a", "b", "c", "d"], "label": [0, 1, 1, 0], "image": pa.array([b"\xff"] * 4)})


def test_a_dataset_that_was_saved_to_disk_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    folder = saved_dataset(tmp_path / "saved", SAVED, FEATURES)

    assert labels_of(read(folder)) == ["World", "Sports", "Sports", "World"]


def test_the_names_of_classes_are_read_from_parquet_too(tmp_path: Path) -> None:
    found = SAVED.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})

    assert labels_of(read(write(tmp_path, "data.parquet", as_parquet(found)))) == ["World", "Sports", "Sports", "World"]


@pytest.mark.parametrize(("number", "reason"), [(-1, "no value in column 'label'"), (7, "none of its 2 classes")])
def test_a_class_without_a_name_is_a_bad_row(tmp_path: Path, number: int, reason: str) -> None:
    found = SAVED.set_column(1, "label", pa.array([number] * 4))

    assert reason in message_of(saved_dataset(tmp_path / "saved", found, FEATURES))


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": 3}', '{"info": {"features": {"label": {"names": 3, "_type": "ClassLabel"}}}}'])
def test_metadata_that_makes_no_sense_names_no_classes(tmp_path: Path, metadata: str) -> None:
    path = write(tmp_path, "data.parquet", as_parquet(SAVED.replace_schema_metadata({"huggingface": metadata})))

    assert labels_of(read(path)) == ["0", "1", "1", "0"]


@pytest.mark.parametrize(
    "state", ["{", '{"_data_files": []}', '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": [{"filename": "x.arrow"}]}']
)
def test_a_saved_dataset_that_is_not_whole_is_told_as_such(tmp_path: Path, state: str) -> None:
    folder = saved_dataset(tmp_path / "saved", SAVED, FEATURES)
    write(folder, "state.json", state)

    assert str(folder) in message_of(folder)


def test_the_splits_of_a_dataset_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, "dataset_dict.json", '{"splits": ["train", "test"]}')

    assert "name the folder of one of them" in message_of(tmp_path)


def test_a_folder_without_data_is_told_as_such(tmp_path: Path) -> None:
    assert "has no data" in message_of(tmp_path)


def test_all_files_of_a_folder_are_its_data(tmp_path: Path) -> None:
    folder = saved_dataset(tmp_path / "saved", SAVED, FEATURES)

    assert [file.name for file in files_of(folder)] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]


# Read correctly, and to stay so


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_every_line_end_is_read_with_and_without_a_mark(tmp_path: Path, end: str, mark: bytes) -> None:
    assert read(write(tmp_path, "data.csv", mark + table(end=end).encode())).rows == ROWS
    assert read(write(tmp_path, "data.jsonl", mark + as_jsonl().replace("\n", end).encode())).rows == ROWS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_type_of_text_is_read_from_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {name: pa.array([row[name] for row in ROWS]).cast(kind) for name in COLUMNS}

    assert read(write(tmp_path, "data.parquet", as_parquet(pa.table(columns)))).rows == ROWS


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.json", "data.parquet", "data.jsonl.zst"])
def test_every_script_and_a_single_row_are_read(tmp_path: Path, name: str) -> None:
    row = {"text": "👩‍👩‍👧 很好 طيب שלום \u2028 für", "label": "好"}
    content = {
        "data.csv": table([f"{row['text']},{row['label']}"]).encode(),
        "data.jsonl": as_jsonl([row]).encode(),
        "data.json": json.dumps([row], ensure_ascii=False).encode(),
        "data.parquet": as_parquet(pa.Table.from_pylist([row])),
        "data.jsonl.zst": compressed(as_jsonl([row]), ".zst"),
    }

    assert read(write(tmp_path, name, content[name])).rows == [row]
