"""Whatever is wrong with a site's data, nothing that a trainer writes or logs quotes it: no cell, no label, no column but the task's.

Every cell, label and other column of the data is a canary. A task is performed as a pod does it, and then each of its outputs is searched.
"""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from toy_training import at_urls

from fedpipe_trainer import data as trainer_data
from fedpipe_trainer.contract import (
    Data,
    DataPolicy,
    EvaluateTask,
    Evaluation,
    ExitCode,
    Forecast,
    Hyperparameters,
    Plan,
    ProfileTask,
    Progress,
    RunRef,
    SequenceClassification,
    TrainTask,
    parse_result,
)
from fedpipe_trainer.recipes import evaluate, profile, train
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.tasks import perform

CANARY: Final = "c4n4ry"
ROWS: Final = 40
LABELS: Final = ("no", "yes")
"""The run's own words, as a task that names its labels has them."""
Q0: Final = "bert.encoder.layer.0.attention.self.query"


def rows() -> list[dict[str, Any]]:
    return [{"text": f"{CANARY} {at}", "label": LABELS[at % 2], f"{CANARY}_column": CANARY} for at in range(ROWS)]


def write_jsonl(folder: Path, found: list[dict[str, Any]], extra: str = "") -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found) + extra)
    return path


def write_csv(folder: Path, found: list[dict[str, Any]], *, header: bool = True, extra: str = "") -> Path:
    path = folder / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        if header:
            writer.writeheader()
        writer.writerows(found)
        file.write(extra)
    return path


def write_parquet(folder: Path, found: list[dict[str, Any]]) -> Path:
    import pyarrow as pa  # noqa: PLC0415 -- as the trainer: only parquet needs it
    from pyarrow import parquet  # noqa: PLC0415

    path = folder / "train.parquet"
    parquet.write_table(pa.Table.from_pylist(found), path)
    return path


def with_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_other(column: str, value: Any) -> list[dict[str, Any]]:
    """The rows, of which the first ones have another value in this column: more than may be skipped."""
    return [row | ({column: value} if at < 4 else {}) for at, row in enumerate(rows())]


FAULTS: dict[str, Callable[[Path], Path]] = {
    "unknown label": lambda folder: write_jsonl(folder, with_other("label", f"{CANARY}-label")),
    "headerless CSV": lambda folder: write_csv(folder, rows(), header=False),
    "CSV of other columns": lambda folder: write_csv(folder, [{f"{CANARY}_column": CANARY}] * ROWS),
    "CSV with a row that is too long": lambda folder: write_csv(folder, rows(), extra=f"{CANARY},{CANARY},{CANARY},{CANARY}\n" * 4),
    "CSV with a broken quote": lambda folder: write_csv(folder, rows(), extra=f'"{CANARY}"{CANARY},no,x\n' * 4),
    "JSON that is broken": lambda folder: write_jsonl(folder, rows(), extra=f'{{"text": "{CANARY}", {CANARY}}}\n' * 4),
    "JSON that is no object": lambda folder: write_jsonl(folder, rows(), extra=f'"{CANARY}"\n' * 4),
    "JSON of other columns": lambda folder: write_jsonl(folder, [{f"{CANARY}_column": CANARY}] * ROWS),
    "a text that is a list": lambda folder: write_jsonl(folder, with_other("text", [CANARY])),
    "a label that is a number with a fraction": lambda folder: write_jsonl(folder, with_other("label", 3.5)),
    "a label that is an object": lambda folder: write_jsonl(folder, with_other("label", {CANARY: CANARY})),
    "a label that is no Unicode": lambda folder: write_jsonl(folder, with_other("label", f"{CANARY}\ud800")),
    "a column that is there twice": lambda folder: with_bytes(folder / "a.csv", f"text,label,text,{CANARY}\n".encode() * 9),
    "a quote without an end": lambda folder: write_csv(folder, rows(), extra=f'"{CANARY},no\n' * 3),
    "a header in another encoding": lambda folder: with_bytes(folder / "a.csv", f"text,label,{CANARY}é\n".encode("cp1252") * 9),
    "UTF-16": lambda folder: with_bytes(folder / "a.jsonl", json.dumps(rows()[0]).encode("utf-16")),
    "an array that is cut": lambda folder: with_bytes(folder / "a.json", json.dumps(rows())[:-9].encode()),
    "gzip that is none": lambda folder: with_bytes(folder / "a.jsonl.gz", CANARY.encode() * 9),
    "zstd that is none": lambda folder: with_bytes(folder / "a.jsonl.zst", CANARY.encode() * 9),
    "a saved dataset that is none": lambda folder: with_bytes(folder / "state.json", f'["{CANARY}"]'.encode()).parent,
    "a text that is no Unicode": lambda folder: write_jsonl(folder, with_other("text", f"{CANARY} \ud800")),
    "bytes that are no UTF-8": lambda folder: with_bytes(folder / "train.jsonl", b'{"text": "c4n4ry \xff", "label": "no"}\n' * ROWS),
    "parquet of a wrong type": lambda folder: write_parquet(folder, [row | {"text": {CANARY: 1}} for row in rows()]),
    "parquet that is none": lambda folder: with_bytes(folder / "train.parquet", b"PAR1" + CANARY.encode() * 99 + b"PAR1"),
    "a file of another format": lambda folder: with_bytes(folder / "train.txt", CANARY.encode()),
}
SOUND: dict[str, Callable[[Path], Path]] = {
    "JSON": lambda folder: write_jsonl(folder, rows()),
    "CSV": lambda folder: write_csv(folder, rows()),
    "parquet": lambda folder: write_parquet(folder, rows()),
    "an over-long text": lambda folder: write_jsonl(folder, [row | {"text": f"{CANARY} " * 5000} for row in rows()]),
    "a few bad rows": lambda folder: write_jsonl(folder, rows() * 6, extra=f'{{"text": "{CANARY}", {CANARY}}}\n'),
}


