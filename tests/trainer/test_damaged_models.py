"""Downloaded base models that change on the site's cache volume: none with other bytes than its source's is used."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from downloads import end_process
from toy_training import at_urls

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import download_cache, fetch, fingerprint
from fedpipe_trainer.model.etag import confirms
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


def a_copy(toy: Path, folder: Path) -> Path:
    return Path(shutil.copytree(toy, folder))


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_a_wrong_copy_on_the_volume_is_replaced_when_the_run_knows_better(toy: Toy, runtime: TaskRuntime, tmp_path: Path) -> None:
    source = a_copy(toy("llama"), tmp_path / "source")
    right = fingerprint(source)
    damage_middle(source / "model.safetensors")
    assert fingerprint(fetch(at_urls(source), runtime)) != right
    damage_middle(source / "model.safetensors")  # which repairs it
    end_process()

    folder = fetch(at_urls(source, fingerprint=right), runtime)

    assert folder.is_relative_to(runtime.cache)
    assert fingerprint(folder) == right


def test_a_model_that_is_damaged_on_its_way_is_downloaded_again_by_the_task_that_knows_its_fingerprint(
    toy: Toy, runtime: TaskRuntime, damaged_on_the_way: list[str]
) -> None:
    damaged_on_the_way += ["model.safetensors"]

    folder = fetch(at_urls(toy("llama"), fingerprint=fingerprint(toy("llama"))), runtime)

    assert fingerprint(folder) == fingerprint(toy("llama"))


def test_a_model_that_has_changed_at_its_source_is_downloaded_twice_and_the_advice_can_help(toy: Toy, runtime: TaskRuntime) -> None:
    size = sum(path.stat().st_size for path in toy("llama").iterdir())

    with pytest.raises(TaskFailed, match=r"s3://bucket/toy have changed since the run was planned, .* start a new run") as failed:
        fetch(at_urls(toy("llama"), fingerprint="0" * 64), runtime)

    assert failed.value.reason is FailureReason.BAD_MODEL
    assert runtime.measured().downloaded_bytes == 2 * size


@pytest.fixture
def damaged_on_the_way(runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files whose next downloads arrive with another byte, as often as they are named."""
    names, download = list[str](), runtime.download

    def damaging(url: str, to: Path, sha256: str | None = None) -> Path:
        download(url, to, sha256)
        if to.name in names:
            data = bytearray(to.read_bytes())
            data[-1 - names.count(to.name)] ^= 1
            to.write_bytes(data)
            names.remove(to.name)
        return to

    monkeypatch.setattr(runtime, "download", damaging)
    return names


def test_a_profile_notices_by_its_etag_that_a_file_was_damaged_on_the_way(
    toy: Toy, runtime: TaskRuntime, damaged_on_the_way: list[str]
) -> None:
    damaged_on_the_way += ["model.safetensors"]

    folder = fetch(at_urls(toy("llama"), etags={path.name: md5_of(path) for path in toy("llama").iterdir()}), runtime)

    assert fingerprint(folder) == fingerprint(toy("llama"))


def test_a_file_that_arrives_with_other_content_each_time_is_refused_and_downloaded_by_the_next_attempt(
    toy: Toy, runtime: TaskRuntime, damaged_on_the_way: list[str]
) -> None:
    damaged_on_the_way += 2 * ["tokenizer.json"]
    model = at_urls(toy("llama"), etags={"tokenizer.json": md5_of(toy("llama") / "tokenizer.json")})

    with pytest.raises(TaskFailed, match=r"tokenizer\.json of s3://bucket/toy arrived with other content at each of two") as failed:
        fetch(model, runtime)

    assert failed.value.reason is FailureReason.TRANSFER_FAILED
    assert fingerprint(fetch(model, runtime)) == fingerprint(toy("llama"))


def test_where_an_etag_is_no_md5_of_the_content_two_equal_copies_are_accepted(toy: Toy, runtime: TaskRuntime) -> None:
    model = at_urls(toy("llama"), etags={"model.safetensors": "0" * 32})

    folder = fetch(model, runtime)

    sizes = {path.name: path.stat().st_size for path in toy("llama").iterdir()}
    assert fingerprint(folder) == fingerprint(toy("llama"))
    assert runtime.measured().downloaded_bytes == sum(sizes.values()) + sizes["model.safetensors"]


def test_a_task_that_knows_the_fingerprint_does_not_look_at_etags(toy: Toy, runtime: TaskRuntime) -> None:
    fetch(at_urls(toy("llama"), fingerprint=fingerprint(toy("llama")), etags={"model.safetensors": "0" * 32}), runtime)

    assert runtime.measured().downloaded_bytes == sum(path.stat().st_size for path in toy("llama").iterdir())


@pytest.mark.parametrize(("size", "part"), [(0, None), (10, None), (3 << 20, None), (10, 5), (17, 8), (16, 8), (33, 16), (7, 8)])
def test_an_etag_of_parts_of_a_usual_size_confirms_the_file_and_no_other(tmp_path: Path, size: int, part: int | None) -> None:
    path = tmp_path / "file"
    length = size if part is None else size << 20
    path.write_bytes((bytes(range(251)) * (1 + length // 251))[:length])
    etag = md5_of(path) if part is None else etag_of_parts(path.read_bytes(), part << 20)

    assert confirms(etag, path)
    path.write_bytes(path.read_bytes() + b"x")
    assert not confirms(etag, path)


def etag_of_parts(data: bytes, part: int) -> str:
    """The ETag after an upload in parts of so many bytes, as S3 makes it."""
    md5s = [hashlib.md5(data[start : start + part], usedforsecurity=False).digest() for start in range(0, len(data), part)]
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def test_an_etag_of_parts_of_another_size_confirms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20 << 20))

    assert not confirms(etag_of_parts(path.read_bytes(), 7 << 20), path)
