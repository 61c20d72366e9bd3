"""Tokens of large data are encoded once, and mapped from the site's cache volume afterwards."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_training import CAUSAL, Q0, a_training_task, make_runtime
from toys import byte_tokenizer

from fedpipe_trainer import token_cache
from fedpipe_trainer.contract import DataPolicy, RunRef, TrainTask
from fedpipe_trainer.data import Tokenizer, encode, select_rows
from fedpipe_trainer.recipes import train
from fedpipe_trainer.token_cache import EncodedData, TokenCache


@pytest.fixture(autouse=True)
def _every_size_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "_LEAST_TOKENS", 0)


@pytest.fixture
def task(tmp_path: Path) -> TrainTask:
    return a_training_task(tmp_path, tmp_path, {Q0: 4})


def encoded(task: TrainTask, tokenizer: Tokenizer) -> EncodedData:
    rows = select_rows(task.data.train, task.objective, task.policy)
    return EncodedData(encode(rows.rows, task.objective, tokenizer), 2, 1)


def keep(folder: Path, task: TrainTask, tokenizer: Tokenizer) -> EncodedData:
    return TokenCache(folder, task).write(tokenizer, encoded(task, tokenizer))


def test_kept_tokens_are_mapped_from_their_file_and_are_the_same(tmp_path: Path, task: TrainTask, tokenizer: Tokenizer) -> None:
    assert not TokenCache(tmp_path / "kept", task).may_hit()
    written = keep(tmp_path / "kept", task, tokenizer)

    cache = TokenCache(tmp_path / "kept", task)
    read = cache.read(tokenizer)

    assert cache.may_hit()
    assert read == written == encoded(task, tokenizer)
    for found in (read, written):
        assert all(isinstance(one, np.memmap) for one in found.examples.arrays if one.size)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": CAUSAL.model_copy(update={"max_length": 25})},
        {"policy": DataPolicy(labels=("a",))},
        {"run": RunRef(namespace="other", name="r", uid="u")},
    ],
    ids=["objective", "policy", "tenant"],
)
def test_tokens_of_another_task_are_not_used(tmp_path: Path, task: TrainTask, tokenizer: Tokenizer, changes: dict[str, Any]) -> None:
    keep(tmp_path / "kept", task, tokenizer)

    cache = TokenCache(tmp_path / "kept", task.model_copy(update=changes))

    assert not cache.may_hit()
    assert cache.read(tokenizer) is None


def test_tokens_of_other_data_or_of_another_tokenizer_are_not_used(tmp_path: Path, task: TrainTask, tokenizer: Tokenizer) -> None:
    keep(tmp_path / "kept", task, tokenizer)
    assert TokenCache(tmp_path / "kept", task).read(byte_tokenizer(add_end_token=True)) is None

    data = Path(task.data.train)
    before = data.stat()
    data.write_text(data.read_text().replace("turn 7", "turn 8"))
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))  # the content counts, whatever the time

    assert TokenCache(tmp_path / "kept", task).read(tokenizer) is None


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: b"{}" + content, lambda _: b""], ids=["cut", "header", "empty"]
)
def test_a_damaged_file_is_not_used(tmp_path: Path, task: TrainTask, tokenizer: Tokenizer, damage: Any) -> None:
    keep(tmp_path / "kept", task, tokenizer)
    [file] = (tmp_path / "kept").iterdir()
    file.write_bytes(damage(file.read_bytes()))

    assert TokenCache(tmp_path / "kept", task).read(tokenizer) is None


def test_a_volume_that_cannot_be_written_costs_time_only(task: TrainTask, tokenizer: Tokenizer, read_only_disk: Path) -> None:
    assert keep(read_only_disk / "tokens", task, tokenizer) == encoded(task, tokenizer)


def test_tokens_that_would_fill_the_volume_are_not_kept(tmp_path: Path, task: TrainTask, tokenizer: Tokenizer, monkeypatch: Any) -> None:
    monkeypatch.setattr(token_cache.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1000))

    assert keep(tmp_path / "kept", task, tokenizer) == encoded(task, tokenizer)
    assert list((tmp_path / "kept").iterdir()) == []


def test_few_files_are_kept_and_none_that_is_a_month_old(tmp_path: Path, task: TrainTask, tokenizer: Tokenizer) -> None:
    folder, now = tmp_path / "kept", time.time()
    folder.mkdir()
    for age in range(12):
        (folder / f"{age}.tokens").touch()
        os.utime(folder / f"{age}.tokens", (now - age, now - age - (31 * 86400 if age == 3 else 0)))

    keep(folder, task, tokenizer)

    kept = {path.stem for path in folder.iterdir()}
    assert len(kept) == 8
    assert {"0", "1", "2"} < kept
    assert "3" not in kept


def test_a_second_round_trains_without_reading_a_row(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_training_task(toy("llama"), tmp_path, {Q0: 4}, steps=2)
    first = train.run(task, make_runtime(tmp_path / "scratch"))
    monkeypatch.setattr(train, "select_rows", None)

    second = train.run(task, make_runtime(tmp_path / "scratch"))

    assert second.losses == first.losses
    assert json.loads(second.to_json())["skippedRows"] == 0
