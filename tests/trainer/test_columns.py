"""What is found of the columns of a data file from its first rows, and of its parts; no more than a bounded number of rows is read."""

import json
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
from data_files import FORMATS, as_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedpipe_trainer.contract.inspection import ColumnFacts
from fedpipe_trainer.data.columns import MOST_ROWS, look_at
from fedpipe_trainer.data.parts import find_parts, hold_out
from fedpipe_trainer.data.rows import read_rows
from fedpipe_trainer.data.values import Columns
from fedpipe_trainer.errors import TaskFailed

ROWS: Final = [{"text": f"note number {at}", "label": ("red", "blue")[at % 2]} for at in range(40)]


def columns(path: Path) -> dict[str, ColumnFacts]:
    return {column.name: column for column in look_at(path).columns}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_looked_at_with_the_same_result(tmp_path: Path, form: str) -> None:
    found = look_at(FORMATS[form](tmp_path, ROWS))

    assert (found.rows, found.bad_rows, found.is_whole) == (40, 0, True)
    assert [(one.name, one.rows, one.kinds, one.distinct) for one in found.columns] == [
        ("text", 40, ("text",), 40),
        ("label", 40, ("text",), 2),
    ]
    assert found.columns[1].labels == {"blue": 20, "red": 20}


def test_of_a_large_file_the_first_rows_are_read_and_no_other(tmp_path: Path) -> None:
    path = write(tmp_path, "notes.jsonl", as_jsonl([{"text": "a note"}] * MOST_ROWS) + b"this is read by nobody")

    found = look_at(path)

    assert (found.rows, found.bad_rows, found.is_whole) == (MOST_ROWS, 0, False)


def test_of_huge_cells_few_rows_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "notes.jsonl", as_jsonl([{"text": "x" * 2**22}] * 12))

    found = look_at(path)

    assert found.rows == 9
    assert not found.is_whole


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, None], {"kinds": ("integer",), "rows": 2, "is_numeric": True, "is_whole": True}),
        ([1.5, 2], {"is_numeric": True, "is_whole": False}),
        ([-250_000, 3], {"is_numeric": True, "largest_number": 250_000}),
        (["1.5", "2"], {"kinds": ("text",), "is_numeric": True}),
        ([True, False], {"kinds": ("boolean",), "is_numeric": False}),
        ([float("nan"), "", "  "], {"rows": 0, "kinds": ()}),
        ([{"a": 1}], {"kinds": ("object",), "shape": None}),
        ([[{"role": "user", "content": "x"}]], {"kinds": ("list",), "shape": "messages"}),
        ([json.dumps([{"from": "human", "value": "x"}])], {"kinds": ("text",), "shape": "turns"}),
        ([["a"], [], ["b"]], {"shape": "labels"}),
        ([[{"name": "f"}]], {"shape": "objects"}),
        ([[[1]]], {"shape": None}),
        (["[no list"], {"kinds": ("text",), "shape": None}),
        ([10**400], {"kinds": ("integer",), "is_numeric": False}),
        (["x" * 300, "x" * 300], {"labels": {}, "longest_characters": 300}),
    ],
)
def test_a_column_is_described_by_its_values(tmp_path: Path, values: list[Any], expected: dict[str, Any]) -> None:
    path = write(tmp_path, "notes.jsonl", "".join(json.dumps({"c": value}) + "\n" for value in values))

    assert {name: getattr(columns(path)["c"], name) for name in expected} == expected


def test_objects_are_looked_at_by_path_and_a_column_of_the_same_name_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path, "notes.jsonl", as_jsonl([{"a": {"b": "nested", "c": {"d": "deep"}}, "a.b": "own"}] * 2))

    assert set(columns(path)) == {"a", "a.b", "a.c", "a.c.d"}
    assert columns(path)["a.b"].labels == {"own": 2}


