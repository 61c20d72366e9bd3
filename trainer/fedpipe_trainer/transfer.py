"""Downloads and uploads objects by URL or form, streamed and hashed. Only this module of the trainer accesses the store.

A task's URLs are `file://` (a directory store) or `http(s)://` (presigned for one object and one HTTP method). A presigned
URL is a credential: its query is never logged or reported, and nor are the fields of a form. Readers of a store never see a partial
object: a file is written under a temporary name in the same folder and then renamed, and an HTTP PUT or POST is atomic.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from fedpipe_trainer.atomic_file import atomic_file
from fedpipe_trainer.contract import Artifact, FailureReason, PostForm, Upload
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.presigned import error_code, may_be_missing

_CHUNK: Final = 1 << 20
ATTEMPTS: Final = 9
"""Together with the pauses between them: a store may be unavailable for a minute without a site losing its round."""
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 20.0
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_LONGEST_ERROR: Final = 1 << 16
_NO_COMPRESSION: Final = {"Accept-Encoding": "identity"}
_OK: Final = range(200, 300)
_NOT_FOUND: Final = 404
_FORBIDDEN: Final = 403
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERRORS: Final = range(500, 600)
_HINTS: Final = {
    _FORBIDDEN: ": the presigned URL has expired or does not allow this, or there is no such object",
    _NOT_FOUND: ": no such bucket or object",
}
_CODE_HINTS: Final = {"EntityTooLarge": ": the file is larger than the task allows"}

_LOG = logging.getLogger(__name__)

# These libraries log the full URL of every request, including the signature.
for name in ("httpx", "httpcore"):
    logging.getLogger(name).setLevel(logging.WARNING)

Sleep = Callable[[float], None]
T = TypeVar("T")


class _TransientError(Exception):
    """A failure after which another attempt may succeed."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _SourceError(Exception):
    """A file that is to be copied cannot be read."""


def without_query(url: str) -> str:
    """The URL without its query, which may contain a signature, and without user information, so that it can be shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def receive(  # noqa: PLR0913 - all but the first two are options
    url: str, to: Path, *, sha256: str | None = None, optional: bool = False, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep
) -> int | None:
    """Download the object at `url` into the file `to`; its size in bytes, or None if it does not exist.

    Args:
        url: URL of the object.
        to: the file to write.
        sha256: the hash that the object must have.
        optional: the object may be missing, so a 403 from a store that does not reveal missing objects counts as missing.
        attempts: how often the download is tried.
        sleep: called with the seconds to wait before another attempt.

    Raises:
        TaskFailed: TransferFailed, the store refuses the request, is unreachable, or the object does not have the hash `sha256`.
    """
    get = _get_file if urlsplit(url).scheme == "file" else partial(_get_http, optional=optional)
    try:
        received = _retry(lambda: get(url, to), url=url, attempts=attempts, sleep=sleep)
    except OSError as error:
        raise _transfer_failed(f"cannot copy {without_query(url)} to {to}: {error.strerror}") from error
    if received is None:
        return None
    size, digest = received
    if sha256 is not None and digest != sha256:
        to.unlink()
        raise _transfer_failed(f"{without_query(url)} has SHA-256 {digest}, the task says {sha256}: the object was changed or truncated")
    return size


def send(path: Path, to: Upload, *, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep) -> Artifact:
    """Upload the file `path` by URL or form, replacing an existing object; the artifact for the result.

    Raises:
        TaskFailed: TransferFailed, the store refuses the request, is full, or is unreachable.
    """
    artifact = describe(path)
    if isinstance(to, PostForm):
        url, write = _url_of(to), partial(_post_http, path, to)
    else:
        url, write = to, partial(_put_file if urlsplit(to).scheme == "file" else _put_http, path, to)
    _retry(write, url=url, attempts=attempts, sleep=sleep)
    return artifact


def describe(path: Path) -> Artifact:
    """Name, size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(name=path.name, size=path.stat().st_size, sha256=digest)


