"""Hidden states kept in files from one pass, task and round to the next: bounded in size, shared by concurrent tasks.

It is a cache: whatever goes wrong (a full or read-only volume, a damaged file), the caller computes the values instead.
The folder of a key holds the values that belong together; what a key stands for is the caller's business. When the limit
is reached, the values of keys that no task uses are removed, the least recently used key first.

A store holds a shared lock on `KEY/.lock` while it is open. That lock is only taken, and values are only removed, under the
exclusive lock of `.lock`: none can come into use while it is removed.
"""

import fcntl
import logging
import os
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedpipe_trainer.cache_volume import MORE_SPACE, advice

FOLDER: Final = "activations"
"""Name of the folder of a site's cache that has all keys."""
_ALLOWANCE: Final = 1 << 28
"""Bytes that a task may write before it measures the folder again: concurrent tasks exceed the limit by at most this much each."""
_ABANDONED_SECONDS: Final = 3600.0
"""A temporary file of this age was left by a task that was killed."""
_ENOUGH: Final = 0.5
"""A cache that keeps this share of the values works."""
_CHECKED_BYTES: Final = 1 << 20
"""Size of the value that tells whether a cache works: large enough that a full volume refuses it, small enough to cost no time."""
_VALUE, _CHECKSUM = "value", "crc32"
_TEMPORARY: Final = ".tmp"
_LOCK: Final = ".lock"

_LOG = logging.getLogger(__name__)


