"""A store whose calls are told to an observer: which operation, how it ended, and how many seconds it took."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedpipe_operator.observer import Observer, timed
from fedpipe_operator.store.protocol import Reader, Store
from fedpipe_trainer.contract import PartsUpload, PostForm


@dataclass(frozen=True)
class ObservedStore:
    """The store `inner`. URLs are signed without a call, so they are not told."""

    inner: Store
    observer: Observer

    def read(self, key: str) -> bytes | None:
        """As the store's."""
        with self._timed("read"):
            return self.inner.read(key)

    def read_start(self, key: str, at_most: int) -> bytes | None:
        """As the store's."""
        with self._timed("read"):
            return self.inner.read_start(key, at_most)

    def size(self, key: str) -> int | None:
        """As the store's."""
        with self._timed("size"):
            return self.inner.size(key)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """As the store's."""
        with self._timed("read_range"):
            return self.inner.read_range(key, offset, length)

    def open_reader(self, key: str) -> AbstractContextManager[Reader]:
        """As the store's; not told, as only aggregations open readers, and they have processes of their own."""
        return self.inner.open_reader(key)

    def write(self, key: str, data: bytes) -> None:
        """As the store's."""
        with self._timed("write"):
            self.inner.write(key, data)

    def write_file(self, key: str, path: Path) -> None:
        """As the store's."""
        with self._timed("write"):
            self.inner.write_file(key, path)

    def create(self, key: str, data: bytes) -> bool:
        """As the store's."""
        with self._timed("create"):
            return self.inner.create(key, data)

    def list(self, prefix: str = "") -> list[str]:
        """As the store's."""
        with self._timed("list"):
            return self.inner.list(prefix)

    def delete(self, prefix: str) -> None:
        """As the store's."""
        with self._timed("delete"):
            self.inner.delete(prefix)

    def url_to_read(self, key: str, seconds: int) -> str:
        """As the store's."""
        return self.inner.url_to_read(key, seconds)

    def url_to_write(self, key: str, seconds: int) -> str:
        """As the store's."""
        return self.inner.url_to_write(key, seconds)

    def form_to_write(self, key: str, seconds: int, at_most: int) -> PostForm | None:
        """As the store's."""
        return self.inner.form_to_write(key, seconds, at_most)

    def parts_to_write(self, key: str, seconds: int, size: int, part_bytes: int) -> PartsUpload | None:
        """As the store's."""
        return self.inner.parts_to_write(key, seconds, size, part_bytes)

    def abort_uploads(self, key: str) -> None:
        """As the store's."""
        with self._timed("delete"):
            self.inner.abort_uploads(key)

    def _timed(self, operation: str) -> AbstractContextManager[None]:
        return timed(partial(self.observer.store_called, operation))
