"""What `fedpipe init` writes passes `fedpipe validate --data`, for each form of data that it knows; a dataset of a hub is also trained."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
import yaml
from data_files import FORMATS, as_jsonl
from pyarrow import ipc, parquet
from typer.testing import CliRunner

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.api.parse import read_documents
from fedpipe_operator.cli import app_for, check_data
from fedpipe_operator.cli import init as module
from fedpipe_operator.conversion import objective
from fedpipe_trainer.contract import Wire, optional_columns
from fedpipe_trainer.contract.policy import columns_read
from fedpipe_trainer.inspection import answer
from fedpipe_trainer.settings import Settings

N: Final = 30
Rows = list[dict[str, Any]]


def rows(**columns: Any) -> Rows:
    """Rows whose columns are functions of the row's number, tuples that are repeated, or values."""

    def value(column: Any, at: int) -> Any:
        return column(at) if callable(column) else column[at % len(column)] if isinstance(column, tuple) else column

    return [{name: value(column, at) for name, column in columns.items()} for at in range(N)]


def ask(at: int) -> str:
    return f"what is number {at}"


def say(at: int) -> str:
    return f"it is the number {at}"


def chat(at: int) -> Rows:
    return [{"role": "user", "content": ask(at)}, {"role": "assistant", "content": say(at)}]


def called(at: int) -> Rows:
    """As LLaMA-Factory has a call of a function, and ShareGPT what it returned: as objects."""
    call = {"name": "look", "arguments": {"number": at}}
    return [
        {"from": "human", "value": ask(at)},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": {"found": [at, None]}},
        {"from": "gpt", "value": say(at)},
    ]


def called_in_texts(at: int) -> Rows:
    """As a column of parquet can have it."""
    return [turn | {"value": turn["value"] if isinstance(turn["value"], str) else json.dumps(turn["value"])} for turn in called(at)]


