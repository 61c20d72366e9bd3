"""Data larger than memory: what is in memory does not grow with the rows, and what is made of them is the same as in memory."""

import errno
import gzip
import json
import math
import os
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from small_disks import small_disk
from toy_training import CAUSAL

from fedpipe_trainer.contract import CausalLM, DataPolicy, FailureReason, Objective, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import Tokenizer, compose_batches, encode, found_labels, select_rows, spill
from fedpipe_trainer.data.examples import blocks_of
from fedpipe_trainer.data.readers import arrow, json_form, json_window, text
from fedpipe_trainer.data.spill import Integers, SpilledBytes
from fedpipe_trainer.errors import TaskFailed

FEW, MANY = 800, 4_000
ALLOWED: Final = 80_000
"""Bytes by which the peak may differ: in memory, the rows alone would take twice as many more, and their samples likewise."""
Write = Callable[[Path, int], Path]
CLASSES = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=32)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each sequence a few kilobytes are in memory, and of each file; so a small file shows what a large one needs."""
    monkeypatch.setattr(spill, "KEPT_BYTES", 1 << 12)
    monkeypatch.setattr(spill, "_WINDOW", 1 << 10)
    monkeypatch.setattr(spill, "_INTEGERS_AT_ONCE", 1 << 6)
    monkeypatch.setattr(json_window, "_CHUNK", 1 << 12)
    monkeypatch.setattr(json_form, "_LONGEST_LINE", 1 << 12)
    monkeypatch.setattr(text, "MIB", 1 << 12)
    monkeypatch.setattr(arrow, "_MOST_ROWS", 50)


def rows(count: int) -> Iterator[dict[str, str]]:
    return ({"a": f"turn {number} to the ünder", "b": ("left", "right")[number % 2]} for number in range(count))


def json_lines(folder: Path, count: int) -> Path:
    path = folder / f"{count}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(count))))
    return path


def compressed(folder: Path, count: int) -> Path:
    path = folder / f"{count}.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows(count))).encode(), 1))
    return path


def an_array(folder: Path, count: int) -> Path:
    path = folder / f"{count}.json"
    path.write_text(json.dumps(list(rows(count))))
    return path


def a_table(folder: Path, count: int) -> Path:
    path = folder / f"{count}.csv"
    path.write_text("a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows(count)))
    return path


def shards(folder: Path, count: int) -> Path:
    (folder / f"{count}").mkdir()
    content = list(rows(count))
    for at in range(4):
        parquet.write_table(pa.Table.from_pylist(content[at::4]), folder / f"{count}" / f"{at}.parquet")
    return folder / f"{count}"


def peak_of(work: Callable[[], object]) -> int:
    """Bytes at the peak, of Python and numpy."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("write", [json_lines, compressed, an_array, a_table, shards])
def test_more_rows_take_no_more_memory_to_read(tmp_path: Path, write: Write) -> None:
    few, many, policy = write(tmp_path, FEW), write(tmp_path, MANY), DataPolicy(labels=("left",))
    select_rows(few, CLASSES, policy, tmp_path)  # what is allocated once

    small, large = (peak_of(lambda path=path: select_rows(path, CLASSES, policy, tmp_path)) for path in (few, many))  # type: ignore[misc]

    assert large < small + ALLOWED


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("objective", [CLASSES, CAUSAL], ids=["classes", "prompts"])
def test_more_rows_take_no_more_memory_to_encode(tmp_path: Path, objective: Objective, tokenizer: Tokenizer) -> None:
    few, many = (select_rows(json_lines(tmp_path, count), objective, DataPolicy(), tmp_path).rows for count in (FEW, 3 * FEW))
    encode(few, objective, tokenizer, tmp_path)

    small, large = (peak_of(lambda found=found: encode(found, objective, tokenizer, tmp_path)) for found in (few, many))  # type: ignore[misc]

    assert large < small + ALLOWED


@pytest.mark.parametrize("write", [json_lines, compressed, an_array, a_table, shards])
@pytest.mark.parametrize(
    "objective",
    [CLASSES, CAUSAL, CausalLM(format="Text", text="a", max_length=16), Seq2SeqLM(prompt="{a}", response="{b}", max_length=32)],
    ids=["classes", "prompts", "text", "seq2seq"],
)
def test_samples_on_the_disk_are_those_in_memory(
    tmp_path: Path, objective: Objective, write: Write, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 300)
    expected = encode(select_rows(path, objective, DataPolicy()).rows, objective, tokenizer)
    monkeypatch.setattr(spill, "KEPT_BYTES", 100)

    found = encode(select_rows(path, objective, DataPolicy(), tmp_path).rows, objective, tokenizer, tmp_path)

    assert found == expected
    assert all(isinstance(one, np.memmap) for one in found.arrays if one.size)
    assert [one.tobytes() for one in found.arrays] == [one.tobytes() for one in expected.arrays]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 40), st.integers(0, 9))
