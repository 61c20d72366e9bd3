"""The export is tried on the untouched base before any site trains, so that nothing of it fails for the first time after the last round."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run
from trainer_results import a_dry_export, a_failure, good_trainer, path_of

from fedpipe_operator.admission import RefusedError, admit_dry_export
from fedpipe_operator.admission.results import Asked
from fedpipe_operator.rounds import AbortUploads, StartDryExport
from fedpipe_trainer.contract import DryExportResult, DryExportTask, ExportFile, ExportTask, FailureReason, Measured, Outcome, RunRef

RUN = RunRef(namespace="n", name="r", uid="u")


def failing(reason: FailureReason, message: str) -> Any:
    def trainer(task: Any, folder: Path) -> Any:
        return a_failure(DryExportResult, task, reason, message) if isinstance(task, DryExportTask) else good_trainer(task, folder)

    return trainer


def result(**changes: Any) -> bytes:
    fields: dict[str, Any] = {"run": RUN, "site": "", "round": 0, "attempt": 0, "outcome": Outcome.COMPLETED, "measured": Measured()}
    return DryExportResult(**(fields | changes)).to_json().encode()


def test_an_export_that_cannot_be_made_fails_the_run_before_any_site_trains(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path, failing(FailureReason.BAD_MODEL, "the tokenizer cannot be saved"))

    world.settle()

    assert world.conditions()["Failed"] == "ExportImpossible"
    assert world.message("Failed") == (
        "the export was tried on the untouched base, before any site trains for it: BadModel: the tokenizer cannot be saved"
    )
    assert not [name for name in world.backend.started if "train" in name]


def test_a_store_that_cannot_be_reached_is_tried_again(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path, failing(FailureReason.TRANSFER_FAILED, "the store answered 503"))

    world.settle()

    tried = [name for name in world.backend.started if "dry-export" in name]
    assert len(tried) == world.run.spec.rounds.attempts > 1


def test_a_run_without_an_export_tries_none(tmp_path: Path) -> None:
    world = World(a_run(export={"adapter": False, "merged": False}), tmp_path)

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert not [name for name in world.backend.started if "export" in name]


def test_what_the_spec_asks_for_later_is_tried_before_it_is_exported(tmp_path: Path) -> None:
    world = World(a_run(export={"adapter": True, "merged": False}), tmp_path)
    world.work_until("evaluate-r2")
    edited = a_run(export={"adapter": True, "merged": True}).spec
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": edited}))

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    exports = [name.removeprefix("toy-") for name in world.backend.started if "export" in name]
    assert exports == ["dry-export-r1-a0", "dry-export-r1-a1", "export-a0"]


def test_the_export_writes_the_files_that_were_found(tmp_path: Path) -> None:
    exported: list[ExportTask] = []

    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ExportTask):
            exported.append(task)
        if isinstance(task, DryExportTask):
            return a_dry_export(task, merged=(ExportFile(name="config.json", size=1), ExportFile(name="bpe.codes", size=2)))
        return good_trainer(task, folder)

    world = World(a_run(), tmp_path, trainer)
    world.settle()

    (task,) = exported
    assert task.merged_files.keys() == {"config.json", "bpe.codes"}
    assert path_of(str(task.merged_files["bpe.codes"])).as_posix().endswith("/export/merged/bpe.codes")
    assert task.provenance.sites == ("site-a", "site-b", "site-c")


def test_a_run_that_an_earlier_version_began_goes_on_and_is_tried_before_its_export(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("dry-export")
    (name,) = world.backend.active_jobs()
    world.backend.work(name)
    world.work_until("train-r1")
    for path in tmp_path.rglob("export/dry"):
        path.rename(path.with_name("gone"))
    world.backend.jobs.pop(name)
    world.restart()

    assert not [one for one in world.reconcile().actions if isinstance(one, StartDryExport)]
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_at_the_end_of_a_run_what_is_left_of_uploads_in_parts_is_aborted(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, DryExportTask):
            return a_dry_export(task, merged=(ExportFile(name="config.json", size=1), ExportFile(name="model.safetensors", size=13 << 30)))
        return good_trainer(task, folder)

    world = World(a_run(), tmp_path, trainer)
    world.work_until("toy-export")
    (name,) = world.backend.active_jobs()
    world.backend.work(name)

    assert AbortUploads(("export/merged/model.safetensors",)) in world.reconcile().actions
    assert "Complete" in world.conditions()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("config.json", "config.json"), "it names a file twice"),
        (("model.safetensors",), "it has no config.json"),
        (("config.json", "a", "a/b"), "it has a file and a folder of one name"),
    ],
)
def test_files_that_no_export_has_are_refused(files: tuple[str, ...], message: str) -> None:
    data = result(merged=tuple(ExportFile(name=name, size=1) for name in files))

    with pytest.raises(RefusedError, match=message):
        admit_dry_export(data, Asked(RUN, "", None, 0))


def test_an_export_of_more_files_than_a_task_has_room_for_fails_the_run_before_any_site_trains(tmp_path: Path) -> None:
    """The task of the export, which has a URL for each, would be refused by the API server again and again after the last round."""

    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, DryExportTask):
            shards = tuple(ExportFile(name=f"model-{number}.safetensors", size=1) for number in range(250))
            return a_dry_export(task, merged=(ExportFile(name="config.json", size=1), *shards))
        return good_trainer(task, folder)

    world = World(a_run(), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Failed"] == "ExportImpossible"
    assert "number of files: found 253, expected 0 to 250" in world.message("Failed")
    assert not [name for name in world.backend.started if "train" in name]


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/b/c", ".hidden", "-x", "a//b", "a\\nb", "x" * 200, "a/.b", ""])
def test_a_name_that_leaves_the_folder_is_refused(name: str) -> None:
    data = result(merged=(ExportFile(name="config.json", size=1),)).replace(b'"config.json"', f'"{name}"'.encode())

    with pytest.raises(RefusedError):
        admit_dry_export(data, Asked(RUN, "", None, 0))
