"""The policy file on a data volume: found above the data files and read strictly; one that is not clear allows nothing."""

import os
from pathlib import Path

import pytest

from fedpipe_trainer.contract import POLICY_FILE, DataPolicy, FailureReason, RunSelector, TrainingLosses
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.policy_file import policy_of_files

CANARY = "c4n4ry"


def policy_of(folder: Path, text: str | bytes) -> DataPolicy | None:
    (folder / POLICY_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    return policy_of_files([str(folder / "train.jsonl")])


def problem_of(folder: Path, text: str | bytes) -> str:
    with pytest.raises(TaskFailed) as caught:
        policy_of(folder, text)
    assert caught.value.reason is FailureReason.POLICY_DENIED
    assert str(folder / POLICY_FILE) in caught.value.message
    assert CANARY not in caught.value.message
    return caught.value.message


def test_every_field_is_read(tmp_path: Path) -> None:
    text = """
runs: {names: [triage], matchLabels: {study: x}}
columns: [note, ward]
taskTypes: [CausalLM]
labels: ["yes", "no"]
maxLabels: 3
maxShownRows: 1
minSites: 4
localBaseline: true
trainingLosses: Mean
"""

    assert policy_of(tmp_path, text) == DataPolicy(
        runs=RunSelector(names=("triage",), match_labels={"study": "x"}),
        columns=("note", "ward"),
        task_types=("CausalLM",),
        labels=("yes", "no"),
        max_labels=3,
        max_shown_rows=1,
        min_sites=4,
        local_baseline=True,
        training_losses=TrainingLosses.MEAN,
    )


def test_an_empty_mapping_is_the_default_policy(tmp_path: Path) -> None:
    assert policy_of(tmp_path, "{}") == DataPolicy()


def test_without_a_file_there_is_no_policy(tmp_path: Path) -> None:
    assert policy_of_files([str(tmp_path / "train.jsonl")]) is None


def test_a_file_at_the_root_counts_for_data_in_folders_below(tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).write_text("maxLabels: 3")
    (tmp_path / "2026" / "may").mkdir(parents=True)

    assert policy_of_files([str(tmp_path / "2026" / "may" / "train.jsonl")]) == DataPolicy(max_labels=3)


def test_of_several_files_the_stricter_counts(tmp_path: Path) -> None:
    (tmp_path / "2026").mkdir()
    (tmp_path / POLICY_FILE).write_text("{maxLabels: 3, minSites: 5}")
    (tmp_path / "2026" / POLICY_FILE).write_text("{maxLabels: 7, minSites: 6}")

    assert policy_of_files([str(tmp_path / "train.csv"), str(tmp_path / "2026" / "validation.csv")]) == DataPolicy(
        max_labels=3, min_sites=6
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it holds no mapping"),
        ("- minSites: 2", "it holds no mapping"),
        (f"minSites: 2\n{CANARY}: [", "it is not YAML, in line 2"),
        (f"note: !{CANARY} x", "it is not YAML, in line 1"),
        (b"\xff\xfe", "it is not UTF-8"),
        (f"{CANARY}: 1", "a field is unknown: the fields are runs, columns, taskTypes"),
        (f"runs: {{{CANARY}: [a]}}", "runs is unknown: the fields are"),
        ("columns:", "columns has no value"),
        ("runs: {names: ~}", "runs.names has no value"),
        (f"labels: [{CANARY}, ~]", "labels[1] has no value"),
        (f"labels: [{CANARY}, no]", "labels[1] is not valid (string type)"),
        ("labels: [2026-01-01]", "put dates and the like in quotes"),
        ("minSites: two", "minSites is not valid (int type)"),
        ("minSites: 0", "minSites is not valid (greater than equal)"),
        ("maxShownRows: true", "maxShownRows is not valid (int type)"),
        ("minSites: 3\nminSites: 1", "two fields of the same name follow line 1"),
        (f"labels: &all [{CANARY}]\ncolumns: *all", "it has an alias in line 2"),
        ("min_sites: 3", "a field is unknown"),
        (f"trainingLosses: {CANARY}", "trainingLosses is not valid (enum)"),
        ("a: " + "[" * 5000, "it is nested too deeply"),
        (f"#{'x' * 2**20}\n", "it is larger than"),
    ],
)
def test_a_file_that_is_not_clear_allows_nothing_and_is_not_quoted(tmp_path: Path, text: str | bytes, problem: str) -> None:
    message = problem_of(tmp_path, text)

    assert problem in message
    assert "every task at this site is refused" in message


def test_what_is_no_readable_file_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).mkdir()
    with pytest.raises(TaskFailed, match="cannot be read"):
        policy_of_files([str(tmp_path / "train.jsonl")])


def test_a_pipe_allows_nothing_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / POLICY_FILE)

    with pytest.raises(TaskFailed, match="it is a pipe or a device"):
        policy_of_files([str(tmp_path / "train.jsonl")])


@pytest.mark.parametrize("text", ["{}", "maxLabels: 3", f"{CANARY}: [{CANARY}"])
@pytest.mark.parametrize("has_policy", [False, True])
def test_a_file_whose_name_has_another_end_allows_nothing_until_it_is_renamed(tmp_path: Path, text: str, *, has_policy: bool) -> None:
    """Its owner believes that it holds."""
    (tmp_path / "may").mkdir()
    (tmp_path / "fedpipe-policy.yml").write_text(text)
    if has_policy:
        (tmp_path / POLICY_FILE).write_text("{}")

    with pytest.raises(TaskFailed, match=r"fedpipe-policy\.yml cannot be used.*: rename it to fedpipe-policy\.yaml") as caught:
        policy_of_files([str(tmp_path / "may" / "train.jsonl")])

    assert caught.value.reason is FailureReason.POLICY_DENIED
    assert CANARY not in caught.value.message


def test_a_link_to_nothing_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).symlink_to(tmp_path / "gone.yaml")

    with pytest.raises(TaskFailed, match="cannot be read"):
        policy_of_files([str(tmp_path / "train.jsonl")])


def test_a_link_to_the_data_does_not_lead_around_the_policy_of_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "ward").mkdir()
    (tmp_path / "ward" / "train.jsonl").touch()
    (tmp_path / "ward" / "fedpipe-policy.yaml").write_text("maxLabels: 3")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train.jsonl").symlink_to(tmp_path / "ward" / "train.jsonl")

    assert policy_of_files([str(tmp_path / "elsewhere" / "train.jsonl")]) == DataPolicy(max_labels=3)