class ActivationStore:
    """The values of one key, in the folder `root`/`key`. No other task removes them until it is closed."""

    def __init__(self, root: Path, key: str, limit: int | None = None) -> None:
        """`limit`: bytes of all values below `root`; None: half of what is free there, counting its present values as free."""
        self._root, self._folder, self._limit = root, root / key, limit
        self._allowance = 0
        self.hits = 0
        self.misses = 0
        self._unreadable = self._unwritable = ""
        self._is_held: dict[str, bool] = {}
        """By name of a value that was read: whether it is kept now."""
        self._lock: int | None = None
        # On a volume that cannot be written, no process removes anything; on a full one, there may be room for the lock later.
        with suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
            with _locked(self._root):
                self._mark_used()

    def close(self) -> None:
        """Other tasks may remove the values from now on, as those that were used last."""
        if self._lock is not None:
            with suppress(OSError):
                os.utime(self._folder)
            os.close(self._lock)
            self._lock = None

    @property
    def held(self) -> float:
        """The share of the values that were read, found or not, which are kept now; 1 if none was read."""
        return sum(self._is_held.values()) / len(self._is_held) if self._is_held else 1.0

    @property
    def problem(self) -> str:
        """Why the cache did not work, and what to do; empty if it keeps at least half of the values and can be read."""
        if self._unwritable and self.held < _ENOUGH:
            return self._unwritable
        return self._unreadable if self.hits < self.misses else ""

    def read(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The value of this name; None if there is none, or it is damaged or of another type."""
        path = self._folder / name
        value = None
        try:
            value = _parse(path.read_bytes(), dtype)
            if value is None:
                self._warn(f"the cached activations in {path} are damaged and will be computed again")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._unreadable = f"the cached activations in {self._root} cannot be read ({error.strerror}): {advice(error)}"
            self._warn(f"{self._unreadable}; they are computed")
        self.hits += value is not None
        self.misses += value is None
        self._is_held[name] = value is not None
        return value

    def write(self, name: str, value: Tensor) -> None:
        """Keep the value, unless there is no room for it or it cannot be written."""
        if self._unwritable:
            return
        data = _serialise(value)
        try:
            if not self._reserve(len(data)):
                self._stop(f"there is no room for more cached activations in {self._root}: {self._more_room(len(data))}")
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            # Process numbers are no names: trainers in two pods that share the volume often have the same.
            temporary = self._folder / f"{name}.{secrets.token_hex(8)}{_TEMPORARY}"
            try:
                temporary.write_bytes(data)
                temporary.replace(self._folder / name)
                self._is_held[name] = True
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self._stop(f"activations cannot be cached in {self._root} ({error.strerror}): {advice(error)}")

    def _reserve(self, size: int) -> bool:
        """Whether a value of this size may be written; at the limit, values of other keys are removed."""
        if size > self._allowance:
            self._root.mkdir(parents=True, exist_ok=True)
            with _locked(self._root):
                self._allowance = min(self._make_room(size), max(_ALLOWANCE, size))
        self._allowance -= size
        return self._allowance >= 0

    def _mark_used(self) -> None:
        """Hold the key's lock, unless it is held already, and let its age start again. The caller holds the lock of the root."""
        self._folder.mkdir(exist_ok=True)
        os.utime(self._folder)
        if self._lock is None:
            self._lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def _make_room(self, size: int) -> int:
        """Bytes left below the limit, after values of keys that no task uses have been removed as far as `size` needs it."""
        used = {folder: _size(folder) for folder in _folders(self._root)}
        room = self._room(sum(used.values()))
        for folder in sorted(used, key=lambda folder: folder.stat().st_mtime):
            if room >= size:
                break
            if folder != self._folder and not _is_used(folder):
                shutil.rmtree(folder, ignore_errors=True)
                room += used[folder]
        self._mark_used()
        return room

    def _room(self, used: int) -> int:
        free = shutil.disk_usage(self._root).free
        return min(free, (self._limit if self._limit is not None else (free + used) // 2) - used)

    def _more_room(self, size: int) -> str:
        """What to do where a value of this size has no room."""
        is_limited = self._limit is not None and shutil.disk_usage(self._root).free >= size
        return f"raise FEDPIPE_ACTIVATION_CACHE_BYTES, which is {self._limit}" if is_limited else MORE_SPACE

    def _stop(self, message: str) -> None:
        self._unwritable = message
        self._warn(f"{message}; the rest is computed in every pass")

    def _warn(self, message: str) -> None:
        _LOG.warning("%s", message)


def find_problem(root: Path) -> str:
    """Why no values can be kept below `root`, and what to do; empty if they can. One is written, read back and removed.

    Other tasks may use all that the limit allows just now. That is no problem of the volume, so the limit does not count.
    """
    key, value = f"check-{secrets.token_hex(8)}", torch.zeros(_CHECKED_BYTES, dtype=torch.uint8)
    with closing(ActivationStore(root, key, limit=sys.maxsize)) as store:
        store.write(_VALUE, value)
        found = store.read(_VALUE, value.dtype)
    with suppress(OSError), _locked(root):
        shutil.rmtree(root / key, ignore_errors=True)
    damaged = f"activations that are written to {root} cannot be read back unchanged: give the trainer another cache volume"
    return store.problem or ("" if found is not None else damaged)


def remove_unused(root: Path) -> bool:
    """Remove the values of all keys that no task uses now, for something that needs the space more; whether there were any.

    Raises:
        OSError: the volume cannot be written.
    """
    if not root.is_dir():
        return False
    with _locked(root):
        unused = [folder for folder in _folders(root) if not _is_used(folder)]
        for folder in unused:
            shutil.rmtree(folder, ignore_errors=True)
    return bool(unused)


def _serialise(value: Tensor) -> bytes:
    value = value.detach().cpu().contiguous()
    return save({_VALUE: value, _CHECKSUM: torch.tensor(_crc(value))})


def _parse(data: bytes, dtype: torch.dtype) -> Tensor | None:
    try:
        tensors = load(data)
        value, checksum = tensors[_VALUE], tensors[_CHECKSUM]
    except (SafetensorError, KeyError):
        return None
    return value if value.dtype is dtype and _crc(value) == int(checksum) else None


def _crc(value: Tensor) -> int:
    return zlib.crc32(value.view(torch.uint8).numpy().data)


def _folders(root: Path) -> list[Path]:
    """The folders of all keys."""
    return [path for path in root.iterdir() if path.is_dir()]


def _is_used(folder: Path) -> bool:
    """Whether a task uses the key of this folder. The caller holds the lock of the root, so that none can begin to."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # an earlier version made the folder
        return False
    except OSError:  # it belongs to another user
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _size(folder: Path) -> int:
    """Bytes of the files in this folder. Files that a task left half-written, long ago, are removed."""
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another task has renamed its temporary file
            status = path.stat()
            if path.suffix == _TEMPORARY and time.time() - status.st_mtime > _ABANDONED_SECONDS:
                path.unlink()
            else:
                total += status.st_size
    return total


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with (root / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
