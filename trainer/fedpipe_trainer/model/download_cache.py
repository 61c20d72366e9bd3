"""Base models that a site downloads once: verified whole at the download, shared by all tasks that use the same cache folder.

Below `root`, `KEY/` is a complete model with a manifest, `KEY.partial/` one whose download was interrupted and will be continued,
`KEY.fetch` the lock of a download, and `KEY.use` the lock that every process with this model holds, so that none is removed
while it is used. A folder gets its final name only when all its files are on the disk and have the right hashes, and the name
`KEY.removed` before its files are removed. A file is read again when its size or times have changed since its hash was computed.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

from pydantic import BaseModel, ValidationError

from fedpipe_trainer.atomic_file import atomic_file, sync_folder
from fedpipe_trainer.cache_volume import FULL, advice
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.model.identity import remember, sha256_of

_MANIFEST: Final = "fedpipe-manifest"
_CHUNK: Final = 1 << 20
_UNUSED_SECONDS: Final = 30 * 86400.0
_POLL_SECONDS: Final = 0.5
_REMOVED: Final = ".removed"

_LOG = logging.getLogger(__name__)
_in_use: dict[Path, int] = {}
"""The open lock file of the model that this process uses, by folder."""


class _Manifest(BaseModel):
    revision: str | None
    files: dict[str, str]
    """SHA-256 by name, as verified at the download."""


@dataclass(frozen=True)
class Download:
    """How a model is downloaded."""

    source: str
    key: str
    """Name of its folder: the same source and revision have the same key."""
    revision: str | None
    """The hub's commit, for the manifest."""
    into: Callable[[Path], Mapping[str, str]]
    """Download all files into a folder, which may hold some already; of each the `sha256:…`, `git:…` (of a git blob) or `size:…`."""
    accepts: Callable[[Path], bool]
    """Whether the model in a folder is the one that the task expects. If not, it is downloaded once more."""


def download_once(  # noqa: PLR0913 -- where to, what, and what else is asked
    root: Path,
    scratch: Path,
    download: Download,
    *,
    hashes: Path,
    make_room: Callable[[], bool],
    stop_requested: Callable[[], bool],
) -> Path:
    """The model's folder below `root`, downloaded if it is not there; below `scratch` where the volume of `root` fails.

    Args:
        root: the folder of all models.
        scratch: the task's own folder.
        download: how the model is downloaded.
        hashes: the folder on the same volume that keeps what is known of files (`identity`).
        make_room: removes from the volume of `root` what is needed less than a model; whether there was anything.
        stop_requested: whether the task is to stop; asked while another task downloads the model.

    Raises:
        Terminated: the task was requested to stop.
        TaskFailed: TransferFailed, a file cannot be downloaded or has another hash than its source says.
    """
    folder = root / download.key
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{download.key}.fetch", stop_requested):
            _download_if_missing(folder, download, hashes, make_room)
    except OSError as error:
        if _is_intact(folder, hashes) and download.accepts(folder):  # a read-only volume
            return folder
        _LOG.warning("the model cannot be kept in %s (%s): every task downloads it; %s", root, error.strerror, advice(error))
        folder = scratch / "model"
        attempt = partial(_download, folder, download, None)
        attempt()
        _replace_unexpected(folder, download, attempt)
    return folder


def read_revision(folder: Path) -> str | None:
    """The hub's commit of the model in this folder; None if it does not come from a hub."""
    manifest = _read_manifest(folder)
    return manifest.revision if manifest else None


def _download_if_missing(folder: Path, download: Download, hashes: Path, make_room: Callable[[], bool]) -> None:
    """Download what is not there, whole and as the task expects it, and mark the folder as used."""
    attempt = partial(_download_with_room, folder, partial(_download, folder, download, hashes), make_room)
    if not _is_intact(folder, hashes):
        _prune(folder.parent, unused_for=_UNUSED_SECONDS)
        attempt()
    _replace_unexpected(folder, download, attempt)
    _mark_used(folder)


def _replace_unexpected(folder: Path, download: Download, attempt: Callable[[], None]) -> None:
    """Download once more what the task does not accept: its bytes changed on their way, or on the volume. Other tasks keep it meanwhile."""
    if not download.accepts(folder):
        _LOG.warning("%s in %s is not the model that the task expects: it is downloaded again", download.source, folder)
        attempt()


def _download_with_room(folder: Path, download: Callable[[], None], make_room: Callable[[], bool]) -> None:
    """Download; if the volume becomes full, again after `make_room`, and once more after all models that no process uses are removed.

    Raises:
        OSError: the volume does not take it, so that the caller uses another.
        TaskFailed: the source does not give it.
    """
    if _fits(download) or (make_room() and _fits(download)):
        return
    _prune(folder.parent, unused_for=0.0)
    try:
        with _volume_errors():
            download()
    except OSError:
        shutil.rmtree(_partial(folder), ignore_errors=True)
        raise


