"""The measurements of a task's runtime, and the settings from the environment."""

from pathlib import Path

import pytest

from fedpipe_trainer.contract import ExportTask, Progress, parse_task
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.settings import Settings, read
from fedpipe_trainer.task_runtime import TaskRuntime

GOLDEN = Path(__file__).parents[1] / "contract" / "golden"


@pytest.fixture
def runtime(tmp_path: Path) -> TaskRuntime:
    return TaskRuntime(folder=tmp_path, cache=tmp_path, write_progress=lambda _: None, stop_requested=lambda: False)


def test_phases_add_up_to_the_elapsed_time(runtime: TaskRuntime) -> None:
    with runtime.phase("train"):
        with runtime.phase("transfer"):
            pass
        with runtime.phase("train"):
            pass
    before = runtime.elapsed_seconds()
    seconds = runtime.measured().seconds

    assert set(seconds) == {"load", "train", "transfer"}
    assert before <= sum(seconds.values()) + 1e-6 <= runtime.elapsed_seconds() + 2e-6


def test_a_phase_ends_when_its_context_fails(runtime: TaskRuntime) -> None:
    with pytest.raises(ValueError, match="halfway"), runtime.phase("train"):
        raise ValueError("halfway")
    trained = runtime.measured().seconds["train"]

    assert runtime.measured().seconds["train"] == trained


def test_uploaded_and_downloaded_bytes_are_counted(runtime: TaskRuntime, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"12345")
    url = f"file://{tmp_path}/store/object"

    runtime.upload(tmp_path / "out", url)
    runtime.download(url, tmp_path / "in")
    runtime.download(url, tmp_path / "again")

    measured = runtime.measured()
    assert (measured.uploaded_bytes, measured.downloaded_bytes) == (5, 10)


def test_a_missing_object_is_an_error_unless_it_is_optional(runtime: TaskRuntime, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/nothing"

    assert not runtime.download_if_exists(url, tmp_path / "in")
    with pytest.raises(TaskFailed, match=f"file://{tmp_path}/nothing does not exist"):
        runtime.download(url, tmp_path / "in")


def test_the_peak_memory_belongs_to_the_task_only(tmp_path: Path) -> None:
    def peak(size: int) -> int:
        runtime = TaskRuntime(folder=tmp_path, cache=tmp_path, write_progress=lambda _: None, stop_requested=lambda: False)
        block = bytearray(size)
        block[::4096] = b"x" * len(block[::4096])
        return runtime.measured().peak_memory_bytes

    big, small = peak(400_000_000), peak(1)

    assert big - small > 300_000_000


def test_the_result_header_identifies_the_task(runtime: TaskRuntime) -> None:
    task = parse_task((GOLDEN / "task-export.json").read_text())
    assert isinstance(task, ExportTask)

    header = runtime.result_header(task)

    assert (header["run"], header["round"], header["attempt"]) == (task.run, 2, 1)
    assert set(header["software"]) == {"torch", "transformers", "peft", "bitsandbytes", "fedpipe"}


def test_progress_is_written(tmp_path: Path) -> None:
    written: list[Progress] = []
    runtime = TaskRuntime(folder=tmp_path, cache=tmp_path, write_progress=written.append, stop_requested=lambda: False)

    runtime.report(Progress(phase="train", step=1, steps=2))

    assert written == [Progress(phase="train", step=1, steps=2)]


def test_environment_variables_are_optional() -> None:
    assert read({"XDG_CACHE_HOME": "/c"}) == Settings(cache=Path("/c/fedpipe"))
    limits = {"FEDPIPE_MEMORY_LIMIT_BYTES": "1000", "FEDPIPE_ACTIVATION_CACHE_BYTES": "9"}
    assert read({"FEDPIPE_CACHE": "/d", "FEDPIPE_ACCELERATOR": "gpu", "FEDPIPE_LOG_FORMAT": "json", **limits}) == Settings(
        Path("/d"), 1000, 9, "gpu", "json"
    )


@pytest.mark.parametrize("value", ["0", "-1", "2GiB", "1e9"])
def test_an_invalid_memory_limit_is_refused_and_the_message_names_the_variable(value: str) -> None:
    with pytest.raises(ValueError, match="FEDPIPE_MEMORY_LIMIT_BYTES"):
        read({"FEDPIPE_MEMORY_LIMIT_BYTES": value})
