"""A cache volume that does not take a model costs a download; one that holds it is used, though it cannot be written."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final

import pytest
from downloads import end_process
from small_disks import small_disk
from toy_training import at_urls

from fedpipe_trainer import transfer
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import fetch, fingerprint
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]
FIXES: Final = {
    errno.EIO: "check the site's cache volume",
    errno.EROFS: "give the trainer a writable cache volume",
    errno.EACCES: f"let user {os.geteuid()} or group {os.getegid()} read and write the site's cache volume",
    errno.EDQUOT: "free space (or inodes) on the site's cache volume, or give the site a larger one",
}
"""What to do, by the number of the volume's error."""


@pytest.mark.parametrize("code", FIXES)
def test_where_the_volume_fails_in_a_download_the_scratch_folder_is_used_and_the_log_says_what_to_do(
    toy: Toy, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    atomic_file = transfer.atomic_file

    def broken(to: Path) -> AbstractContextManager[BinaryIO]:
        if to.is_relative_to(runtime.cache):
            raise OSError(code, os.strerror(code))
        return atomic_file(to)

    monkeypatch.setattr(transfer, "atomic_file", broken)

    folder = fetch(at_urls(toy("llama")), runtime)

    assert folder == runtime.folder / "model"
    assert fingerprint(folder) == fingerprint(toy("llama"))
    assert f"({os.strerror(code)}): every task downloads it; {FIXES[code]}" in caplog.text


def test_a_source_that_cannot_be_read_is_a_failed_transfer_and_none_of_the_volume(
    toy: Toy, runtime: TaskRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    model = at_urls(toy("llama"))
    broken = model.model_copy(update={"files": model.files | {"tokenizer.json": toy("llama").as_uri()}})

    with pytest.raises(TaskFailed, match=f"cannot read {toy('llama')}: Is a directory") as failed:
        fetch(broken, runtime)

    assert failed.value.reason is FailureReason.TRANSFER_FAILED
    assert "cannot be kept" not in caplog.text


@pytest.fixture
def disk(runtime: TaskRuntime, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, as the cache volume of the task."""
    with small_disk(tmp_path / "disk", "16m") as folder:
        runtime.cache = folder
        yield folder
        end_process()


def make_read_only(disk: Path) -> None:
    end_process()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.mark.parametrize("knows_fingerprint", [False, True])
def test_a_model_on_a_volume_that_has_become_read_only_is_used(
    toy: Toy, runtime: TaskRuntime, disk: Path, caplog: pytest.LogCaptureFixture, *, knows_fingerprint: bool
) -> None:
    folder, downloaded = fetch(at_urls(toy("llama")), runtime), runtime.measured().downloaded_bytes
    make_read_only(disk)

    expected = fingerprint(toy("llama")) if knows_fingerprint else None
    assert fetch(at_urls(toy("llama"), fingerprint=expected), runtime) == folder
    assert runtime.measured().downloaded_bytes == downloaded
    assert caplog.text == ""


def test_a_model_that_a_read_only_volume_does_not_hold_or_holds_damaged_is_downloaded_to_the_scratch_folder(
    toy: Toy, runtime: TaskRuntime, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fetch(at_urls(toy("llama")), runtime) / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    make_read_only(disk)

    for revision in ("a", "b"):
        folder = fetch(at_urls(toy("llama"), revision), runtime)
        assert folder == runtime.folder / "model"
        assert fingerprint(folder) == fingerprint(toy("llama"))
    assert caplog.text.count("(Read-only file system): every task downloads it; give the trainer a writable cache volume") == 2
