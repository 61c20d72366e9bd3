"""Columns of every Arrow type: what JSON has a value for is read, and what it has none for costs only itself, or is told in a word."""

import json
from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from fedpipe_trainer.data import read_rows
from fedpipe_trainer.data.conversations import read_messages
from fedpipe_trainer.data.formats import read_labels
from fedpipe_trainer.data.readers.arrow_values import is_readable, values_of
from fedpipe_trainer.data.values import read_label

TURNS: Final = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
FOREIGN: Final = (
    *(pa.array([0, None], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
    pa.array([1, 2], pa.timestamp("us", tz="UTC")),
    pa.array([1, 2], pa.timestamp("us", tz="Mars/Olympus")),
    pa.array([2**62, 1], pa.timestamp("us")),
    pa.array([300_000_000, 1], pa.date32()),
    pa.array([date(2024, 1, 1)] * 2, pa.date64()),
    pa.array([time(1), None], pa.time64("ns")),
    pa.array([timedelta(1)] * 2),
    pa.array([Decimal("1.50"), None]),
    pa.array([b"\xff", None]),
    pa.array([b"\xff", None], pa.large_binary()),
    pa.array([b"\xff", None], pa.binary(1)),
    pa.array([b"\xff", None], pa.binary_view()),
    pa.array([{"bytes": b"\xff", "path": None}, None]),
    pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    pa.array([[(1, b"a")], None], pa.map_(pa.int64(), pa.binary())),
    pa.array(["a", None]).dictionary_encode(),
    pa.array(["a", None], pa.string_view()),
    pa.array([[b"\xff"], None]),
    pa.array([None, None]),
    pa.array([b"\x00" * 16] * 2, pa.uuid()),
    pa.array(['{"a": 1}', None], pa.json_()),
)


def conversations(other: pa.Array, lists: Any = pa.list_) -> pa.Table:
    """A conversation whose turns have one more field."""
    kind = pa.struct([("role", pa.string()), ("content", pa.string()), pa.field("other", other.type)])
    columns = [pa.array([turn[name] for turn in TURNS]) for name in ("role", "content")]
    turns = pa.StructArray.from_arrays([*columns, other], fields=list(kind))
    made = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), turns)
    return pa.table({"messages": made if lists is pa.list_ else pa.array(made.to_pylist(), lists(kind))})


def stream(path: Path, found: pa.Table, folder_info: dict[str, Any] | None = None) -> Path:
    """A dataset that was saved to disk."""
    path.mkdir()
    with ipc.new_stream(path / "data-00000-of-00001.arrow", found.schema) as writer:
        writer.write_table(found)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    if folder_info is not None:
        (path / "dataset_info.json").write_text(json.dumps(folder_info))
    return path


@pytest.mark.parametrize("other", FOREIGN, ids=lambda array: str(array.type))
def test_a_conversation_is_read_whatever_else_its_turns_have(tmp_path: Path, other: pa.Array) -> None:
    path = stream(tmp_path / "saved", conversations(other))
    (row,) = read_rows(path, ("messages",), {"messages": read_messages}).rows

    assert json.loads(row["messages"]) == list(TURNS)


@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, pa.list_view, lambda kind: pa.list_(kind, 2)])
def test_a_conversation_is_read_from_every_type_of_list(tmp_path: Path, lists: Any) -> None:
    path = stream(tmp_path / "saved", conversations(pa.array([b"\xff", None]), lists))

    assert len(read_rows(path, ("messages",), {"messages": read_messages}).rows) == 1


def test_the_conversations_of_wild_chat_are_read_from_parquet(tmp_path: Path) -> None:
    parquet.write_table(conversations(pa.array([1, 2], pa.timestamp("us", tz="UTC"))), tmp_path / "chat.parquet")

    assert len(read_rows(tmp_path / "chat.parquet", ("messages",), {"messages": read_messages}).rows) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (pa.array([1704164400], pa.timestamp("s", tz="UTC")), "2024-01-02T03:00:00Z"),
        (pa.array([date(2024, 1, 2)]), "2024-01-02"),
        (pa.array([time(3)], pa.time32("s")), "03:00:00"),
        (pa.array([2**62], pa.timestamp("us")), None),
        (pa.array([Decimal("1.50")]), 1.5),
        (pa.array([Decimal("2.00")]), 2),
        (pa.array([date(2024, 1, 2)]).dictionary_encode(), "2024-01-02"),
        (pa.RunEndEncodedArray.from_arrays([1], [Decimal("2.00")]), 2),
        (pa.array([[("k", date(2024, 1, 2))]], pa.map_(pa.string(), pa.date32())), {"k": "2024-01-02"}),
        (pa.array(['{"a": 1}'], pa.json_()), '{"a": 1}'),
    ],
    ids=str,
)
def test_inside_of_an_object_what_json_lacks_has_another_form(value: pa.Array, expected: object) -> None:
    assert values_of(pa.StructArray.from_arrays([value], ["at"])) == [{"at": expected}]