@pytest.fixture
def outputs(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], dict[str, str]]:
    """All that tasks have written, reported and logged, by where."""

    def read() -> dict[str, str]:
        files = {str(path): path.read_bytes().decode(errors="replace") for path in (tmp_path / "out").rglob("*") if path.is_file()}
        captured = capfd.readouterr()
        return files | {"stdout": captured.out, "stderr": captured.err, "log": caplog.text}

    caplog.set_level(logging.DEBUG)
    (tmp_path / "out").mkdir()
    return read


@pytest.fixture
def common(toy: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "run": RunRef(namespace="n", name="r", uid="u"),
        "site": "a",
        "model": at_urls(toy("bert")),
        "result": (tmp_path / "out" / "result.json").as_uri(),
        "objective": SequenceClassification(labels=LABELS, max_length=32),
        "contributors": 2,
    }


def tasks_on(path: Path, common: dict[str, Any]) -> list[Any]:
    """A profile, an evaluation and a training of the file."""
    fields = common | {"data": Data(train=str(path), validation=str(path))}
    plan = Plan(
        bits=32, batch_size=4, steps=2, ranks={Q0: 2}, forecast=Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    )
    adapter = str(common["result"]).replace("result.json", "adapter.safetensors")
    return [
        ProfileTask(**fields, bits=(32,), batch_sizes=(1,), rank=2, importance="None"),  # type: ignore[arg-type]
        EvaluateTask(**fields, bits=32, batch_size=4, evaluation=Evaluation(samples=5)),
        TrainTask(**fields, plan=plan, hyperparameters=Hyperparameters(), adapter=adapter),
    ]


def performed(task: Any, folder: Path, told: list[Progress]) -> ExitCode:
    """Perform the task as the command line does."""
    path = folder / f"{task.kind}.json"
    path.write_text(task.to_json())
    settings = Settings(cache=folder / "cache")
    return perform(path, settings=settings, write_progress=told.append, stop_requested=lambda: False)


def places_of_canaries(found: dict[str, str]) -> list[str]:
    return sorted(place for place, text in found.items() if CANARY in text)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_data_is_told_without_quoting_it(fault: str, common: Any, outputs: Any, tmp_path: Path) -> None:
    path = FAULTS[fault](tmp_path)
    for task in tasks_on(path, common):
        code = performed(task, tmp_path, [])
        failure = parse_result((tmp_path / "out" / "result.json").read_text()).failure

        assert failure is not None, task.kind
        assert code is ExitCode.BAD_DATA
        assert str(path) in failure.message
        assert places_of_canaries(outputs()) == []


@pytest.mark.parametrize("kind", SOUND)
def test_what_succeeds_tells_nothing_of_the_data_either(kind: str, common: Any, outputs: Any, tmp_path: Path) -> None:
    told: list[Progress] = []
    for task in tasks_on(SOUND[kind](tmp_path), common):
        assert performed(task, tmp_path, told) is ExitCode.OK
        assert places_of_canaries(outputs()) == []
    assert CANARY not in "".join(line.to_json() for line in told)


def test_a_label_that_the_policy_does_not_allow_is_named_nowhere(common: Any, outputs: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, with_other("label", f"{CANARY}-label"))
    asked = {"objective": SequenceClassification(max_length=32), "policy": DataPolicy(labels=LABELS)}

    for task in tasks_on(path, common | asked):
        named = (
            task.model_copy(update={"objective": task.objective.model_copy(update={"labels": LABELS})}) if task.kind != "profile" else task
        )
        assert performed(named, tmp_path, []) is ExitCode.OK
        assert places_of_canaries(outputs()) == []


@pytest.mark.parametrize("recipe", [profile, evaluate, train], ids=["profile", "evaluate", "train"])
def test_an_unexpected_exception_that_quotes_the_data_is_told_without_its_message(
    recipe: Any, common: Any, outputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> Any:
        try:
            trainer_data.read_rows("nowhere.txt", ())
        except Exception as error:
            raise ValueError(f"cannot take {CANARY}") from error

    kind = recipe.__name__.rpartition(".")[2]
    (task,) = [one for one in tasks_on(write_jsonl(tmp_path, rows()), common) if one.kind == kind]
    monkeypatch.setattr(recipe, "select_rows", fail)

    assert performed(task, tmp_path, []) is ExitCode.UNEXPECTED
    found = outputs()
    assert places_of_canaries(found) == []
    assert "ValueError" in found["log"]
    assert "in fail" in found["log"]
    assert "TaskFailed" in found["log"]