LOOK: Final = {"name": "look", "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}}}
CASES: Final[dict[str, tuple[str, Rows]]] = {
    "labels": ("bert", rows(text=ask, label=("spam", "ham"))),
    "integer labels of a decoder": ("llama", rows(text=ask, label=(0, 1))),
    "pairs": ("bert", rows(premise=ask, hypothesis=say, label=(0, 1, 2))),
    "several labels": ("bert", rows(text=ask, labels=(["red"], ["red", "blue"], []))),
    "numbers": ("bert", rows(text=ask, score=lambda at: at / 4)),
    "flags": ("bert", rows(comment=ask, toxic=(0, 1), obscene=(1, 0, 0))),
    "messages": ("llama-chat", rows(messages=chat)),
    "messages with a system column": ("llama-chat", rows(system="be kind", messages=chat)),
    "messages with empty tools": ("llama-chat", rows(messages=chat, tools=lambda _: [])),
    "messages with tools": ("llama-chat", rows(messages=chat, tools=lambda _: [{"type": "function", "function": {"name": "look"}}])),
    "ShareGPT": ("llama-chat", rows(conversations=lambda at: [{"from": "human", "value": ask(at)}, {"from": "gpt", "value": say(at)}])),
    "ShareGPT with a system column": (
        "llama-chat",
        rows(system="be kind", conversations=lambda at: [{"from": "human", "value": ask(at)}, {"from": "gpt", "value": say(at)}]),
    ),
    "ShareGPT with calls": ("llama-chat", rows(conversations=called_in_texts, tools=lambda _: [LOOK])),
    "ShareGPT with functions as texts": ("llama-chat", rows(conversations=called_in_texts, tools=lambda _: [json.dumps(LOOK)])),
    "Alpaca": ("llama", rows(instruction=ask, input=("", "of two"), output=say)),
    "Alpaca with all columns": (
        "llama",
        rows(instruction=ask, input="", output=say, system=("be kind", ""), history=([["earlier", "said"]], [])),
    ),
    "Alpaca with a history of messages": ("llama", rows(instruction=ask, output=say, history=chat)),
    "Alpaca of a T5 with a system column": ("t5", rows(instruction=ask, output=say, system="be kind")),
    "Alpaca of a T5": ("t5", rows(instruction=ask, input="", output=say)),
    "completions": ("llama", rows(prompt=ask, completion=say)),
    "questions": ("llama", rows(context=say, question=ask, answers=lambda at: {"text": [f"number {at}"], "answer_start": [2]})),
    "templates": ("llama", rows(question=ask, answer=say, category=("a", "b"))),
    "preferences": ("llama", rows(prompt=ask, chosen=say, rejected=lambda at: f"it is not {at}")),
    "preferred conversations": (
        "llama-chat",
        rows(chosen=chat, rejected=lambda at: [chat(at)[0], {"role": "assistant", "content": f"it is not {at}"}]),
    ),
    "preferences with a system column": ("llama", rows(system="be kind", prompt=ask, chosen=say, rejected=lambda at: f"it is not {at}")),
    "preferred conversations with a system column": (
        "llama-chat",
        rows(system="be kind", chosen=chat, rejected=lambda at: [chat(at)[0], {"role": "assistant", "content": f"it is not {at}"}]),
    ),
    "plain text": ("llama", rows(text=ask)),
}
FORMS: Final = ("jsonl", "csv", "saved dataset")


@pytest.fixture
def fedpipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in a folder of its own; the trainer answers in this process."""

    def ask_here(question: Wire, kind: type[Wire]) -> Wire:
        return kind.model_validate_json(answer(question.to_json(), Settings(cache=tmp_path / "cache")))

    def run(command: str, *arguments: object) -> str:
        result = CliRunner().invoke(app_for([command]), [command, *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.output

    monkeypatch.chdir(tmp_path)
    for asking in (module, check_data):
        monkeypatch.setattr(asking, "ask", ask_here)
    return run


def policy_columns() -> set[str]:
    site = list(yaml.safe_load_all(Path("fedpipe.yaml").read_text()))[1]
    return set(site["spec"]["policy"]["columns"])


def columns_that_the_task_reads(data: Rows) -> set[str]:
    """Those that it needs, and those of the data that it would read if the policy allowed them, and can."""
    run = read_documents(Path("fedpipe.yaml").read_text(), "fedpipe.yaml").objects[0].value
    assert isinstance(run, FederatedFineTune)
    task = objective(run.spec.task)
    kept = {name for name in optional_columns(task) if name in data[0] and not (name == "history" and isinstance(data[0][name][0], dict))}
    return columns_read(task) | kept


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_what_init_writes_passes_validate_with_the_data(
    models: Callable[[str], Path], fedpipe: Callable[..., str], tmp_path: Path, case: str, form: str
) -> None:
    model, data = CASES[case]

    told = fedpipe("init", FORMATS[form](tmp_path / "in", data), "--model", models(model))

    assert "27 rows for training and 3 rows for validation can be read" in told
    assert "data checked" in fedpipe("validate", "fedpipe.yaml", "--data")
    assert policy_columns() == columns_that_the_task_reads(data)


def test_objects_in_turns_are_taken_from_json_lines(models: Callable[[str], Path], fedpipe: Callable[..., str], tmp_path: Path) -> None:
    """Which a column of parquet cannot have beside texts."""
    data = rows(conversations=called, tools=json.dumps([LOOK]))

    fedpipe("init", FORMATS["jsonl"](tmp_path / "in", data), "--model", models("llama-chat"))

    assert "training: 27 rows\n" in fedpipe("validate", "fedpipe.yaml", "--data")
    assert policy_columns() == {"conversations", "tools"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.jsonl", json.dumps(rows(text=ask, label=("spam", "ham"))).encode()),
        ("notes.ndjson", as_jsonl(rows(text=ask, label=("spam", "ham")))),
        ("notes.json", json.dumps({"version": 1, "data": rows(text=ask, label=("spam", "ham"))}, indent=1).encode()),
        ("notes.csv", b"sep=;\ntext;label\n" + b"a note, all well;spam\nanother note;ham\n" * 15),
        ("notes.csv", b"text, label\n" + b'"a note, all well", spam\nanother note, "ham"\n' * 15),
    ],
)
def test_files_that_people_have_are_taken_with_links_and_without(
    models: Callable[[str], Path], fedpipe: Callable[..., str], name: str, content: bytes
) -> None:
    Path(name).write_bytes(content)

    for validation in ([], ["--validation", name]):
        fedpipe("init", name, "--model", models("bert"), "--force", *validation)
        assert "data checked" in fedpipe("validate", "fedpipe.yaml", "--data")
        assert next(yaml.safe_load_all(Path("fedpipe.yaml").read_text()))["spec"]["task"]["labels"] == ["ham", "spam"]


# A dataset of a hub

FEATURES: Final = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["sadness", "joy", "anger"], "_type": "ClassLabel"},
}


def saved_by_datasets(folder: Path) -> Path:
    """As `load_dataset(NAME).save_to_disk(FOLDER)` writes two splits whose labels are numbers of classes."""
    words = ("grey rain", "bright sun", "loud storm")
    for split, count in (("train", 24), ("validation", 9)):
        made = pa.table({"text": [f"{words[at % 3]} {at}" for at in range(count)], "label": [at % 3 for at in range(count)]})
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
        (folder / split).mkdir(parents=True)
        with ipc.new_stream(folder / split / "data-00000-of-00001.arrow", made.schema) as writer:
            writer.write_table(made)
        (folder / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split})
        )
        (folder / split / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return folder


def of_a_repository(folder: Path) -> Path:
    """As a repository of a hub has it: shards of parquet in `data`, whose metadata name the classes."""
    saved = saved_by_datasets(folder / "saved")
    (folder / "hub" / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        made = ipc.open_stream(saved / split / "data-00000-of-00001.arrow").read_all()
        parquet.write_table(made, folder / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    return folder / "hub"


@pytest.mark.parametrize("write", [saved_by_datasets, of_a_repository])
def test_a_dataset_with_classes_is_taken_with_their_names(
    models: Callable[[str], Path], fedpipe: Callable[..., str], tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    fedpipe("init", write(tmp_path / "emotion"), "--model", models("bert"))

    assert "training labels: 'anger' 8, 'joy' 8, 'sadness' 8" in fedpipe("validate", "fedpipe.yaml", "--data")


@pytest.mark.slow  # each command starts a trainer
def test_a_dataset_with_classes_is_trained_from_init_to_the_export(models: Callable[[str], Path], tmp_path: Path) -> None:
    def fedpipe(*arguments: object) -> None:
        command = [sys.executable, "-m", "fedpipe_operator.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    saved_by_datasets(tmp_path / "emotion")
    fedpipe("init", "emotion", "--model", models("bert"), "--name", "emotion")
    fedpipe("validate", "fedpipe.yaml", "--data")
    fedpipe("run", "fedpipe.yaml", "--rounds", 1, "--no-compare")

    exported = json.loads((tmp_path / "runs/default/emotion/store/export/merged/config.json").read_text())
    assert exported["id2label"] == {"0": "anger", "1": "joy", "2": "sadness"}