def test_columns_of_parquet_that_python_has_no_value_for_are_of_another_type(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "image": [b"\x00", b"\x01"], "at": pa.array([1, 2], pa.timestamp("ns"))})
    parquet.write_table(table, tmp_path / "notes.parquet")

    assert {name: column.kinds for name, column in columns(tmp_path / "notes.parquet").items()} == {
        "text": ("text",),
        "image": ("other",),
        "at": ("other",),
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.csv", b"text,label,text\na,b,c\n", "has column 'text' 2 times: rename all but one of them"),
        ("notes.csv", "Befund,für\na,b\n".encode("cp1252"), "is not UTF-8: save it as UTF-8"),
        ("notes.jsonl", b"\x1f\x8b\x08", "is compressed with gzip: name it .gz"),
        ("notes.parquet", b"PAR1 this is none", "it is damaged, cut short, or of another format"),
        ("notes.sav", b"PK", "has an unknown format: its name must end in one of"),
        ("notes.csv", b'text,label\n"open,red\n', "is not closed until the end of the file"),
        ("notes.jsonl", bytes(range(256)) * 8 + b"\0" * 400, "is not UTF-8, but UTF-16 or no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_as_a_task_refuses_it(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(TaskFailed) as caught:
        look_at(write(tmp_path, name, content))

    assert message in caught.value.message


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    assert look_at(write(tmp_path, "notes.jsonl", "")).columns == ()
    assert look_at(write(tmp_path, "notes.csv", "")).columns == ()


def refusal_of(path: Path) -> str:
    """Why a file is refused; "" if it is not."""
    try:
        look_at(path)
    except TaskFailed as failed:
        return failed.message
    return ""


@settings(deadline=None)  # the first import of pyarrow takes as long
@given(st.binary(max_size=300))
def test_whatever_a_file_holds_it_is_looked_at_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("odd")
    for end in ("jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.zst"):
        assert refusal_of(write(folder, f"notes.{end}", content)).isprintable()


def parts(folder: Path, given_: str = "") -> tuple[str, str | None]:
    found = find_parts(folder / given_)
    return str(found.train.relative_to(folder)), str(found.validation.relative_to(folder)) if found.validation else None


@pytest.mark.parametrize(
    ("files", "asked", "expected"),
    [
        (["train.jsonl", "validation.jsonl"], "train.jsonl", ("train.jsonl", "validation.jsonl")),
        (["train.csv", "test.csv", "dev.csv"], "train.csv", ("train.csv", "dev.csv")),
        (["notes_train.csv", "notes_val.jsonl.gz"], "notes_train.csv", ("notes_train.csv", "notes_val.jsonl.gz")),
        (["ward.csv", "validation.csv"], "ward.csv", ("ward.csv", None)),
        (["train.jsonl", "validation.jsonl", "README.md", "dataset_info.json"], "", ("train.jsonl", "validation.jsonl")),
        (["notes.csv", "README.md"], "", ("notes.csv", None)),
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
            "",
            ("train*.parquet", "test-00000-of-00001.parquet"),
        ),
        (["data/train-00000-of-00001.parquet"], "", ("data/train-00000-of-00001.parquet", None)),
        (["part-0.parquet", "part-1.parquet"], "", (".", None)),
        (["train/a.parquet", "validation/a.parquet"], "", ("train", "validation")),
        ([".hidden.csv", "_SUCCESS", "notes.tsv"], "", ("notes.tsv", None)),
    ],
)
def test_the_parts_of_data_are_found_by_their_names(tmp_path: Path, files: list[str], asked: str, expected: tuple[str, str | None]) -> None:
    for name in files:
        write((tmp_path / name).parent, Path(name).name, "{}")

    assert parts(tmp_path, asked) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["north.csv", "south.csv"], "has 2 files of data (north.csv, south.csv): name the file of each site, or call the two parts"),
        (["train_a.csv", "train_b.csv"], "has 2 files of the part train (train_a.csv, train_b.csv)"),
        (["README.md"], "has no data: no file whose name ends in .jsonl"),
        ([], "has no data"),
    ],
)
def test_a_folder_whose_parts_are_not_clear_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        write(tmp_path, name, "{}")

    with pytest.raises(TaskFailed) as caught:
        find_parts(tmp_path)

    assert message in caught.value.message


