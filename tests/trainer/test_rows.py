"""Reading a site's data: good rows are kept, bad rows are counted, unusable files are errors that name the file."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.data import read_rows
from fedpipe_trainer.data.columns import look_at
from fedpipe_trainer.errors import TaskFailed

COLUMNS = ("text", "label")
GOOD = [{"text": f"text, “{i}”\nand more", "label": "a"} for i in range(300)]


def jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: Sequence[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["label", "text"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Sequence[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


KINDS = {"jsonl": jsonl, "csv": as_csv, "parquet": as_parquet}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_good_rows_is_read_completely_and_in_order(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(KINDS[kind](GOOD))

    result = read_rows(path, COLUMNS)

    assert result.rows == GOOD
    assert result.skipped == 0


@pytest.mark.parametrize("kind", [*KINDS, "jsonl.gz"])
def test_a_pipe_is_no_data_and_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / f"train.{kind}")

    with pytest.raises(TaskFailed, match=r"is no file, but a folder, a pipe or a device") as raised:
        read_rows(tmp_path / f"train.{kind}", COLUMNS)

    assert raised.value.reason is FailureReason.BAD_DATA


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_requested_columns_are_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(KINDS[kind](GOOD))

    assert read_rows(path, ("label",)).rows == [{"label": "a"}] * 300


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_text_is_a_bad_row(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(KINDS[kind]([*GOOD, {"text": "  ", "label": "a"}]))

    result = read_rows(path, COLUMNS)

    assert (len(result.rows), result.skipped) == (300, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_rows_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(KINDS[kind]([]) if kind != "parquet" else as_parquet(GOOD[:0]))

    failure = failure_of(path)

    assert "has no rows" in failure.message


BAD_LINES = {
    "broken JSON": b'{"text": "cut off\n',
    "no object": b'["text", "label"]\n',
    "a column missing": b'{"text": "x"}\n',
    "null": b'{"text": null, "label": "a"}\n',
    "a number": b'{"text": 3, "label": "a"}\n',
    "not UTF-8": b'{"text": "\xff\xfe", "label": "a"}\n',
    "half a surrogate pair": b'{"text": "\\ud800", "label": "a"}\n',
    "nested too deeply": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_of_json_is_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(GOOD[:150]) + line + jsonl(GOOD[150:]))

    result = read_rows(path, COLUMNS)

    assert (result.rows, result.skipped) == (GOOD, 1)


BAD_RECORDS = {
    "too few fields": b"a\r\n",
    "too many fields": b"a,b,c\r\n",
    "not UTF-8": b"a,\xff\xfe\r\n",
    "a quote out of place": b'a,"b"c\r\n',
}


@pytest.mark.parametrize("line", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_of_csv_is_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "data.csv"
    head, tail = as_csv(GOOD[:150]), as_csv(GOOD[150:]).split(b"\r\n", maxsplit=1)[1]
    path.write_bytes(head + line + tail)

    result = read_rows(path, COLUMNS)

    assert (result.rows, result.skipped) == (GOOD, 1)


def test_more_than_one_bad_row_in_a_hundred_is_an_error_with_the_first_line_and_the_count(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(GOOD[:7]) + b"oops\n" * 4 + jsonl(GOOD[7:]))

    failure = failure_of(path)

    assert f"4 of 304 rows of {path} cannot be used, the first at line 8: it is not JSON" in failure.message


def test_exactly_one_bad_row_in_a_hundred_is_tolerated_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"oops\n" + jsonl(GOOD[:99]))

    assert read_rows(path, COLUMNS).skipped == 1
    assert f"1 of 100 rows of {path} cannot be used, the first at line 1" in caplog.text


def test_no_message_quotes_a_text_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a secret", "label": }\n{"text": ["a secret"], "label": "a"}\n')

    assert "secret" not in failure_of(path).message


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    for kind in ("csv", "jsonl"):
        path = tmp_path / f"data.{kind}"
        path.write_bytes(b"\xef\xbb\xbf" + KINDS[kind](GOOD))

        assert read_rows(path, COLUMNS).rows == GOOD


def test_blank_lines_are_not_rows(tmp_path: Path) -> None:
    for kind in ("csv", "jsonl"):
        path = tmp_path / f"data.{kind}"
        path.write_bytes(KINDS[kind](GOOD) + b"\r\n\r\n")

        assert read_rows(path, COLUMNS).skipped == 0


def test_a_very_long_field_of_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    row = {"text": "x" * 1_000_000, "label": "a"}
    path.write_bytes(as_csv([row]))

    assert read_rows(path, COLUMNS).rows == [row]


def test_a_column_missing_from_the_whole_file_is_an_error_that_names_it_and_none_of_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(as_csv(GOOD))

    message = failure_of(path, ("note",)).message

    advice = "correct the task, or use the right file, or write their names into its first line"
    assert message == f"column 'note' does not exist in {path}: {advice}"


def test_all_columns_missing_from_a_file_are_told_at_once_each_with_the_field_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl([{"body": "a note", "label": None}] * 200) + b"no row\n")

    with pytest.raises(TaskFailed) as caught:
        read_rows(path, ("note", "ward", "label"), fields={"note": "task.text", "ward": "task.textPair", "label": "task.label"})

    assert caught.value.message == (
        f"columns 'note' (task.text), 'ward' (task.textPair) do not exist in {path}: "
        "correct task.text and task.textPair, or use the right file"
    )


@pytest.mark.parametrize("others", [[{"note": "fine"}], [{"note": None}]])
def test_a_column_that_some_row_names_exists(tmp_path: Path, others: list[dict[str, Any]]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl([{"body": "a note"}, *others] * 20))

    assert "does not exist" not in failure_of(path, ("note",)).message


def test_a_file_of_which_much_cannot_be_read_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"no row\n" * 9 + jsonl([{"body": "a note"}]))

    assert "10 of 10 rows" in failure_of(path, ("note",)).message


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing.jsonl": lambda _: None,
    "folder.csv": Path.mkdir,
    "broken.parquet": lambda path: path.write_bytes(b"PAR1 and no more"),
    "empty.parquet": lambda path: path.write_bytes(b""),
    "data.xlsx": lambda path: path.write_bytes(b"PK"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    UNREADABLE[name](path)

    assert str(path) in failure_of(path).message


POINTER: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.csv.gz", "rows.parquet", "shards/train-00000-of-00001.parquet"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (POINTER, "is a git-lfs pointer and not the file itself: run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s5--2c26\n", "is a git-annex pointer and not the file itself: run `git annex get .`"),
        (b"<!DOCTYPE html><title>404</title>\n", "is a web page, such as a server's error message"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_called_so(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    data = path if path.parent == tmp_path else path.parent

    assert f"the data file {path} {what}" in failure_of(data).message
    with pytest.raises(TaskFailed, match="and not the file itself"):
        look_at(data)


def failure_of(path: Path, columns: Sequence[str] = COLUMNS) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        read_rows(path, columns)
    assert caught.value.reason is FailureReason.BAD_DATA
    assert str(path) in caught.value.message
    return caught.value