def test_the_key_of_a_map_is_part_of_a_path(tmp_path: Path) -> None:
    found = pa.table({"meta": pa.array([[("body", "a")], [("x", "y"), ("body", "b")]], pa.map_(pa.string(), pa.string()))})
    parquet.write_table(found, tmp_path / "notes.parquet")

    assert read_rows(tmp_path / "notes.parquet", ("meta.body",)).rows == [{"meta.body": "a"}, {"meta.body": "b"}]
    assert read_rows(stream(tmp_path / "saved", found.slice(1)), ("meta.body",)).rows == [{"meta.body": "b"}]


def test_a_text_inside_of_a_list_that_is_not_utf8_costs_its_own_row() -> None:
    texts = pa.array([b"a", b"f\xfcr", b"c"], pa.binary()).cast(pa.string(), safe=False)
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), texts)

    good, bad = values_of(lists)
    assert good == ["a"]
    assert "not UTF-8" in str(bad)


SCALARS: Final = {
    pa.string(): st.text(max_size=5),
    pa.large_string(): st.text(max_size=5),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
}


def typed(depth: int) -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    """A type, and values of it."""
    leaf = st.sampled_from(list(SCALARS)).map(lambda kind: (kind, st.none() | SCALARS[kind]))
    if not depth:
        return leaf
    inner = typed(depth - 1)
    lists = inner.flatmap(
        lambda one: st.sampled_from([pa.list_, pa.large_list, pa.list_view]).map(
            lambda make: (make(one[0]), st.none() | st.lists(one[1], max_size=3))
        )
    )
    structs = st.tuples(inner, inner).map(
        lambda two: (pa.struct([("a", two[0][0]), ("b", two[1][0])]), st.none() | st.fixed_dictionaries({"a": two[0][1], "b": two[1][1]}))
    )
    return leaf | lists | structs


@given(typed(3).flatmap(lambda one: st.tuples(st.just(one[0]), st.lists(one[1], max_size=6), st.integers(0, 6))))
def test_nested_values_are_those_that_arrow_gives(case: tuple[pa.DataType, list[Any], int]) -> None:
    kind, values, start = case
    array = pa.array(values, kind).slice(start)

    assert is_readable(kind)
    assert values_of(array) == array.to_pylist()


# The names of classes

EMOTIONS: Final = {"names": ["admiration", "anger", "joy"], "_type": "ClassLabel"}
LISTS: Final = {
    "Sequence": {"feature": EMOTIONS, "_type": "Sequence", "length": -1},
    "List": {"feature": EMOTIONS, "_type": "List"},
    "LargeList": {"feature": EMOTIONS, "_type": "LargeList"},
    "a list of Python": [EMOTIONS],
}


def emotions(*labels: Sequence[int]) -> pa.Table:
    return pa.table({"text": [f"text {at}" for at in range(len(labels))], "labels": pa.array(labels, pa.list_(pa.int64()))})


def labels_in(path: Path) -> list[Any]:
    return [json.loads(row["labels"]) for row in read_rows(path, ("text", "labels"), {"labels": read_labels}).rows]


@pytest.mark.parametrize("form", LISTS)
def test_lists_of_classes_have_their_names(tmp_path: Path, form: str) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": {"labels": LISTS[form]}}})}
    parquet.write_table(emotions([0], [2, 1], []).replace_schema_metadata(metadata), tmp_path / "notes.parquet")

    assert labels_in(tmp_path / "notes.parquet") == [["admiration"], ["joy", "anger"], []]


def test_a_saved_dataset_has_the_names_in_the_file_of_its_folder(tmp_path: Path) -> None:
    path = stream(tmp_path / "saved", emotions([0], [2, 1]), {"features": {"labels": LISTS["Sequence"]}})

    assert labels_in(path) == [["admiration"], ["joy", "anger"]]


@pytest.mark.parametrize("info", [None, {}, {"features": 3}, {"features": {"labels": {"feature": [], "_type": "Sequence"}}}])
def test_a_folder_without_names_has_numbers(tmp_path: Path, info: dict[str, Any] | None) -> None:
    assert labels_in(stream(tmp_path / "saved", emotions([0], [2, 1]), info)) == [["0"], ["2", "1"]]


def test_in_a_list_no_label_is_left_out_and_a_number_without_a_name_is_a_bad_row(tmp_path: Path) -> None:
    found = emotions(*[[0, -1]] * 200, [0, 7])
    path = stream(tmp_path / "saved", found, {"features": {"labels": LISTS["Sequence"]}})
    rows = read_rows(path, ("text", "labels"), {"labels": read_labels})

    assert {row["labels"] for row in rows.rows} == {'["admiration"]'}
    assert rows.skipped == 1
    assert "has a number that is none of its 3 classes" in rows.notes[0]


def test_a_class_within_an_object_has_its_name_by_its_path(tmp_path: Path) -> None:
    found = pa.table({"review": pa.array([{"mood": 1}, {"mood": 2}])})
    path = stream(tmp_path / "saved", found, {"features": {"review": {"mood": EMOTIONS}}})

    assert read_rows(path, ("review.mood",), {"review.mood": read_label}).rows == [{"review.mood": "anger"}, {"review.mood": "joy"}]