def _fits(download: Callable[[], None]) -> bool:
    """Download; False if the volume becomes full."""
    try:
        with _volume_errors():
            download()
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    return True


@contextmanager
def _volume_errors() -> Iterator[None]:
    """Raise an error of the volume as such, which a transfer has reported as its own failure."""
    try:
        yield
    except TaskFailed as failed:
        error = failed.__cause__
        if isinstance(error, OSError) and error.errno is not None:  # those of a hub are OSErrors, too, but have no number
            raise error from failed
        raise


def _download(folder: Path, download: Download, hashes: Path | None) -> None:
    """Download into a temporary folder, verify, and rename. All is on the disk before it gets its name: a node may crash at any time."""
    arriving = _partial(folder)
    arriving.mkdir(parents=True, exist_ok=True)
    expected = download.into(arriving)
    for left in arriving.glob(".*"):  # by a process that was killed
        left.unlink()
    files = {path.name: _sync_and_hash(path) for path in sorted(arriving.iterdir()) if path.name != _MANIFEST}
    wrong = [name for name, digest in expected.items() if name not in files or not _matches(arriving / name, files[name], digest)]
    if wrong:
        shutil.rmtree(arriving)
        msg = f"{', '.join(wrong)} of {download.source} arrived with other content than its source announces: try again"
        raise TaskFailed(FailureReason.TRANSFER_FAILED, msg)
    with atomic_file(arriving / _MANIFEST) as manifest:
        manifest.write(_Manifest(revision=download.revision, files=files).model_dump_json().encode())
    shutil.rmtree(folder, ignore_errors=True)
    arriving.rename(folder)
    sync_folder(folder.parent)
    for name, sha256 in files.items():
        remember(folder / name, sha256, hashes)


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, sha256: str, expected: str) -> bool:
    algorithm, _, digest = expected.partition(":")
    size = path.stat().st_size
    if algorithm != "git":
        return digest == (sha256 if algorithm == "sha256" else str(size))
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            blob.update(chunk)
    return blob.hexdigest() == digest


def _is_intact(folder: Path, hashes: Path) -> bool:
    """The quick check of every task: all files of the manifest, with the hashes that they had at the download."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return False
    try:
        damaged = [name for name, sha256 in manifest.files.items() if sha256_of(folder / name, hashes) != sha256]
    except OSError:
        return False
    if damaged:
        _LOG.warning("%s in %s changed since the download: the model is downloaded again", ", ".join(damaged), folder)
    return not damaged


def _read_manifest(folder: Path) -> _Manifest | None:
    try:
        return _Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def _mark_used(folder: Path) -> None:
    """Hold a lock until this process uses another model or ends, so that no other removes the folder, whose age starts again."""
    os.utime(folder)
    for other in _in_use.keys() - {folder}:
        os.close(_in_use.pop(other))
    if folder not in _in_use:
        lock = os.open(folder.with_name(f"{folder.name}.use"), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_SH)
        _in_use[folder] = lock


def _prune(root: Path, unused_for: float) -> None:
    """Remove models that no process uses and none has used for this many seconds, and downloads that no process continued."""
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        if folder.suffix == _REMOVED:  # by a process that was killed
            shutil.rmtree(folder, ignore_errors=True)
        elif folder not in _in_use and _take_away(folder, unused_for):
            _LOG.info("removing the unused model %s", folder)
            shutil.rmtree(_removed(folder), ignore_errors=True)


def _take_away(folder: Path, unused_for: float) -> bool:
    """Rename an unused model, so that no task finds it any more; False if it is used or downloaded.

    Both locks are held meanwhile: a task that has found the model intact and is about to use it must not lose its files.
    """
    key = folder.name.removesuffix(".partial")
    with ExitStack() as locks:
        for suffix in ("fetch", "use"):
            lock = locks.enter_context(folder.with_name(f"{key}.{suffix}").open("ab"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        # Another process may have removed it, or used it for a short time, before the locks were taken.
        if not folder.is_dir() or time.time() - folder.stat().st_mtime < unused_for:
            return False
        shutil.rmtree(_removed(folder), ignore_errors=True)
        folder.rename(_removed(folder))
    return True


def _removed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_REMOVED}")


@contextmanager
def _locked(path: Path, stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Hold this lock, for which another task's download may have to end; a blocking call would not return at a request to stop."""
    with path.open("ab") as lock:
        while not _try_lock(lock):
            if stop_requested():
                raise Terminated
            time.sleep(_POLL_SECONDS)
        yield


def _try_lock(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
