"""Tests for directories only: other writers on the same disk, a full disk, permissions."""

import os
import resource
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from small_disks import small_disk

from fedpipe_operator.errors import UserError
from fedpipe_operator.store import DirectoryStore


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_is_a_user_error_and_leaves_the_old_object(disk: Path, tmp_path: Path) -> None:
    store = DirectoryStore(disk)
    store.write("adapter.safetensors", b"old")
    large = tmp_path / "large"
    large.write_bytes(bytes(2 * 2**20))

    for use in (
        lambda: store.write("adapter.safetensors", bytes(2 * 2**20)),
        lambda: store.write_file("adapter.safetensors", large),
        lambda: store.create("another", bytes(2 * 2**20)),
    ):
        with pytest.raises(UserError) as failure:
            use()

        assert failure.value.reason == "StoreFull"
        assert "No space left" in failure.value.message

    assert store.read("adapter.safetensors") == b"old"
    assert store.list() == ["adapter.safetensors"]
    assert os.listdir(disk) == ["adapter.safetensors"], "unfinished files are removed"  # noqa: PTH208 -- hidden files too
    store.write("adapter.safetensors", b"new")


def test_a_file_larger_than_allowed_is_reported_as_a_full_store(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(UserError) as failure:
            store.write("adapter.safetensors", bytes(2 * 2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert failure.value.reason == "StoreFull"
    assert store.list() == []


def test_one_of_many_writers_of_a_commit_wins(tmp_path: Path) -> None:
    writers = 8
    start = Barrier(writers)

    def write(number: int) -> bool:
        start.wait()
        return DirectoryStore(tmp_path).create("rounds/0001/result.json", str(number).encode())

    with ThreadPoolExecutor(writers) as pool:
        outcome = list(pool.map(write, range(writers)))

    assert outcome.count(True) == 1
    assert DirectoryStore(tmp_path).read("rounds/0001/result.json") == str(outcome.index(True)).encode()


def test_a_reader_keeps_its_content_when_the_object_is_replaced(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.write("adapter.safetensors", b"old bytes")

    with store.open_reader("adapter.safetensors") as reader:
        store.write("adapter.safetensors", b"new")

        assert reader.read(0, reader.size) == b"old bytes"


def test_an_unfinished_file_is_not_listed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.write("updates/a/adapter.safetensors", b"complete")
    (tmp_path / "updates/a/.adapter.safetensors.x7").write_bytes(b"ha")

    assert store.list() == ["updates/a/adapter.safetensors"]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UserError) as failure:
        DirectoryStore(tmp_path / "file" / "store")

    assert failure.value.reason == "StoreRefused"


def test_a_read_only_folder_is_a_user_error(disk: Path) -> None:
    store = DirectoryStore(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    with pytest.raises(UserError) as failure:
        store.write("plan.json", b"{}")

    assert failure.value.reason == "StoreDenied"
