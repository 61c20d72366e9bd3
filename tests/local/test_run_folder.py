"""A run's folder: its origin, what survives a restart, and its locks."""

import json
import os
import re
import uuid
from pathlib import Path

import pytest
from stand_in_runs import a_run

from fedpipe_operator.api import FederatedFineTune, FineTuneStatus
from fedpipe_operator.errors import UserError
from fedpipe_operator.local import run_folder
from fedpipe_operator.local.run_folder import PROCESSES_LOCK, RunFolder, acquire_process_lock
from fedpipe_operator.rounds.revision import IMMUTABLE


def a_resource(name: str = "toy", namespace: str = "default", **spec: object) -> FederatedFineTune:
    """A run as a file gives it: without a uid."""
    resource = a_run(**spec).resource
    return resource.model_copy(update={"metadata": resource.metadata.model_copy(update={"name": name, "namespace": namespace, "uid": ""})})


def test_every_run_has_its_own_folder_by_namespace_and_name(tmp_path: Path) -> None:
    runs = [("default", "toy"), ("default", "toy-2"), ("ward", "toy")]
    folders = [RunFolder(tmp_path, a_resource(name, namespace)).path for namespace, name in runs]

    assert folders == [tmp_path / "default/toy", tmp_path / "default/toy-2", tmp_path / "ward/toy"]


def test_a_new_run_is_not_edited(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path, a_resource()).is_edited()


def test_a_run_gets_a_uid_at_its_first_start_and_keeps_it(tmp_path: Path) -> None:
    with RunFolder(tmp_path, a_resource()).lock():
        first = RunFolder(tmp_path, a_resource()).resume()

    again = RunFolder(tmp_path, a_resource()).resume()
    elsewhere = RunFolder(tmp_path / "elsewhere", a_resource())
    with elsewhere.lock():
        other = elsewhere.resume()

    assert uuid.UUID(first.metadata.uid)
    assert again.metadata.uid == first.metadata.uid != other.metadata.uid


