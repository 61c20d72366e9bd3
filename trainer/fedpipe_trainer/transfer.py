"""The trainer's only door to the store: objects behind URLs, in and out, streamed and hashed on the way.

A task's URLs are `file://` (a directory store) or `http(s)://` (presigned for one object and one verb). A presigned
URL is a credential: nothing here ever logs or reports its query. Whoever reads a store sees whole objects only:
a file is written beside its place and renamed into it, an HTTP PUT is atomic by itself.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from fedpipe_trainer.contract import Artifact, FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.presigned import code_in, may_be_missing

_CHUNK: Final = 1 << 20
_ATTEMPTS: Final = 9
"""With the pauses between them: a store may be away for a minute without costing a site its round."""
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 20.0
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_LONGEST_ERROR: Final = 1 << 16
_AS_STORED: Final = {"Accept-Encoding": "identity"}
_OK: Final = range(200, 300)
_NOT_FOUND: Final = 404
_FORBIDDEN: Final = 403
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERRORS: Final = range(500, 600)
_HINTS: Final = {
    _FORBIDDEN: ": the presigned URL has expired or does not allow this, or there is no such object",
    _NOT_FOUND: ": no such bucket or object",
}

_LOG = logging.getLogger(__name__)

# They log every request's full URL, signature included.
for name in ("httpx", "httpcore"):
    logging.getLogger(name).setLevel(logging.WARNING)

Pause = Callable[[float], None]
T = TypeVar("T")


class _TransientError(Exception):
    """The store may answer otherwise in a moment."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def without_query(url: str) -> str:
    """The URL as it may be shown: without its query, where a signature would stand, and without user information."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def receive(url: str, to: Path, *, sha256: str | None = None, optional: bool = False, pause: Pause = time.sleep) -> int | None:
    """Read the object at `url` into the file `to`; its size in bytes, or None when there is no such object.

    Args:
        url: of the object.
        to: the file.
        sha256: what the object must be.
        optional: the object need not be there: a store that may not say so, and answers 403, is taken to mean that.
        pause: comes back after so many seconds.

    Raises:
        TaskFailed: TransferFailed when the store refuses, stays out of reach, or its bytes are not those of `sha256`.
    """
    get = _get_file if urlsplit(url).scheme == "file" else partial(_get_http, optional=optional)
    try:
        received = _persist(lambda: get(url, to), url=url, pause=pause)
    except OSError as error:
        raise _failed(f"cannot copy {without_query(url)} to {to}: {error.strerror}") from error
    if received is None:
        return None
    size, digest = received
    if sha256 is not None and digest != sha256:
        to.unlink()
        raise _failed(f"{without_query(url)} has SHA-256 {digest}, the task says {sha256}: the object was changed or cut short")
    return size


def send(path: Path, url: str, *, pause: Pause = time.sleep) -> Artifact:
    """Write the file `path` to `url`, replacing what may be there; the object as a result names it.

    Raises:
        TaskFailed: TransferFailed when the store refuses, is full, or stays out of reach.
    """
    artifact = describe(path)
    put = _put_file if urlsplit(url).scheme == "file" else _put_http
    _persist(lambda: put(path, url), url=url, pause=pause)
    return artifact


def describe(path: Path) -> Artifact:
    """Name, size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(name=path.name, size=path.stat().st_size, sha256=digest)


def _persist(attempt: Callable[[], T], *, url: str, pause: Pause) -> T:
    for number in range(1, _ATTEMPTS + 1):
        try:
            return attempt()
        except _TransientError as error:
            if number == _ATTEMPTS:
                raise _failed(f"{without_query(url)}: {error}, {_ATTEMPTS} times in a row") from error
            seconds = min(max(_FIRST_PAUSE_SECONDS * 2 ** (number - 1), error.retry_after), _LONGEST_PAUSE_SECONDS)
            _LOG.warning("%s: %s; trying again in %.1f s", without_query(url), error, seconds)
            pause(seconds)
    raise AssertionError("the last attempt returns or raises")


def _get_file(url: str, to: Path) -> tuple[int, str] | None:
    source = _path(url)
    try:
        with source.open("rb") as file:
            return _save(_chunks(file), to)
    except FileNotFoundError as error:
        if error.filename == str(source):
            return None
        raise


def _get_http(url: str, to: Path, *, optional: bool) -> tuple[int, str] | None:
    with _weather(), httpx.stream("GET", url, headers=_AS_STORED, timeout=_TIMEOUT) as answer:
        if answer.status_code == _NOT_FOUND:
            return None
        code = _code(answer)
        if optional and answer.status_code == _FORBIDDEN and may_be_missing(url, code, answer.headers.get("Date", "")):
            _LOG.info("%s: the store may not say whether it is there (403, %s): taken as missing", without_query(url), code)
            return None
        _check(answer, url, code)
        return _save(answer.iter_raw(_CHUNK), to)


def _put_file(path: Path, url: str) -> None:
    target = _path(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            _save(_chunks(file), target)
    except OSError as error:
        raise _failed(f"cannot write {target}: {error.strerror}") from error


def _put_http(path: Path, url: str) -> None:
    # httpx would send a stream of unknown length in chunks; S3 wants the length, which signatures cover.
    length = {"Content-Length": str(path.stat().st_size)}
    with _weather(), path.open("rb") as file, httpx.stream("PUT", url, content=_chunks(file), headers=length, timeout=_TIMEOUT) as answer:
        _check(answer, url, _code(answer))


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _save(chunks: Iterator[bytes], to: Path) -> tuple[int, str]:
    """Write the chunks to `to`, whole or not at all; their size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with _whole(to) as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


@contextmanager
def _whole(to: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `to` when the block ends well, and leaves no trace when it does not."""
    handle, name = tempfile.mkstemp(dir=to.parent, prefix=f".{to.name}.")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(to)
    except BaseException:
        beside.unlink()
        raise
    _sync_folder(to.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _weather() -> Iterator[None]:
    """What the network does on a bad day is worth another attempt."""
    try:
        yield
    except httpx.TransportError as error:
        raise _TransientError(f"{type(error).__name__} ({error})" if str(error) else type(error).__name__) from error


def _code(answer: httpx.Response) -> str:
    """The store's own word for what is wrong, "" where nothing is. What else it says may quote the signature."""
    return "" if answer.status_code in _OK else code_in(next(answer.iter_raw(_LONGEST_ERROR), b""))


def _check(answer: httpx.Response, url: str, code: str) -> None:
    status = answer.status_code
    if status in _OK:
        return
    said = f"the store answered {status} {answer.reason_phrase}".rstrip() + (f" ({code})" if code else "")
    if status == _TOO_MANY_REQUESTS or status in _SERVER_ERRORS:
        raise _TransientError(said, retry_after=_retry_after(answer))
    raise _failed(f"{without_query(url)}: {said}{_HINTS.get(status, '')}")


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _failed(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.TRANSFER_FAILED, message)
