"""What the workers of one pytest session share: a folder, and values that one worker creates for all."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Lock:
    """A lock among the workers. To acquire it in another mode releases it first, so other workers may come between."""

    _file: IO[str]

    def acquire_shared(self) -> None:
        """Wait until no other worker holds it exclusively."""
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def acquire_exclusive(self) -> None:
        """Wait until no other worker holds it."""
        fcntl.flock(self._file, fcntl.LOCK_EX)


@dataclass(frozen=True)
class WorkerSession:
    """A session of one or more workers, each of them a process."""

    folder: Path

    @contextmanager
    def lock(self, name: str) -> Iterator[Lock]:
        """The lock of this name, not yet acquired; released at the end."""
        with (self.folder / f"{name}.lock").open("w") as file:
            yield Lock(file)

    def once(self, name: str, create: Callable[[], str]) -> str:
        """What `create` returns. The first worker that asks calls it; the others wait for it."""
        file = self._file(name)
        with self.lock(name) as lock:
            lock.acquire_exclusive()
            if not file.exists():
                file.write_text(create())
            return file.read_text()

    @contextmanager
    def using(self, name: str, create: Callable[[], str], free: Callable[[str], None]) -> Iterator[None]:
        """Use what the first user creates; the last user frees it. A worker that comes after that creates it again."""
        file = self._file(name)
        with file.with_suffix(".users").open("w") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            value = self.once(name, create)
            yield
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            file.unlink()
            free(value)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.value"