def test_batches_are_composed_as_they_always_were(lengths: list[int], batch_size: int, seed: int) -> None:
    def drawn(number: int) -> bytes:
        return blake2b(f"{seed}/{number}".encode(), digest_size=16).digest()

    n, count = len(lengths), math.ceil(len(lengths) / batch_size)
    order = sorted(range(n), key=lambda i: (math.ceil(lengths[i] / 8), drawn(i)))
    cuts = pairwise([n * i // count for i in range(count + 1)])
    expected = [tuple(sorted(order[a:b], key=lambda i: (-lengths[i], i))) for a, b in cuts]

    assert list(compose_batches(lengths, batch_size, seed)) == expected


@given(st.lists(st.binary(max_size=40), max_size=30), st.data())
def test_bytes_are_read_as_they_were_added(pieces: list[bytes], data: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "KEPT_BYTES", 30)
        patch.setattr(spill, "_WINDOW", 16)
        found, whole = SpilledBytes(), b""
        for piece in pieces:
            found.append(piece)
            whole += piece
            start = data.draw(st.integers(0, len(whole)))
            end = data.draw(st.integers(start, len(whole)))
            assert found.read(start, end) == whole[start:end]

        assert len(found) == len(whole)
        assert found.as_array("u1").tobytes() == whole


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_numbers_are_read_as_they_were_added(numbers: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "KEPT_BYTES", 100)
        patch.setattr(spill, "_INTEGERS_AT_ONCE", 7)

        found = Integers(numbers)

        assert found == numbers
        assert [found[at] for at in range(len(found))] == list(found) == numbers
        assert list(found[1:5]) == numbers[1:5]


def test_an_array_is_read_in_blocks_that_are_the_array(tmp_path: Path) -> None:
    expected = np.arange(1_000_000, dtype=np.int32)
    expected.tofile(tmp_path / "numbers")

    blocks = [block.copy() for block in blocks_of(np.memmap(tmp_path / "numbers", dtype=np.int32, mode="r"))]

    assert len(blocks) > 1
    assert np.array_equal(np.concatenate(blocks), expected)


def test_at_no_time_there_is_a_file_that_a_killed_process_would_leave(tmp_path: Path) -> None:
    found = SpilledBytes(tmp_path / "cache")

    found.append(bytes(5_000_000))

    assert found.read(4_999_999, 5_000_000) == b"\0"
    assert list((tmp_path / "cache").iterdir()) == []


def test_where_the_volume_is_full_another_is_used_and_nothing_is_lost(tmp_path: Path) -> None:
    content = os.urandom(3_500_000)
    with small_disk(tmp_path / "small", "1536k") as disk:
        found = SpilledBytes(disk)
        for at in range(0, len(content), 1000):
            found.append(content[at : at + 1000])

        assert found.read(0, len(content)) == content
        assert found.as_array("u1").tobytes() == content


def test_where_no_volume_has_room_the_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SpilledBytes(tmp_path)
    found.append(bytes(3 << 20))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spill, "_write_at", full)
    with pytest.raises(TaskFailed, match=r"no volume has room for 4 MiB of one column .*No space left.* raise the value") as failed:
        found.append(bytes(1 << 20))

    assert failed.value.reason is FailureReason.TRANSFER_FAILED


def test_a_folder_that_cannot_be_made_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = SpilledBytes(tmp_path / "file" / "folder")

    found.append(bytes(2 << 20))

    assert len(found) == 2 << 20


@pytest.mark.parametrize("values", [[f"text {number}" for number in range(30)], ["x" * 400 + str(number) for number in range(9)]])
def test_a_column_of_texts_is_told_before_its_values_fill_the_memory(
    values: Sequence[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(found_labels, "_MOST_VALUES", 20)
    monkeypatch.setattr(found_labels, "_MOST_CHARACTERS", 3000)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"a": "x", "b": value}) for value in values))
    found = select_rows(path, CLASSES.model_copy(update={"labels": ()}), DataPolicy())

    with pytest.raises(TaskFailed, match=r"column 'b' has more than \d+ different values, which are no labels"):
        found_labels._count_values([found], "b")
