"""A profile of data as hubs have it: integer and boolean labels, a label in the validation rows alone, a folder of shards."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from toys import make_toy

from fedpipe_trainer.contract import Data, Model, ProfileTask, RunRef, SequenceClassification
from fedpipe_trainer.profiling import kept
from fedpipe_trainer.recipes.profile import PreparedSite, prepare


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    make_toy("bert", folder)
    return folder


def rows(labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"text": f"note {at}", "label": label} for at, label in enumerate(labels)]


def write_jsonl(path: Path, labels: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(labels)))
    return str(path)


def a_task(train: str, validation: str, model: Path) -> ProfileTask:
    return ProfileTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        model=Model(source=model.as_uri()),
        result="file:///nowhere",
        objective=SequenceClassification(max_length=16),
        data=Data(train=train, validation=validation),
        bits=(32,),
        batch_sizes=(1,),
        rank=2,
        importance="None",  # type: ignore[arg-type]
    )


def prepared(train: str, validation: str, model: Path) -> PreparedSite:
    return prepare(a_task(train, validation, model), model)


def found_labels(site: PreparedSite) -> tuple[str, ...]:
    assert isinstance(site.objective, SequenceClassification)
    return site.objective.labels


def test_integer_labels_are_the_labels_of_a_profile(tmp_path: Path, model: Path) -> None:
    site = prepared(write_jsonl(tmp_path / "t.jsonl", [0, 1, 2, 10] * 5), write_jsonl(tmp_path / "v.jsonl", [0, 1] * 5), model)

    assert found_labels(site) == ("0", "1", "10", "2")
    assert site.labels == (4, 2)


def test_a_label_in_the_validation_rows_alone_is_one_of_them(tmp_path: Path, model: Path) -> None:
    site = prepared(write_jsonl(tmp_path / "t.jsonl", [True] * 9), write_jsonl(tmp_path / "v.jsonl", [True, False, False]), model)

    assert found_labels(site) == ("false", "true")
    assert site.labels == (1, 2)


def test_formats_may_differ_and_the_labels_are_the_same(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for at in range(2):
        parquet.write_table(pa.Table.from_pylist(rows([0.0, 1.0] * 5)), folder / f"part-{at}.parquet")
    (tmp_path / "v.csv").write_text("text;label\n" + "note; 0\n" * 5 + "note;1 \n" * 5)
    site = prepared(str(folder), str(tmp_path / "v.csv"), model)

    assert (found_labels(site), len(site.examples), site.skipped_rows) == (("0", "1"), 20, 0)


def test_another_shard_makes_another_profile(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows(["a", "b"])), folder / "part-0.parquet")
    task = a_task(str(folder), str(folder), model)

    def key() -> str:
        return kept.key(task, fingerprint="f", machine={}, memory_limit=None, software={})

    before = key()
    parquet.write_table(pa.Table.from_pylist(rows(["a", "b"])), folder / "part-1.parquet")

    assert key() != before