def test_a_run_is_resumed_with_its_last_status(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        assert folder.resume().status == FineTuneStatus()
        folder.write_status(FineTuneStatus(round=1))
        folder.write_status(FineTuneStatus(round=2))

    assert RunFolder(tmp_path, a_resource()).resume().status.round == 2
    assert RunFolder(tmp_path, a_resource()).read_only().status.round == 2


def test_reading_a_run_creates_no_folder(tmp_path: Path) -> None:
    resource = RunFolder(tmp_path, a_resource()).read_only()

    assert resource.status == FineTuneStatus()
    assert list(tmp_path.iterdir()) == []


def test_a_status_is_replaced_atomically_for_a_reader(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        folder.write_status(FineTuneStatus(round=1))
        with (folder.path / "status.json").open() as file:
            folder.write_status(FineTuneStatus(round=2))
            read = FineTuneStatus.model_validate_json(file.read())

    assert read.round == 1
    assert not list(folder.path.glob("*.part"))


def over(type_: str) -> FineTuneStatus:
    return FineTuneStatus.model_validate({"conditions": [{"type": type_, "status": "True", "reason": "SomeReason"}]})


@pytest.mark.parametrize(
    "edit",
    [
        {"model": {"source": "pvc://models/other"}},
        {"task": {"type": "SequenceClassification", "labels": ["a", "b"]}},
        {"planning": {"bits": [8]}},
        {"aggregation": {"method": "ZeroPad"}},
    ],
    ids=["model", "task", "planning", "aggregation.method"],
)
def test_an_edit_of_a_field_that_may_not_change_is_refused_and_the_folder_left_unchanged(tmp_path: Path, edit: dict[str, object]) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        uid = folder.resume().metadata.uid

    with pytest.raises(UserError, match=re.escape("restore it, rename the run, or start over with --fresh")) as refused:
        RunFolder(tmp_path, a_resource(**edit)).resume()

    assert refused.value.reason == "OtherSpec"
    assert str(folder.path) in refused.value.message
    assert all(f"spec.{field}" in refused.value.message for field in IMMUTABLE)
    assert folder.resume().metadata.uid == uid


@pytest.mark.parametrize(
    "edit",
    [{"rounds": {"count": 9}}, {"training": {"learningRateSchedule": "Cosine"}}, {"aggregation": {"maxNorm": 5.0}}],
    ids=["rounds.count", "training.learningRateSchedule", "aggregation.maxNorm"],
)
def test_a_run_is_resumed_with_an_edit_of_any_other_field_which_is_told_once(tmp_path: Path, edit: dict[str, object]) -> None:
    with RunFolder(tmp_path, a_resource()).lock():
        begun = RunFolder(tmp_path, a_resource())
        uid = begun.resume().metadata.uid
        begun.write_status(FineTuneStatus(round=1))
    edited = RunFolder(tmp_path, a_resource(**edit))

    assert edited.is_edited()
    resumed = edited.resume()
    assert not edited.is_edited()
    assert resumed.spec == a_resource(**edit).spec
    assert (resumed.metadata.uid, resumed.status.round) == (uid, 1)


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_an_edit_of_a_run_that_is_over_is_refused(tmp_path: Path, end: str) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        folder.resume()
        folder.write_status(over(end))

    with pytest.raises(UserError, match="has ended with another spec: rename the run, or start over with --fresh") as refused:
        RunFolder(tmp_path, a_resource(rounds={"count": 9})).resume()

    assert refused.value.reason == "OtherSpec"
    assert folder.resume().status == over(end)


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_a_run_that_is_over_may_get_other_trackers(tmp_path: Path, end: str) -> None:
    """They are written from what the run left. So a run of a version that had no trackers is not refused either."""
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        uid = folder.resume().metadata.uid
        folder.write_status(over(end))

    assert RunFolder(tmp_path, a_resource(tracking={"tensorboard": True})).resume().metadata.uid == uid


def test_a_folder_of_an_earlier_version_is_resumed_with_its_own_spec_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        uid = folder.resume().metadata.uid
    origin = json.loads((folder.path / "run.json").read_text())
    del origin["revision"]
    (folder.path / "run.json").write_text(json.dumps(origin))

    with pytest.raises(UserError, match="OtherSpec"):
        RunFolder(tmp_path, a_resource(rounds={"count": 9})).resume()
    assert folder.resume().metadata.uid == uid


def test_the_labels_of_a_run_may_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        uid = folder.resume().metadata.uid
    labelled = a_resource().model_copy(update={"metadata": a_resource().metadata.model_copy(update={"labels": {"study": "triage"}})})

    assert RunFolder(tmp_path, labelled).resume().metadata.uid == uid


def test_a_second_run_of_the_same_name_is_refused_with_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    with RunFolder(tmp_path, a_resource()).lock(), pytest.raises(UserError, match=rf"process {os.getpid()}\) uses") as refused:
        RunFolder(tmp_path, a_resource()).lock().__enter__()

    assert refused.value.reason == "RunInProgress"


def test_runs_with_other_names_or_outputs_can_be_active_at_once(tmp_path: Path) -> None:
    others = (RunFolder(tmp_path, a_resource("toy-2")), RunFolder(tmp_path / "elsewhere", a_resource()))

    with RunFolder(tmp_path, a_resource()).lock(), others[0].lock(), others[1].lock():
        assert all(folder.path.is_dir() for folder in others)


def test_the_lock_is_free_again_when_its_run_ends_or_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, a_resource()).lock():
        raise KeyboardInterrupt

    with RunFolder(tmp_path, a_resource()).lock():
        pass


def test_starting_over_removes_everything_but_the_locks_and_keeps_the_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        uid = folder.resume().metadata.uid
        folder.write_status(FineTuneStatus(round=2))
        (folder.store / "rounds/0001").mkdir(parents=True)
        (folder.store / "rounds/0001/plan.json").write_text("{}")

        folder.start_over()

        assert sorted(path.name for path in folder.path.iterdir()) == ["lock", PROCESSES_LOCK]
        with pytest.raises(UserError, match="another fedpipe run"):
            RunFolder(tmp_path, a_resource()).lock().__enter__()
        started_over = RunFolder(tmp_path, a_resource(rounds={"count": 9})).resume()

    assert started_over.metadata.uid != uid
    assert started_over.status == FineTuneStatus()


def test_starting_over_removes_nothing_while_a_trainer_of_a_killed_run_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_TIMEOUT_SECONDS", 0.0)
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        folder.resume()
        trainer = acquire_process_lock(folder.path / PROCESSES_LOCK, 0.0)

        with pytest.raises(UserError, match="ProcessesRunning"):
            folder.start_over()

        assert (folder.path / "run.json").exists()
        os.close(trainer)
        folder.start_over()
        assert not (folder.path / "run.json").exists()


@pytest.mark.parametrize("file", ["run.json", "status.json"])
def test_a_file_of_another_version_is_an_error_with_its_path(tmp_path: Path, file: str) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.lock():
        folder.resume()
    (folder.path / file).write_text('{"invented": 1}')

    with pytest.raises(UserError, match=f"ObjectUnreadable: {folder.path / file} is not a valid "):
        folder.resume()
