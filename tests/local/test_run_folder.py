"""A run's folder: whose it is, what it keeps over a restart, and who may work in it."""

import os
import uuid
from pathlib import Path

import pytest
from stand_in_runs import a_run

from fedpipe_operator.api import FederatedFineTune, FineTuneStatus
from fedpipe_operator.errors import UserError
from fedpipe_operator.local import run_folder
from fedpipe_operator.local.process_lock import PROCESSES_LOCK, acquire_process_lock
from fedpipe_operator.local.run_folder import RunFolder


def a_resource(name: str = "toy", namespace: str = "default", **spec: object) -> FederatedFineTune:
    """A run as a file gives it: without a uid."""
    resource = a_run(**spec).resource
    return resource.model_copy(update={"metadata": resource.metadata.model_copy(update={"name": name, "namespace": namespace, "uid": ""})})


def test_a_run_has_a_folder_of_its_own_by_namespace_and_name(tmp_path: Path) -> None:
    runs = [("default", "toy"), ("default", "toy-2"), ("ward", "toy")]
    job_folder = [RunFolder(tmp_path, a_resource(name, namespace)).path for namespace, name in runs]

    assert job_folder == [tmp_path / "default/toy", tmp_path / "default/toy-2", tmp_path / "ward/toy"]


def test_a_run_gets_a_uid_at_its_first_start_and_keeps_it(tmp_path: Path) -> None:
    with RunFolder(tmp_path, a_resource()).locked():
        first = RunFolder(tmp_path, a_resource()).adopt()

    again = RunFolder(tmp_path, a_resource()).adopt()
    elsewhere = RunFolder(tmp_path / "elsewhere", a_resource())
    with elsewhere.locked():
        other = elsewhere.adopt()

    assert uuid.UUID(first.metadata.uid)
    assert again.metadata.uid == first.metadata.uid != other.metadata.uid


def test_a_run_goes_on_with_the_status_it_had(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.locked():
        assert folder.adopt().status == FineTuneStatus()
        folder.write_status(FineTuneStatus(round=1))
        folder.write_status(FineTuneStatus(round=2))

    assert RunFolder(tmp_path, a_resource()).adopt().status.round == 2
    assert RunFolder(tmp_path, a_resource()).shown().status.round == 2


def test_looking_at_a_run_begins_none(tmp_path: Path) -> None:
    shown = RunFolder(tmp_path, a_resource()).shown()

    assert shown.status == FineTuneStatus()
    assert list(tmp_path.iterdir()) == []


def test_a_status_is_replaced_whole_under_the_eyes_of_a_reader(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.locked():
        folder.write_status(FineTuneStatus(round=1))
        with (folder.path / "status.json").open() as reader:
            folder.write_status(FineTuneStatus(round=2))
            read = FineTuneStatus.model_validate_json(reader.read())

    assert read.round == 1
    assert not list(folder.path.glob("*.part"))


def test_a_folder_of_another_spec_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.locked():
        uid = folder.adopt().metadata.uid

    with pytest.raises(UserError, match="another spec: give the run another name, or start over with --fresh") as refused:
        RunFolder(tmp_path, a_resource(rounds={"count": 9})).adopt()

    assert refused.value.reason == "OtherSpec"
    assert str(folder.path) in refused.value.message
    assert folder.adopt().metadata.uid == uid


def test_labels_may_change_as_the_spec_may_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.locked():
        uid = folder.adopt().metadata.uid
    labelled = a_resource().model_copy(update={"metadata": a_resource().metadata.model_copy(update={"labels": {"study": "triage"}})})

    assert RunFolder(tmp_path, labelled).adopt().metadata.uid == uid


def test_a_second_run_of_the_same_name_is_kept_out_and_told_who_is_in(tmp_path: Path) -> None:
    with RunFolder(tmp_path, a_resource()).locked(), pytest.raises(UserError, match=rf"process {os.getpid()}\) works in") as refused:
        RunFolder(tmp_path, a_resource()).locked().__enter__()

    assert refused.value.reason == "RunInProgress"


def test_runs_of_other_names_and_outputs_work_side_by_side(tmp_path: Path) -> None:
    others = (RunFolder(tmp_path, a_resource("toy-2")), RunFolder(tmp_path / "elsewhere", a_resource()))

    with RunFolder(tmp_path, a_resource()).locked(), others[0].locked(), others[1].locked():
        assert all(folder.path.is_dir() for folder in others)


def test_a_folder_is_free_again_when_its_run_ends_well_or_not(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, a_resource()).locked():
        raise KeyboardInterrupt

    with RunFolder(tmp_path, a_resource()).locked():
        pass


def test_starting_over_leaves_nothing_of_the_run_and_keeps_others_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.locked():
        uid = folder.adopt().metadata.uid
        folder.write_status(FineTuneStatus(round=2))
        (folder.store / "rounds/0001").mkdir(parents=True)
        (folder.store / "rounds/0001/plan.json").write_text("{}")

        folder.start_over()

        assert sorted(path.name for path in folder.path.iterdir()) == ["lock", PROCESSES_LOCK]
        with pytest.raises(UserError, match="another fedpipe run"):
            RunFolder(tmp_path, a_resource()).locked().__enter__()
        started_over = RunFolder(tmp_path, a_resource(rounds={"count": 9})).adopt()

    assert started_over.metadata.uid != uid
    assert started_over.status == FineTuneStatus()


def test_starting_over_removes_nothing_while_a_trainer_of_a_killed_run_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_PATIENCE_SECONDS", 0.0)
    folder = RunFolder(tmp_path, a_resource())
    with folder.locked():
        folder.adopt()
        trainer = acquire_process_lock(folder.path / PROCESSES_LOCK, 0.0)

        with pytest.raises(UserError, match="StillAtWork"):
            folder.start_over()

        assert (folder.path / "run.json").exists()
        os.close(trainer)
        folder.start_over()
        assert not (folder.path / "run.json").exists()


@pytest.mark.parametrize("file", ["run.json", "status.json"])
def test_a_folder_written_by_another_version_is_told_by_the_file(tmp_path: Path, file: str) -> None:
    folder = RunFolder(tmp_path, a_resource())
    with folder.locked():
        folder.adopt()
    (folder.path / file).write_text('{"invented": 1}')

    with pytest.raises(UserError, match=f"ObjectUnreadable: {folder.path / file} is no "):
        folder.adopt()
