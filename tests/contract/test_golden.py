"""The wire format as golden files. A change of a file in `golden/` is a change of the format for every reader."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from fedpipe_trainer.contract import FailureReason, Outcome, Result, Task, TaskProgress, TrainResult, Wire, parse_result, parse_task

GOLDEN = Path(__file__).parent / "golden"
TASKS = sorted(GOLDEN.glob("task-*.json"))
RESULTS = sorted(GOLDEN.glob("result-*.json"))
PROGRESS = GOLDEN / "progress.json"


def parse(path: Path) -> Wire:
    if path == PROGRESS:
        return TaskProgress.model_validate_json(path.read_text())
    return (parse_task if path in TASKS else parse_result)(path.read_text())


@pytest.mark.parametrize("path", [*TASKS, *RESULTS, PROGRESS], ids=lambda path: path.stem)
def test_a_golden_file_is_parsed_and_written_back_byte_for_byte(path: Path) -> None:
    assert parse(path).to_json() + "\n" == path.read_text()


@pytest.mark.parametrize("path", TASKS + RESULTS, ids=lambda path: path.stem)
def test_messages_are_frozen(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(path).site = "elsewhere"  # type: ignore[attr-defined]  # every task and result has a site


@pytest.mark.parametrize(("kinds", "paths"), [(Task, TASKS), (Result, RESULTS)], ids=["tasks", "results"])
def test_there_is_a_golden_file_for_every_kind(kinds: Any, paths: list[Path]) -> None:
    assert {type(parse(path)) for path in paths} == set(get_args(get_args(kinds)[0]))


def test_the_golden_files_show_every_field() -> None:
    fields_with_content: dict[type[Wire], set[str]] = {}
    for path in [*TASKS, *RESULTS, PROGRESS]:
        for value in values_within(parse(path)):
            fields_with_content.setdefault(type(value), set()).update(name for name, content in value if content not in (None, {}, ()))

    missing = {f"{kind.__name__}.{name}" for kind, names in fields_with_content.items() for name in set(kind.model_fields) - names}

    assert missing - {f"{kind.__name__}.failure" for kind in fields_with_content} == set()  # one golden file with a failure is enough


def test_a_failed_task_reports_the_reason_and_no_artifact() -> None:
    result = parse_result((GOLDEN / "result-train-failed.json").read_text())

    assert isinstance(result, TrainResult)
    assert result.failure is not None
    assert (result.outcome, result.failure.reason, result.adapter) == (Outcome.FAILED, FailureReason.BAD_DATA, None)


def values_within(value: object) -> Iterator[Wire]:
    """The value and all values nested in it."""
    if isinstance(value, Wire):
        yield value
        for _, content in value:
            yield from values_within(content)
    elif isinstance(value, tuple):
        for item in value:
            yield from values_within(item)


@pytest.mark.parametrize("path", TASKS + RESULTS, ids=lambda path: path.stem)
def test_an_unknown_field_is_refused_and_the_message_names_it(path: Path) -> None:
    document = json.loads(path.read_text()) | {"credentials": "secret"}

    with pytest.raises(ValueError, match="credentials"):
        (parse_task if path in TASKS else parse_result)(json.dumps(document))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_with_a_newer_schema_version_is_refused_and_the_message_names_the_version(path: Path) -> None:
    document = json.loads(path.read_text()) | {"schemaVersion": 2, "somethingNew": True}

    with pytest.raises(ValueError, match=r"schema version 2, this trainer reads 1: use a trainer image as new as the operator"):
        parse_task(json.dumps(document))


@pytest.mark.parametrize("text", ["", "not JSON", "[]", "null", '{"kind": "train"}', '{"kind": "bake"}'])
def test_a_text_that_is_not_a_task_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_task(text)
