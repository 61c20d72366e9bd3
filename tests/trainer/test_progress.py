"""What a trainer writes of its progress: seldom, beside the training and never against it, and no loss that the policy hides."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_training import Q0, a_training_task

from fedpipe_trainer.contract import (
    MAX_PROGRESS_BYTES,
    DataPolicy,
    Evaluation,
    ExitCode,
    FailureReason,
    Progress,
    TaskProgress,
    TrainEvaluation,
    TrainingLosses,
    TrainTask,
    Upload,
    parse_task,
)
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.progress import ProgressUploads, progress_of
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.tasks import perform

GOLDEN = Path(__file__).parents[1] / "contract" / "golden"


def a_task() -> TrainTask:
    task = parse_task((GOLDEN / "task-train.json").read_text())
    assert isinstance(task, TrainTask)
    return task


class Store:
    """Takes what is sent, or fails."""

    def __init__(self) -> None:
        self.sent: list[TaskProgress] = []
        self.trouble: Exception | None = None

    def send(self, path: Path, to: Upload) -> None:
        assert to == a_task().progress
        if self.trouble is not None:
            raise self.trouble
        self.sent.append(TaskProgress.model_validate_json(path.read_text()))


def test_of_many_steps_one_in_15_seconds_is_written(tmp_path: Path) -> None:
    store, now = Store(), [0.0]
    uploads = ProgressUploads(a_task(), tmp_path, store.send, lambda: now[0])

    for step in range(100):
        now[0] = float(step)
        uploads.write(Progress(phase="train", step=step, steps=100, loss=1.5, tokens_per_second=10.0))
        uploads.wait()

    assert [one.step for one in store.sent] == [0, 15, 30, 45, 60, 75, 90]
    assert {(one.site, one.round, one.attempt, one.run.name, one.loss) for one in store.sent} == {("ward-a", 2, 1, "notes", 1.5)}


def test_a_step_does_not_wait_for_a_slow_store_and_nothing_is_sent_beside_it(tmp_path: Path) -> None:
    answered, began, sent = threading.Event(), threading.Event(), []

    def send(path: Path, to: Upload) -> None:
        del to
        sent.append(path.read_text())
        began.set()
        assert answered.wait(60)

    now = [0.0]
    uploads = ProgressUploads(a_task(), tmp_path, send, lambda: now[0])
    for second in (0.0, 60.0, 120.0):
        now[0] = second
        uploads.write(Progress(phase="train", step=int(second), steps=200))
        assert began.wait(60)
    answered.set()
    uploads.wait()

    assert len(sent) == 1


@pytest.mark.parametrize("trouble", [TaskFailed(FailureReason.TRANSFER_FAILED, "the store answered 403"), OSError("the disk is gone")])
def test_a_store_that_takes_no_progress_costs_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Exception
) -> None:
    store, now = Store(), [0.0]
    store.trouble = trouble
    uploads = ProgressUploads(a_task(), tmp_path, store.send, lambda: now[0])
    for second in (0.0, 20.0, 40.0):
        now[0] = second
        uploads.write(Progress(phase="load"))
        uploads.wait()
    store.trouble, now[0] = None, 60.0
    uploads.write(Progress(phase="train", step=1, steps=2))
    uploads.wait()

    assert [record.getMessage() for record in caplog.records] == [
        f"the progress cannot be written, and the task goes on without: {trouble}"
    ]
    assert [one.step for one in store.sent] == [1]


def test_a_scratch_folder_that_is_gone_stops_no_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uploads = ProgressUploads(a_task(), tmp_path / "gone", Store().send, lambda: 0.0)

    uploads.write(Progress(phase="load"))

    assert "the task goes on without" in caplog.text


def test_a_task_without_an_upload_for_it_writes_none(tmp_path: Path) -> None:
    store = Store()
    uploads = ProgressUploads(a_task().model_copy(update={"progress": None}), tmp_path, store.send, lambda: 0.0)

    uploads.write(Progress(phase="load"))
    uploads.wait()

    assert (store.sent, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -1.0, 1e7])
@pytest.mark.parametrize("speed", [float("nan"), float("inf"), 0.0, 1e-12])
def test_a_figure_that_the_operator_would_refuse_is_left_out(loss: float, speed: float) -> None:
    found = progress_of(a_task(), Progress(phase="train", step=1, steps=2, loss=loss, tokens_per_second=speed))

    assert (found.loss, found.tokens_per_second, found.step) == (None, None, 1)


def test_the_longest_names_fit_into_what_the_operator_reads() -> None:
    long = "x" * 63
    task = a_task().model_copy(update={"site": long, "round": 1000, "attempt": 99})
    task = task.model_copy(update={"run": task.run.model_copy(update={"namespace": long, "name": long})})

    text = progress_of(task, Progress(phase="evaluate", step=10**9, steps=10**9, loss=1 / 3, tokens_per_second=1 / 3)).to_json()

    assert len(text) < MAX_PROGRESS_BYTES / 4


class AtOnce:
    """A thread that has ended when it has started."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], **_: Any) -> None:
        self.run = lambda: target(*args)

    def start(self) -> None:
        self.run()

    def is_alive(self) -> bool:
        return False


@pytest.mark.parametrize(("policy", "shows"), [(TrainingLosses.BY_STEP, True), (TrainingLosses.MEAN, False)])
def test_a_whole_task_writes_its_progress_and_only_the_losses_that_its_policy_shows(
    toy: Callable[[str], Path], tmp_path: Path, policy: TrainingLosses, shows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every report is written here, as if each step took 15 seconds."""
    monkeypatch.setattr("fedpipe_trainer.progress.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("fedpipe_trainer.progress.Thread", AtOnce)
    target, seen = tmp_path / "store" / "progress.json", []
    evaluation = TrainEvaluation(round=0, evaluation=Evaluation(), batch_size=4, result=(tmp_path / "store" / "evaluation.json").as_uri())
    fields = {"policy": DataPolicy(min_sites=1, training_losses=policy), "evaluation": evaluation, "progress": target.as_uri()}
    task = a_training_task(toy("llama"), tmp_path, {Q0: 4}, result=(tmp_path / "store" / "result.json").as_uri(), **fields)
    (tmp_path / "task.json").write_text(task.to_json())

    def look(_: Progress) -> None:
        if target.exists():
            seen.append(TaskProgress.model_validate_json(target.read_text()))

    settings = Settings(cache=tmp_path / "cache")
    assert perform(tmp_path / "task.json", settings=settings, write_progress=look, stop_requested=lambda: False) is ExitCode.OK

    assert {one.phase for one in seen} == {"load", "evaluate", "train"}
    assert {one.phase for one in seen if one.loss is not None} == ({"evaluate", "train"} if shows else set())