def _retry(attempt: Callable[[], T], *, url: str, attempts: int, sleep: Sleep) -> T:
    for number in range(1, attempts + 1):
        try:
            return attempt()
        except _TransientError as error:
            if number == attempts:
                times = f", {attempts} times in a row" if attempts > 1 else ""
                raise _transfer_failed(f"{without_query(url)}: {error}{times}") from error
            seconds = min(max(_FIRST_PAUSE_SECONDS * 2 ** (number - 1), error.retry_after), _LONGEST_PAUSE_SECONDS)
            _LOG.warning("%s: %s; retrying in %.1f s", without_query(url), error, seconds)
            sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _get_file(url: str, to: Path) -> tuple[int, str] | None:
    source = _path(url)
    try:
        return _save(_read(source), to)
    except _SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise _transfer_failed(f"cannot read {source}: {error}") from error


def _read(source: Path) -> Iterator[bytes]:
    """The content of a file. Its errors are no OSErrors, which are those of the file that is written."""
    try:
        with source.open("rb") as file:
            yield from _chunks(file)
    except OSError as error:
        raise _SourceError(error.strerror) from error


def _get_http(url: str, to: Path, *, optional: bool) -> tuple[int, str] | None:
    with _translate_transport_errors(), httpx.stream("GET", url, headers=_NO_COMPRESSION, timeout=_TIMEOUT) as response:
        if response.status_code == _NOT_FOUND:
            return None
        code = _read_error_code(response)
        if optional and response.status_code == _FORBIDDEN and may_be_missing(url, code, response.headers.get("Date", "")):
            _LOG.info("%s: the store does not reveal whether the object exists (403, %s); it counts as missing", without_query(url), code)
            return None
        _check_status(response, url, code)
        return _save(response.iter_raw(_CHUNK), to)


def _put_file(path: Path, url: str) -> None:
    target = _path(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            _save(_chunks(file), target)
    except OSError as error:
        raise _transfer_failed(f"cannot write {target}: {error.strerror}") from error


def _put_http(path: Path, url: str) -> None:
    # Without a length, httpx would use chunked transfer encoding; S3 requires the length, which the signature covers.
    length = {"Content-Length": str(path.stat().st_size)}
    with (
        _translate_transport_errors(),
        path.open("rb") as file,
        httpx.stream("PUT", url, content=_chunks(file), headers=length, timeout=_TIMEOUT) as response,
    ):
        _check_status(response, url, _read_error_code(response))


def _post_http(path: Path, form: PostForm) -> None:
    with (
        _translate_transport_errors(),
        path.open("rb") as file,
        # httpx streams the file, whose length it asks first, and puts it behind the fields, as S3 requires.
        httpx.stream("POST", form.url, data=dict(form.fields), files={"file": (path.name, file)}, timeout=_TIMEOUT) as response,
    ):
        _check_status(response, _url_of(form), _read_error_code(response))


def _url_of(form: PostForm) -> str:
    """The URL of the form's object, for messages."""
    return f"{form.url}/{form.fields.get('key', '')}"


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _save(chunks: Iterator[bytes], to: Path) -> tuple[int, str]:
    """Write the chunks to the file `to` atomically; their size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with atomic_file(to) as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


@contextmanager
def _translate_transport_errors() -> Iterator[None]:
    """Raise errors of the network connection as transient errors."""
    try:
        yield
    except httpx.TransportError as error:
        raise _TransientError(f"{type(error).__name__} ({error})" if str(error) else type(error).__name__) from error


def _read_error_code(response: httpx.Response) -> str:
    """The S3 error code of the response, "" if it succeeded. The rest of its body is not reported, since it may quote the signature."""
    return "" if response.status_code in _OK else error_code(next(response.iter_raw(_LONGEST_ERROR), b""))


def _check_status(response: httpx.Response, url: str, code: str) -> None:
    status = response.status_code
    if status in _OK:
        return
    message = f"the store answered {status} {response.reason_phrase}".rstrip() + (f" ({code})" if code else "")
    if status == _TOO_MANY_REQUESTS or status in _SERVER_ERRORS:
        raise _TransientError(message, retry_after=_retry_after(response))
    raise _transfer_failed(f"{without_query(url)}: {message}{_CODE_HINTS.get(code) or _HINTS.get(status, '')}")


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _transfer_failed(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.TRANSFER_FAILED, message)
