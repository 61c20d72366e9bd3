"""The behaviour of every store, tested with a directory and two S3 servers."""

from pathlib import Path

import pytest

from fedpipe_operator.errors import UserError
from fedpipe_operator.store import Store
from fedpipe_trainer import transfer

COMMIT = "rounds/0001/global/commit.json"


def test_an_object_is_read_as_it_was_last_written(store: Store) -> None:
    store.write(COMMIT, b"first")
    store.write(COMMIT, b"second")

    assert store.read(COMMIT) == b"second"
    assert store.size(COMMIT) == 6


def test_an_absent_object_reads_as_none(store: Store) -> None:
    assert store.read(COMMIT) is None
    assert store.size(COMMIT) is None


def test_a_folder_is_not_an_object(store: Store) -> None:
    store.write(COMMIT, b"{}")

    assert store.read("rounds/0001") is None
    assert store.size("rounds/0001") is None


def test_the_start_of_an_object_is_read_and_no_more_of_it(store: Store) -> None:
    store.write("results/long.json", b"0123456789")
    store.write("results/empty.json", b"")

    assert store.read_start("results/long.json", 4) == b"0123"
    assert store.read_start("results/long.json", 99) == b"0123456789"
    assert store.read_start("results/empty.json", 4) == b""
    assert store.read_start("results/absent.json", 4) is None


def test_a_range_gives_exactly_its_bytes(store: Store) -> None:
    store.write("adapter.safetensors", bytes(range(100)))

    assert store.read_range("adapter.safetensors", 10, 5) == bytes(range(10, 15))
    assert store.read_range("adapter.safetensors", 95, 5) == bytes(range(95, 100))
    assert store.read_range("adapter.safetensors", 100, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(8, 5), (50, 5)])
def test_a_range_beyond_the_end_is_refused(store: Store, offset: int, length: int) -> None:
    store.write("adapter.safetensors", bytes(10))

    with pytest.raises(UserError) as refusal:
        store.read_range("adapter.safetensors", offset, length)

    assert refusal.value.reason == "ObjectTooShort"


def test_a_range_of_an_absent_object_is_an_error(store: Store) -> None:
    with pytest.raises(UserError) as refusal:
        store.read_range("adapter.safetensors", 0, 1)

    assert refusal.value.reason == "ObjectMissing"
    assert "adapter.safetensors" in refusal.value.message


def test_a_reader_knows_its_size_and_reads_by_ranges(store: Store) -> None:
    store.write("adapter.safetensors", b"headertensor")

    with store.open_reader("adapter.safetensors") as reader:
        assert reader.size == 12
        assert reader.read(6, 6) == b"tensor"
        assert reader.read(0, 6) == b"header"
        assert reader.read(6, 100) == b"tensor", "fewer bytes where the object ends"
        assert reader.read(12, 100) == b""


def test_a_reader_of_an_absent_object_is_an_error(store: Store) -> None:
    with pytest.raises(UserError) as refusal, store.open_reader("adapter.safetensors"):
        pass

    assert refusal.value.reason == "ObjectMissing"


@pytest.mark.parametrize("mebibytes", [0, 1, 31], ids=["empty", "one part", "several parts"])
def test_a_file_is_stored_byte_for_byte(store: Store, tmp_path: Path, mebibytes: int) -> None:
    file = tmp_path / "merged.safetensors"
    file.write_bytes(bytes(range(256)) * 4096 * mebibytes)

    store.write_file("export/merged/model.safetensors", file)

    assert store.read("export/merged/model.safetensors") == file.read_bytes()


def test_creating_an_object_that_exists_changes_nothing(store: Store) -> None:
    assert store.create(COMMIT, b"first")
    assert not store.create(COMMIT, b"second")

    assert store.read(COMMIT) == b"first"


def test_a_listing_has_the_whole_folder_and_no_folder_with_a_longer_name(store: Store) -> None:
    for key in ("rounds/0001/plan.json", "rounds/0001/global/commit.json", "rounds/00010/plan.json", "report.html"):
        store.write(key, b"{}")

    assert store.list("rounds/0001") == ["rounds/0001/global/commit.json", "rounds/0001/plan.json"]
    assert store.list("rounds/0001/") == store.list("rounds/0001")
    assert store.list("report.html") == ["report.html"]
    assert store.list("profile") == []
    assert store.list() == ["report.html", "rounds/0001/global/commit.json", "rounds/0001/plan.json", "rounds/00010/plan.json"]


def test_deleting_removes_the_folder_and_no_folder_with_a_longer_name(store: Store) -> None:
    for key in ("rounds/1/plan.json", "rounds/1/global/commit.json", "rounds/10/plan.json"):
        store.write(key, b"{}")

    store.delete("rounds/1")
    store.delete("rounds/1")

    assert store.list() == ["rounds/10/plan.json"]


def test_deleting_everything_leaves_an_empty_usable_store(store: Store) -> None:
    store.write(COMMIT, b"{}")

    store.delete("")

    assert store.list() == []
    store.write(COMMIT, b"again")
    assert store.read(COMMIT) == b"again"


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../other/run", "rounds/../../x", "rounds//x", "rounds/.", ".unfinished", "a\\b", "a\0b", "k" * 1025]
)
def test_a_key_that_could_leave_the_store_is_refused(store: Store, key: str) -> None:
    for use in (store.read, store.size, lambda key: store.write(key, b""), lambda key: store.url_to_write(key, 60)):
        with pytest.raises(UserError) as refusal:
            use(key)

        assert refusal.value.reason == "BadKey"


@pytest.mark.parametrize("prefix", ["..", "/", "rounds/../.."])
def test_a_prefix_that_could_leave_the_store_is_refused(store: Store, prefix: str) -> None:
    for use in (store.list, store.delete):
        with pytest.raises(UserError) as refusal:
            use(prefix)

        assert refusal.value.reason == "BadKey"


def test_a_file_that_a_trainer_sends_to_a_url_is_in_the_store(store: Store, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes(b"factors" * 1000)

    artifact = transfer.send(adapter, store.url_to_write("rounds/0001/updates/a site/0/adapter.safetensors", 60))
    received = transfer.receive(
        store.url_to_read("rounds/0001/updates/a site/0/adapter.safetensors", 60), tmp_path / "back", sha256=artifact.sha256
    )

    assert store.read("rounds/0001/updates/a site/0/adapter.safetensors") == adapter.read_bytes()
    assert received == artifact.size


def test_a_trainer_that_reads_an_absent_object_receives_none(store: Store, tmp_path: Path) -> None:
    assert transfer.receive(store.url_to_read("checkpoint", 60), tmp_path / "checkpoint") is None
