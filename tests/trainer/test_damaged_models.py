"""Downloaded base models that change on the site's cache volume: none with other bytes than its source's is used."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from downloads import end_process
from toy_training import at_urls

from fedpipe_trainer.model import download_cache, fetch, fingerprint
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to be hashed."""
    read, digest = list[str](), hashlib.file_digest

    def file_digest(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return read


def damage_middle(path: Path, *, keep_time: bool = False) -> None:
    """Change a byte in the middle of a file."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_model_that_was_damaged_in_its_middle_is_downloaded_again(toy: Toy, runtime: TaskRuntime, *, keep_time: bool) -> None:
    path = fetch(at_urls(toy("llama")), runtime) / "model.safetensors"
    damage_middle(path, keep_time=keep_time)
    end_process()

    folder = fetch(at_urls(toy("llama")), runtime)

    assert fingerprint(folder) == fingerprint(toy("llama"))
    assert path.read_bytes() == (toy("llama") / path.name).read_bytes()


def test_a_model_is_hashed_at_its_download_and_by_no_later_task(toy: Toy, runtime: TaskRuntime, hashed: list[str]) -> None:
    fetch(at_urls(toy("llama")), runtime)
    first = list(hashed)
    end_process()

    fetch(at_urls(toy("llama")), runtime)

    assert sorted(first) == sorted(path.name for path in toy("llama").iterdir())
    assert hashed == first


def test_a_model_whose_times_have_changed_as_a_restored_backup_s_is_hashed_once_and_not_downloaded(
    toy: Toy, runtime: TaskRuntime, hashed: list[str]
) -> None:
    folder, downloaded = fetch(at_urls(toy("llama")), runtime), runtime.measured().downloaded_bytes
    os.utime(folder / "model.safetensors", times=(0, 0))
    hashed.clear()

    for _ in range(3):
        end_process()
        fetch(at_urls(toy("llama")), runtime)

    assert hashed == ["model.safetensors"]
    assert runtime.measured().downloaded_bytes == downloaded


def test_a_model_is_on_the_disk_before_it_gets_its_name(toy: Toy, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, before, fsync, rename = list[str](), set[str](), os.fsync, Path.rename

    def noted_fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def noted_rename(path: Path, to: Path) -> Path:
        before.update(synced)
        synced.clear()
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(download_cache, "remember", lambda *_: None)
    monkeypatch.setattr(Path, "rename", noted_rename)
    folder = fetch(at_urls(toy("llama")), runtime)

    assert before >= {*(path.name for path in toy("llama").iterdir()), f"{folder.name}.partial"}
    assert any(name.startswith(".fedpipe-manifest") for name in before)
    assert synced[0] == "models"
