"""The forms in which people write rows as JSON: what is clear is read, whatever the name's end, and what is not is told in words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from fedpipe_trainer.data import read_rows
from fedpipe_trainer.data.readers import BadRowError, column_names, read_records
from fedpipe_trainer.errors import TaskFailed

ROWS: Final = [{"text": f"note {at}", "label": "ab"[at % 2]} for at in range(5)]
CHAT: Final = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def found(folder: Path, content: str, name: str = "data.json", columns: Sequence[str] = ()) -> list[Any]:
    (folder / name).write_text(content)
    return [str(record) if isinstance(record, BadRowError) else record for _, record in read_records(folder / name, columns).numbered]


def message_of(folder: Path, content: str, name: str = "data.json") -> str:
    with pytest.raises(TaskFailed) as caught:
        found(folder, content, name)
    return caught.value.message


@pytest.mark.parametrize("name", ["data.jsonl", "data.ndjson", "data.json"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "".join(json.dumps(row) + "\n" for row in ROWS),
        "".join(json.dumps(row, indent=2) + "\n" for row in ROWS),
        json.dumps({"version": "1.1", "data": ROWS, "count": 5}),
        json.dumps({"version": "1.1", "data": ROWS}, indent=1),
        '{"train": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}",
        json.dumps({"Rows": ROWS, "license": {"name": "MIT"}, "columns": ["text", "label"]}),
        json.dumps({"notes_of_the_ward": ROWS}, indent=1),
    ],
    ids=["array", "indented array", "array by line", "lines", "indented objects", "data", "indented data", "train", "Rows", "any only key"],
)
def test_rows_are_read_in_every_clear_form(tmp_path: Path, name: str, content: str) -> None:
    assert found(tmp_path, content, name) == ROWS
    assert found(tmp_path, "\ufeff\n" + content, name, ("text", "label")) == ROWS
    assert column_names(tmp_path / name) == ["text", "label"]


@pytest.mark.parametrize(
    "row",
    [
        CHAT,
        CHAT | {"tools": [{"name": "look"}]},
        {"text": "a", "data": [{"x": 1}]},
        {"c": [{"name": "f"}]},
        {"conversations": [{"from": "a", "value": "b"}]},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_single_object_that_is_a_row_stays_one(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    for indent in (None, 1) if "c" not in row else (None,):
        assert found(tmp_path, json.dumps(row, indent=indent), name, tuple(row)[:1]) == [row]


def test_a_file_of_one_object_has_the_line_of_its_row_in_messages(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": 3}\n')

    with pytest.raises(TaskFailed, match="the first at line 1: column 'text': it is a number, not text"):
        read_rows(tmp_path / "data.jsonl", ("text",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"text": ["a", "b"], "label": ["x", "y"]}), "is one object that holds columns, not rows: write an object for each row"),
        (json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}), "is one object that holds columns, not rows"),
        (json.dumps({"train": ROWS, "test": ROWS}), "is one object with 2 lists of rows: write the rows of one as a file of its own"),
        (json.dumps(ROWS) + "\n" + json.dumps(ROWS, indent=1), "'it is JSON, but not an object'"),
        (
            json.dumps(ROWS, indent=1) + "\n" + json.dumps(ROWS),
            "goes on after the array that it begins with: write one array, or an object a line",
        ),
        ('{\n "text": "a"\n}\n{\n "text": broken\n}', "row 2 of the data file"),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_what_is_not_clear_is_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    if message.startswith("'"):
        assert found(tmp_path, content, name)[0] == message.strip("'")
    else:
        assert message in message_of(tmp_path, content, name)


@pytest.mark.parametrize("line", ['{"text": "cut off', '{"text": [', "{", '{"text": "a", "data": [{"x": 1'])
def test_a_first_line_that_is_broken_costs_only_itself(tmp_path: Path, line: str) -> None:
    content = f"{line}\n" + "".join(json.dumps(row) + "\n" for row in ROWS)

    assert found(tmp_path, content, "data.jsonl")[1:] == ROWS


def test_a_list_in_an_object_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_trainer.data.readers.json_window._CHUNK", 7)
    monkeypatch.setattr("fedpipe_trainer.data.readers.json_window.LONGEST_RECORD", 100)

    assert found(tmp_path, json.dumps({"meta": {"a": [1, {"b": "}"}]}, "data": ROWS * 50}, indent=1)) == ROWS * 50


def test_a_very_long_first_line_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_trainer.data.readers.json_form._LONGEST_LINE", 20)
    rows = [{"text": "long" * 20}, {"text": "b"}]

    assert found(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "data.jsonl") == rows
    assert found(tmp_path, json.dumps({"data": rows})) == rows
    assert found(tmp_path, json.dumps(rows), "data.jsonl") == rows


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("notes.txt", 'it does not tell where a text ends: write a line {"text": "..."} of a .jsonl file for each'),
        ("notes.xlsx", "save the sheet as .csv, in UTF-8"),
    ],
)
def test_files_of_programs_and_plain_text_are_told_what_to_do(tmp_path: Path, name: str, advice: str) -> None:
    assert message_of(tmp_path, "some text", name).endswith(advice)