@pytest.mark.parametrize("form", FORMATS)
def test_a_tenth_of_the_rows_is_held_out_and_none_is_lost(tmp_path: Path, form: str) -> None:
    source, targets = FORMATS[form](tmp_path / "data", ROWS), (tmp_path / "train.jsonl", tmp_path / "validation.jsonl")

    found = hold_out(source, Columns(["text", "label"]), *targets)
    train, validation = (list(read_rows(path, ["text", "label"]).rows) for path in targets)

    assert found == (36, 4, 0)
    assert sorted(row["text"] for row in [*train, *validation]) == sorted(row["text"] for row in ROWS)


def test_equal_rows_are_held_out_together_and_the_same_ones_again(tmp_path: Path) -> None:
    source = write(tmp_path, "notes.jsonl", as_jsonl(ROWS * 3))
    targets = (tmp_path / "train.jsonl", tmp_path / "validation.jsonl")

    hold_out(source, Columns(["text"]), *targets)
    first = [path.read_text() for path in targets]
    hold_out(source, Columns(["text"]), *targets)

    assert [path.read_text() for path in targets] == first
    assert not set(first[0].splitlines()) & set(first[1].splitlines())


@pytest.mark.parametrize("rows", [[{"text": "one"}], [{"text": "same"}] * 5])
def test_rows_of_which_no_two_differ_have_no_part_for_validation(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    with pytest.raises(TaskFailed, match="of which no two differ: a part for validation needs another row"):
        hold_out(write(tmp_path, "notes.jsonl", as_jsonl(rows)), Columns(["text"]), tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_two_rows_are_one_for_each_part(tmp_path: Path) -> None:
    found = hold_out(write(tmp_path, "n.jsonl", as_jsonl(ROWS[:2])), Columns(["text"]), tmp_path / "a.jsonl", tmp_path / "b.jsonl")

    assert found == (1, 1, 0)


def test_rows_that_cannot_be_read_are_counted_and_too_many_of_them_are_refused(tmp_path: Path) -> None:
    targets = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")

    assert hold_out(write(tmp_path, "n.jsonl", as_jsonl(ROWS * 3) + b"{\n"), Columns(["text"]), *targets).skipped == 1
    with pytest.raises(TaskFailed, match="At most 1 % of the rows may be bad"):
        hold_out(write(tmp_path, "n.jsonl", as_jsonl(ROWS) + b"{\n" * 9), Columns(["text"]), *targets)


def test_rows_that_the_task_cannot_use_are_for_training_and_do_not_fill_the_validation_file(tmp_path: Path) -> None:
    """Those without a text are equal, and would be held out together."""
    unusable = [{"text": text, "label": "red"} for text in ("", None, " ", 5) for _ in range(5)]
    targets = (tmp_path / "train.jsonl", tmp_path / "validation.jsonl")

    found = hold_out(write(tmp_path, "notes.jsonl", as_jsonl([*unusable, *ROWS])), Columns(["text", "label"]), *targets)
    held = [json.loads(line) for line in targets[1].read_text().splitlines()]

    assert found == (56, 4, 0)
    assert all(row in ROWS for row in held)


def test_of_rows_none_of_which_can_be_used_both_parts_are_written_so_that_the_reason_is_told_by_whoever_reads_them(tmp_path: Path) -> None:
    data = write(tmp_path, "notes.jsonl", as_jsonl([{"text": number} for number in range(20)]))

    assert hold_out(data, Columns(["text"]), tmp_path / "a.jsonl", tmp_path / "b.jsonl") == (18, 2, 0)
