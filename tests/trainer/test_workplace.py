"""What a workplace counts, and what the environment tells it."""

from pathlib import Path

import pytest

from fedpipe_trainer.contract import ExportTask, Progress, parse_task
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.settings import Settings, read
from fedpipe_trainer.workplace import Workplace

GOLDEN = Path(__file__).parents[1] / "contract" / "golden"


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(folder=tmp_path, cache=tmp_path, say=lambda _: None, stop_requested=lambda: False)


def test_phases_add_up_to_the_clock(workplace: Workplace) -> None:
    with workplace.phase("train"):
        with workplace.phase("transfer"):
            pass
        with workplace.phase("train"):
            pass
    before = workplace.clock()
    seconds = workplace.measured().seconds

    assert set(seconds) == {"load", "train", "transfer"}
    assert before <= sum(seconds.values()) + 1e-6 <= workplace.clock() + 2e-6


def test_a_phase_ends_when_its_block_fails(workplace: Workplace) -> None:
    with pytest.raises(ValueError, match="halfway"), workplace.phase("train"):
        raise ValueError("halfway")
    trained = workplace.measured().seconds["train"]

    assert workplace.measured().seconds["train"] == trained


def test_bytes_are_counted_both_ways(workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"12345")
    url = f"file://{tmp_path}/store/object"

    workplace.upload(tmp_path / "out", url)
    workplace.download(url, tmp_path / "in")
    workplace.download(url, tmp_path / "again")

    measured = workplace.measured()
    assert (measured.uploaded_bytes, measured.downloaded_bytes) == (5, 10)


def test_an_object_may_be_missing_only_where_that_is_expected(workplace: Workplace, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/nothing"

    assert not workplace.download_if_there(url, tmp_path / "in")
    with pytest.raises(TaskFailed, match=f"file://{tmp_path}/nothing does not exist"):
        workplace.download(url, tmp_path / "in")


def test_the_peak_of_memory_is_this_tasks_own(tmp_path: Path) -> None:
    def peak(size: int) -> int:
        workplace = Workplace(folder=tmp_path, cache=tmp_path, say=lambda _: None, stop_requested=lambda: False)
        block = bytearray(size)
        block[::4096] = b"x" * len(block[::4096])
        return workplace.measured().peak_memory_bytes

    big, small = peak(400_000_000), peak(1)

    assert big - small > 300_000_000


def test_a_heading_says_whose_result_it_is(workplace: Workplace) -> None:
    task = parse_task((GOLDEN / "task-export.json").read_text())
    assert isinstance(task, ExportTask)

    heading = workplace.heading(task)

    assert (heading["run"], heading["round"], heading["attempt"]) == (task.run, 2, 1)
    assert set(heading["software"]) == {"torch", "transformers", "peft", "bitsandbytes", "fedpipe"}


def test_progress_goes_to_whoever_listens(tmp_path: Path) -> None:
    heard: list[Progress] = []
    workplace = Workplace(folder=tmp_path, cache=tmp_path, say=heard.append, stop_requested=lambda: False)

    workplace.progress(Progress(phase="train", step=1, steps=2))

    assert heard == [Progress(phase="train", step=1, steps=2)]


def test_the_environment_is_optional() -> None:
    assert read({"XDG_CACHE_HOME": "/c"}) == Settings(cache=Path("/c/fedpipe"))
    assert read({"FEDPIPE_CACHE": "/d", "FEDPIPE_MEMORY_LIMIT_BYTES": "1000"}) == Settings(Path("/d"), 1000)


@pytest.mark.parametrize("value", ["0", "-1", "2GiB", "1e9"])
def test_a_memory_limit_that_means_nothing_is_refused_by_name(value: str) -> None:
    with pytest.raises(ValueError, match="FEDPIPE_MEMORY_LIMIT_BYTES"):
        read({"FEDPIPE_MEMORY_LIMIT_BYTES": value})
