"""A store whose calls are told: each operation does what the store does, and says how it ended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedpipe_operator.errors import UserError
from fedpipe_operator.observer import Observer
from fedpipe_operator.store import DirectoryStore, Store
from fedpipe_operator.store.observed import ObservedStore


class Told(Observer):
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def store_called(self, operation: str, reason: str, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append((operation, reason))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(tmp_path: Path, told: Told) -> ObservedStore:
    store = ObservedStore(DirectoryStore(tmp_path / "store"), told)
    store.write("one", b"data")
    (tmp_path / "file").write_bytes(b"file")
    told.calls.clear()
    return store


@pytest.mark.parametrize(
    ("operation", "call", "answer"),
    [
        ("read", lambda store, _: store.read("one"), b"data"),
        ("read", lambda store, _: store.read("none"), None),
        ("read", lambda store, _: store.read_start("one", 2), b"da"),
        ("size", lambda store, _: store.size("one"), 4),
        ("read_range", lambda store, _: store.read_range("one", 1, 2), b"at"),
        ("write", lambda store, _: store.write("two", b"more"), None),
        ("write", lambda store, folder: store.write_file("two", folder / "file"), None),
        ("create", lambda store, _: store.create("two", b"more"), True),
        ("list", lambda store, _: store.list(), ["one"]),
        ("delete", lambda store, _: store.delete("one"), None),
    ],
)
def test_a_call_is_the_stores_own_and_is_told(
    store: ObservedStore, tmp_path: Path, operation: str, call: Callable[[Store, Path], object], answer: object
) -> None:
    assert call(store, tmp_path) == answer
    assert store.observer.calls == [(operation, "OK")]  # type: ignore[attr-defined]


def test_an_error_is_told_by_its_reason_and_raised(store: ObservedStore, told: Told) -> None:
    with pytest.raises(UserError, match="ObjectMissing"):
        store.read_range("none", 0, 1)

    assert told.calls == [("read_range", "ObjectMissing")]


def test_what_is_no_call_is_not_told(store: ObservedStore, told: Told) -> None:
    assert store.url_to_read("one", 60).startswith("file:")
    assert store.url_to_write("two", 60).startswith("file:")
    assert store.form_to_write("two", 60, 10) is None
    with store.open_reader("one") as reader:
        assert reader.read(0, 4) == b"data"

    assert told.calls == []


def test_a_fault_that_nobody_foresaw_is_told_as_such(tmp_path: Path, told: Told) -> None:
    class Broken(DirectoryStore):
        def read(self, key: str) -> bytes | None:
            raise RuntimeError(key)

    with pytest.raises(RuntimeError):
        ObservedStore(Broken(tmp_path), told).read("one")

    assert told.calls == [("read", "Unexpected")]
