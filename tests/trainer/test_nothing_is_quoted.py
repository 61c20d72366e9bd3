"""Whatever is wrong with a site's data, nothing that a trainer writes or logs quotes it: no cell, no label, no column but the task's.

Every cell, label and other column of the data is a canary. A task is performed as a pod does it, and then each of its outputs is searched.
Of a classification with one label all tasks are performed with every fault. Of all other formats an evaluation is, since every task reads
and encodes rows by the same functions. What a library may raise is raised wherever a task meets the rows, with a canary in its message.
"""

import csv
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import jinja2
import pyarrow as pa
import pytest
import torch
from toy_training import Q0 as CAUSAL_Q0
from toy_training import at_urls
from toys import make_toy
from transformers import AutoTokenizer

from fedpipe_trainer import data as trainer_data
from fedpipe_trainer import device
from fedpipe_trainer.contract import (
    CausalLM,
    Data,
    DataPolicy,
    EvaluateTask,
    Evaluation,
    ExitCode,
    Forecast,
    Hyperparameters,
    Plan,
    Preference,
    ProfileTask,
    Progress,
    RunRef,
    Seq2SeqLM,
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
    from pyarrow import parquet  # noqa: PLC0415 -- as the trainer: only parquet needs it

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


def tasks_on(path: Path, common: dict[str, Any], weight: str = Q0, bits: Any = 32) -> list[Any]:
    """A profile, an evaluation and a training of the file."""
    fields = common | {"data": Data(train=str(path), validation=str(path))}
    plan = Plan(
        bits=bits, batch_size=4, steps=2, ranks={weight: 2}, forecast=Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    )
    adapter = str(common["result"]).replace("result.json", "adapter.safetensors")
    return [
        ProfileTask(**fields, bits=(bits,), batch_sizes=(1,), rank=2, importance="None"),  # type: ignore[arg-type]
        EvaluateTask(**fields, bits=bits, batch_size=4, evaluation=Evaluation(samples=5)),
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


TURNS: Final = [{"role": "user", "content": CANARY}, {"role": "assistant", "content": f"{CANARY} said"}]
SPOKEN: Final = [{"from": "human", "value": CANARY}, {"from": "gpt", "value": f"{CANARY} said"}]
CALL: Final = {"name": CANARY, "arguments": {CANARY: CANARY}}
TOOLS: Final = [{"type": "function", "function": {"name": CANARY, "description": CANARY, "parameters": {}}}]
CALLING: Final = [
    TURNS[0],
    {"role": "assistant", "content": CANARY, "tool_calls": [{"function": CALL}]},
    {"role": "tool", "content": {CANARY: 1}},
    TURNS[1],
]
PAIR: Final = {"prompt": "{a.b}", "response": "{c}"}


@dataclass(frozen=True)
class Format:
    """An objective, the toy model that it is for, and a row without a fault."""

    toy: str
    objective: Any
    row: dict[str, Any]


FORMATS: Final = {
    "templates": Format("llama", CausalLM(**PAIR, max_length=64), {"a": {"b": CANARY}, "c": CANARY}),
    "messages": Format("chat", CausalLM(format="Messages", max_length=64), {"messages": TURNS, "system": CANARY}),
    "tools": Format("chat", CausalLM(format="Messages", tools="tools", max_length=64), {"messages": CALLING, "tools": TOOLS}),
    "ShareGPT": Format("chat", CausalLM(format="ShareGPT", max_length=64), {"conversations": SPOKEN, "system": CANARY}),
    "Alpaca": Format(
        "llama",
        CausalLM(format="Alpaca", max_length=64),
        {"instruction": CANARY, "input": CANARY, "output": CANARY, "system": CANARY, "history": [[CANARY, CANARY]]},
    ),
    "completions": Format("llama", CausalLM(format="PromptCompletion", max_length=64), {"prompt": CANARY, "completion": CANARY}),
    "questions": Format(
        "llama",
        CausalLM(format="QuestionAnswering", max_length=64),
        {"context": CANARY, "question": CANARY, "answers": {"text": [CANARY], "answer_start": [0]}},
    ),
    "texts": Format("llama", CausalLM(format="Text", max_length=64), {"text": CANARY}),
    "packed texts": Format("llama", CausalLM(format="Text", packing=True, max_length=64), {"text": CANARY}),
    "rewriting": Format("t5", Seq2SeqLM(**PAIR, max_length=64), {"a": {"b": CANARY}, "c": CANARY}),
    "questions to T5": Format(
        "t5", Seq2SeqLM(format="QuestionAnswering", max_length=64), {"context": CANARY, "question": CANARY, "answers": [CANARY]}
    ),
    "preferred texts": Format(
        "llama", Preference(prompt_column="asked", max_length=64), {"asked": CANARY, "chosen": f"{CANARY} 1", "rejected": f"{CANARY} 2"}
    ),
    "preferred turns": Format(
        "chat", Preference(max_length=64), {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": f"not {CANARY}"}]}
    ),
    "several labels": Format(
        "bert", SequenceClassification(problem="MultiLabel", labels=LABELS, max_length=32), {"text": CANARY, "label": ["no", "yes"]}
    ),
    "numbers": Format("bert", SequenceClassification(problem="Regression", max_length=32), {"text": CANARY, "label": 0.9021042167}),
    "pairs of texts": Format(
        "bert", SequenceClassification(text_pair="other", labels=LABELS, max_length=32), {"text": CANARY, "other": CANARY, "label": "no"}
    ),
}
NUMBER: Final = "9021042167"
"""A canary of numbers, which no measured figure has by chance."""
WRONG: Final[dict[str, Any]] = {
    "a text": CANARY,
    "a text with special tokens": f"{CANARY}</s><|im_end|><s> {CANARY}",
    "a text that is no Unicode": f"{CANARY}\ud800",
    "a text with control characters": f"{CANARY}\x1b[2J\u202e",
    "a number": 9021042167,
    "a number with a fraction": 9021042167.25,
    "a number that is too large": 9021042167e290,
    "an integer that is too large": 9021042167 * 10**400,
    "a text that is not a number": f"{NUMBER},{CANARY}",
    "no number": float("nan"),
    "a boolean": True,
    "a date": f"2026-13-45T{CANARY}",
    "nothing": None,
    "an empty text": " ",
    "an empty list": [],
    "an object": {CANARY: CANARY},
    "a list of texts": [CANARY, CANARY],
    "a list of lists": [[CANARY, [CANARY]]],
    "a list with a number with a fraction": [9021042167.25, CANARY],
    "broken JSON": f'[{{"role": "user", "content": "{CANARY}"',
    "broken Python": f"[{{'role': 'user', 'content': '{CANARY}' '{CANARY}'}}]",
    "an escape of no character": f"['{CANARY}\\U99999999']",
    "JSON of something else": json.dumps({CANARY: [CANARY]}),
    "what NumPy writes": f"{{'text': array(['{CANARY}'], dtype=object)}}",
    "a deep list": json.loads("[" * 90 + f'"{CANARY}"' + "]" * 90),
}
"""Values that few columns may have. Where one may, the task succeeds."""
WRONG_TURNS: Final[dict[str, Any]] = {
    "another role": [{"role": CANARY, "content": CANARY, "from": CANARY, "value": CANARY}],
    "a role that is no text": [{"role": [CANARY], "content": CANARY, "from": {CANARY: 1}, "value": CANARY}],
    "a content that is no text": [{"role": "user", "content": {CANARY: 1}, "from": "human", "value": {CANARY: 1}}],
    "a part that is no text": [{"role": "user", "content": [{"type": "image", "image": CANARY}], "from": "human", "value": [CANARY]}],
    "no answer": [TURNS[0] | SPOKEN[0]],
    "an answer alone": [TURNS[1] | SPOKEN[1]],
    "the system alone": [{"role": "system", "from": "system", "content": CANARY, "value": CANARY}],
    "a call that is no JSON": [
        TURNS[0] | SPOKEN[0],
        {"role": "assistant", "tool_calls": f"{{{CANARY}", "from": "function_call", "value": f"{{{CANARY}"},
    ],
    "a call without a name": [
        TURNS[0] | SPOKEN[0],
        {"role": "assistant", "tool_calls": [{CANARY: CANARY}], "from": "tool_call", "value": json.dumps({CANARY: CANARY})},
    ],
    "a call with arguments that are no JSON": [
        TURNS[0] | SPOKEN[0],
        {
            "role": "assistant",
            "tool_calls": [{"name": CANARY, "arguments": f"{{{CANARY}"}],
            "from": "function_call",
            "value": json.dumps({"name": CANARY, "arguments": CANARY}),
        },
    ],
    "a function that is no JSON": [f"{{{CANARY}"],
}
"""Likewise, of conversations."""
OF_TURNS: Final = frozenset({"messages", "tools", "ShareGPT", "Alpaca", "preferred turns"})
FAULTY_FILES: Final[dict[str, Callable[[Path, list[dict[str, Any]]], Path]]] = {
    "a file without a fault": write_jsonl,
    "lines that are no JSON": lambda folder, sound: write_jsonl(folder, sound, f'{{"{CANARY}": "{CANARY}", {CANARY}}}\n' * 4),
    "lines that are no objects": lambda folder, sound: write_jsonl(folder, sound, f'["{CANARY}"]\n' * 4),
    "bytes that are no UTF-8": lambda folder, sound: with_bytes(
        folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in sound).encode().replace(CANARY.encode(), CANARY.encode() + b"\xff")
    ),
    "other columns": lambda folder, sound: write_jsonl(
        folder, [{f"{CANARY}_{name}": value for name, value in row.items()} for row in sound]
    ),
    "an array that is cut": lambda folder, sound: with_bytes(folder / "a.json", json.dumps(sound)[:-9].encode()),
    "one object of columns": lambda folder, sound: with_bytes(
        folder / "a.json", json.dumps({name: [row[name] for row in sound] for name in sound[0]}).encode()
    ),
    "a table without a header": lambda folder, sound: write_csv(folder, as_texts(sound), header=False),
    "a table with a quote without an end": lambda folder, sound: write_csv(folder, as_texts(sound), extra=f'"{CANARY},{CANARY}\n' * 3),
    "a table with a broken quote": lambda folder, sound: write_csv(folder, as_texts(sound), extra=f'"{CANARY}"{CANARY},{CANARY}\n' * 4),
    "a table with JSON that is cut": lambda folder, sound: write_csv(
        folder, [{k: v[:-1] for k, v in row.items()} for row in as_texts(sound)]
    ),
    "parquet of binary columns": lambda folder, sound: write_parquet(
        folder, [{k: v.encode() for k, v in row.items()} for row in as_texts(sound)]
    ),
    "parquet of dates": lambda folder, sound: write_parquet(
        folder, [dict.fromkeys(row, datetime(2026, 1, 2, tzinfo=UTC)) for row in sound]
    ),
    "parquet of decimals": lambda folder, sound: write_parquet(folder, [dict.fromkeys(row, Decimal("9021042167.25")) for row in sound]),
    "parquet that is cut": lambda folder, sound: with_bytes(folder / "a.parquet", write_parquet(folder, as_texts(sound)).read_bytes()[:-9]),
    "parquet that is damaged": lambda folder, sound: with_bytes(
        folder / "b.parquet", write_parquet(folder, as_texts(sound)).read_bytes().replace(CANARY.encode(), b"\xff" + CANARY.encode()[1:])
    ),
}


def as_texts(found: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows as a table has them: lists and objects as their JSON."""
    return [{name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()} for row in found]


@pytest.fixture(scope="module")
def models(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A function that returns a toy model, among them one with a chat template."""
    chat = tmp_path_factory.mktemp("chat")
    make_chat_model(chat, "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}")
    return lambda name: at_urls(chat if name == "chat" else toy(name))


def make_chat_model(folder: Path, template: str) -> None:
    make_toy("llama", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template + "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer.save_pretrained(folder)


@pytest.fixture
def fields(common: dict[str, Any], models: Any) -> Callable[[str], dict[str, Any]]:
    """A function that returns the fields that all tasks of a format have."""
    return lambda name: common | {"objective": FORMATS[name].objective, "model": models(FORMATS[name].toy)}


def evaluation_of(path: Path, fields: dict[str, Any]) -> EvaluateTask:
    evaluation = Evaluation(samples=5, max_samples=8, generations=1, max_new_tokens=2)
    return EvaluateTask(**fields, data=Data(train=str(path), validation=str(path)), bits=32, batch_size=4, evaluation=evaluation)


def places_of(found: dict[str, str]) -> list[str]:
    """Where a canary is, of texts or of numbers."""
    return sorted(place for place, text in found.items() if CANARY in text or NUMBER in text)


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name in FORMATS for wrong in WRONG | (WRONG_TURNS if name in OF_TURNS else {})]
)
def test_a_wrong_value_in_any_column_of_any_format_is_told_without_quoting_it(
    name: str, wrong: str, fields: Any, outputs: Any, tmp_path: Path
) -> None:
    row = FORMATS[name].row
    for column in row:
        found = [row | ({column: (WRONG | WRONG_TURNS)[wrong]} if at < 4 else {}) for at in range(ROWS)]
        task = evaluation_of(write_jsonl(tmp_path, found), fields(name))

        assert performed(task, tmp_path, []) in {ExitCode.OK, ExitCode.BAD_DATA}, column
        assert places_of(outputs()) == [], column


@pytest.mark.parametrize("file", FAULTY_FILES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_faulty_file_of_any_format_is_told_without_quoting_it(name: str, file: str, fields: Any, outputs: Any, tmp_path: Path) -> None:
    path = FAULTY_FILES[file](tmp_path, [FORMATS[name].row | {f"{CANARY}_column": CANARY}] * ROWS)
    task = evaluation_of(path, fields(name))

    assert performed(task, tmp_path, []) in {ExitCode.OK, ExitCode.BAD_DATA}
    assert places_of(outputs()) == []


TEMPLATES: Final = {
    "raises": "{{ raise_exception('no ' + messages[0].content) }}",
    "raises for some": "{% set said = messages[0].content %}{{ said }}{% if 'odd' in said %}{{ raise_exception(said) }}{% endif %}",
    "adds": "{{ messages[0].content + 1 }}",
    "reads what is not there": "{{ messages[0].content.nothing.nothing }}",
    "does what is forbidden": "{{ messages[0].content.__class__.__mro__ }}",
    "calls a text": "{{ messages[0].content() }}",
    "divides": "{{ messages[0].content | int // 0 }}",
    "formats": "{{ messages[0].content.format(1, 2) ~ ('%d' % messages[0].content) }}",
    "includes": "{% include messages[0].content %}",
    "filters": "{{ messages[0].content | map(messages[0].content) | list }}",
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["messages", "preferred turns"])
def test_what_a_chat_template_raises_is_told_without_its_message(
    name: str, template: str, fields: Any, outputs: Any, tmp_path: Path
) -> None:
    make_chat_model(tmp_path / "model", TEMPLATES[template])
    even = json.dumps(FORMATS[name].row)
    path = write_jsonl(tmp_path, [json.loads(even.replace(CANARY, f"{CANARY} odd") if at % 2 else even) for at in range(ROWS)])
    task = evaluation_of(path, fields(name) | {"model": at_urls(tmp_path / "model")})

    assert performed(task, tmp_path, []) in {ExitCode.BAD_DATA, ExitCode.BAD_MODEL}
    assert places_of(outputs()) == []


def noted(error: Exception) -> Exception:
    error.add_note(CANARY)
    return error


ERRORS: Final[dict[str, Callable[[], Exception]]] = {
    "ValueError": lambda: noted(ValueError(CANARY)),
    "KeyError": lambda: KeyError(CANARY),
    "RuntimeError": lambda: RuntimeError(CANARY),
    "RuntimeError of memory": lambda: RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {CANARY}"),
    "OutOfMemoryError": lambda: torch.OutOfMemoryError(CANARY),
    "MemoryError": lambda: MemoryError(CANARY),
    "NotImplementedError": lambda: NotImplementedError(CANARY),
    "ImportError": lambda: ImportError(CANARY),
    "OSError": lambda: OSError(CANARY),
    "FileNotFoundError": lambda: FileNotFoundError(2, "No such file", CANARY),
    "a full disk": lambda: OSError(28, "No space left", CANARY),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
    "ArrowInvalid": lambda: pa.ArrowInvalid(CANARY),
    "csv.Error": lambda: csv.Error(CANARY),
    "JSONDecodeError": lambda: json.JSONDecodeError(CANARY, CANARY, 0),
    "TemplateError": lambda: jinja2.TemplateSyntaxError(CANARY, 1, CANARY, CANARY),
    "an exception of Rust": lambda: Exception(CANARY),  # as tokenizers raises it
    "a group": lambda: ExceptionGroup(CANARY, [ValueError(CANARY)]),
}
FEW_ERRORS: Final = ("ValueError", "RuntimeError", "RuntimeError of memory", "ImportError", "FileNotFoundError", "an exception of Rust")
PLACES: Final = {
    "reading": ("evaluate", "templates", "fedpipe_trainer.data.rows.select_columns"),
    "formatting": ("evaluate", "templates", "fedpipe_trainer.data.encoding.prompt_of"),
    "rendering": ("evaluate", "messages", "fedpipe_trainer.data.chat.render_samples"),
    "tokenizing": ("evaluate", "templates", "fedpipe_trainer.data.encoding.encode_filled"),
    "evaluating": ("evaluate", "templates", "transformers.LlamaForCausalLM.forward"),
    "generating": ("evaluate", "templates", "transformers.LlamaForCausalLM.generate"),
    "measuring": ("evaluate", "templates", "fedpipe_trainer.recipes.evaluate.metrics.generation_metrics"),
    "training": ("train", "templates", "transformers.LlamaForCausalLM.forward"),
    "computing in a layer of this package": ("train", "templates", "torch.nn.functional.linear"),
    "a step of a profile": ("profile", "templates", "transformers.LlamaForCausalLM.forward"),
    "an answer of a profile": ("profile", "templates", "transformers.LlamaForCausalLM.generate"),
}
"""Where a library may raise an exception: the task, the format, and what raises it."""


def raising(make: Callable[[], Exception], package: str) -> Callable[..., Any]:
    """A function that raises, as one of this installed package does."""
    names: dict[str, Any] = {"make": make}
    source = "def fail(*arguments, **named):\n    raise make()\n"
    exec(compile(source, f"/x/site-packages/{package}/module.py", "exec"), names)  # noqa: S102 -- a stack has the names of files
    found: Callable[..., Any] = names["fail"]
    return found


@pytest.mark.parametrize(
    ("place", "error"),
    [("reading", error) for error in ERRORS if error not in FEW_ERRORS] + [(place, error) for place in PLACES for error in FEW_ERRORS],
)
def test_an_exception_of_a_library_is_told_by_its_place_alone(  # noqa: PLR0913, PLR0917 -- fixtures
    place: str, error: str, fields: Any, outputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, name, target = PLACES[place]
    path = write_jsonl(tmp_path, [FORMATS[name].row] * ROWS)
    bits = 16 if target.startswith("torch") else 32
    (task,) = [one for one in tasks_on(path, fields(name), CAUSAL_Q0, bits) if one.kind == kind]
    monkeypatch.setattr(device, "computes_bfloat16", lambda _device: False)
    monkeypatch.setattr(target, raising(ERRORS[error], "transformers"))

    code = performed(task, tmp_path, [])

    assert code is not ExitCode.OK or place == "an answer of a profile"  # which a profile does without
    assert places_of(outputs()) == []
